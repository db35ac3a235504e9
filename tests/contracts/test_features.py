"""Where a method says that its features are final, evaluation computes them once; no number shows
it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from smope.methods.base import Method
from smope.methods.finetune import Finetune
from smope.storage.run_directory import RunDirectory
from smope.streams.stream import Stream
from smope.training.checkpoint import last_checkpoint
from smope.training.precision import evaluated
from smope.training.trainer import Trainer
from tests.tiny import tiny_backbone, tiny_settings, tiny_stream

from .conftest import METHODS, every_method, make_shallow_method

CPU = torch.device("cpu")
OF_THE_BACKBONE = {
    "anacp", "fecam", "finetune", "klda", "linear_probe", "ncm", "rgda", "ridge", "slda",
}  # fmt: skip
FROM_THE_FIRST_TASK = OF_THE_BACKBONE | {"layup"}
AFTER_THE_FIRST_TASK = {"ranpac", "smope_plus"}
FINAL = sorted(FROM_THE_FIRST_TASK | AFTER_THE_FIRST_TASK)

Batch = tuple[Tensor, Mapping[str, Tensor]]


@pytest.fixture(scope="module")
def images(stream: Stream) -> Tensor:
    """Test images of both tasks, with which nothing is trained."""
    return torch.stack([task.test[index][0] for task in stream.tasks for index in range(3)])


def quick_trainer(
    method: Method, stream: Stream, path: Path | None = None, **changes: Any
) -> Trainer:
    settings = tiny_settings(**{"epochs": 1, "alignment_epochs": 1, **changes})
    directory = None if path is None else RunDirectory.create(path, "seed: 0\n")
    return Trainer(method, stream, settings, seed=0, device=CPU, directory=directory)


def note_evaluations(trainer: Trainer, evaluations: list[Batch]) -> None:
    """Append what evaluation records of every batch."""
    add = trainer._recorder.add

    def noting(logits: Tensor, labels: Tensor, experts: Mapping[str, Tensor]) -> None:
        evaluations.append((logits.clone(), dict(experts)))
        add(logits, labels, experts)

    trainer._recorder.add = noting


def fresh_evaluations(trainer: Trainer, tasks: int) -> list[Batch]:
    """What note_evaluations() has to have noted, from a new pass through the network."""
    method, batches = trainer.method, []
    trainer._recorder.open = True
    for task in trainer.stream.tasks[:tasks]:
        for images, _ in trainer.loader.of_test(task.test):
            logits = evaluated(method, images, trainer.settings.precision)
            seen = logits[:, : trainer.spans[tasks - 1].stop]
            batches.append((seen, trainer._recorder.chosen_experts(method)))
    trainer._recorder.open = False
    return batches


def assert_same(batches: list[Batch], expected: list[Batch]) -> None:
    assert len(batches) == len(expected)
    for (logits, experts), (expected_logits, expected_experts) in zip(
        batches, expected, strict=True
    ):
        assert torch.equal(logits, expected_logits)
        assert experts.keys() == expected_experts.keys()
        assert all(torch.equal(experts[key], expected_experts[key]) for key in experts)


@every_method
def test_final_features_stay_and_evaluation_is_that_of_a_fresh_pass(
    name: str, stream: Stream, images: Tensor
) -> None:
    trainer = quick_trainer(make_shallow_method(name), stream)
    passes = count_passes(trainer)
    method, evaluations = trainer.method, list[Batch]()
    note_evaluations(trainer, evaluations)
    features: list[Tensor] = []

    def after_each_task() -> None:
        with torch.no_grad():
            features.append(method.eval().features(images))
        passed = len(passes)
        assert_same(evaluations, fresh_evaluations(trainer, len(features)))
        evaluations.clear()
        del passes[passed:]

    trainer.fit(after_each_task)
    if method.features_are_final(trainer.spans[0]):
        assert torch.equal(*features)
    tests = [task.test for task in stream.tasks]
    final = method.features_are_final(trainer.spans[0])
    assert passes == (tests if final else [tests[0], *tests])
    assert trainer.history.images_evaluated == sum(len(images) for images in passes)


def test_which_methods_say_so(stream: Stream) -> None:
    first = quick_trainer(make_shallow_method("ncm"), stream).spans[0]
    made = {name: make_shallow_method(name) for name in METHODS}
    final = {name for name, method in made.items() if method.features_are_final(first)}
    assert final == set(FINAL)
    plain = {name for name, method in made.items() if method.features_are_the_backbones}
    assert plain == OF_THE_BACKBONE
    joint = make_shallow_method("joint", trained="classifier")
    assert joint.features_are_final(first)


def test_a_method_with_features_of_its_own_has_to_say_so(stream: Stream) -> None:
    """Whoever derives from a method and changes its features gets the right numbers."""

    class Growing(Finetune):
        def features(self, images: Tensor) -> Tensor:
            return super().features(images) + self.classifier.weight.abs().sum()

    torch.manual_seed(0)
    trainer = quick_trainer(Growing(tiny_backbone(), 4), stream)
    evaluations: list[Batch] = []
    note_evaluations(trainer, evaluations)
    trainer.fit(lambda: evaluations.clear() if len(evaluations) == 2 else None)
    assert_same(evaluations, fresh_evaluations(trainer, 2))


@pytest.mark.parametrize("precision", ["bfloat16", "float64"])
@pytest.mark.parametrize("name", ["ridge", "smope_plus"])
def test_also_in_other_precisions(name: str, precision: str, stream: Stream) -> None:
    trainer = quick_trainer(make_shallow_method(name), stream, precision=precision)
    evaluations: list[Batch] = []
    note_evaluations(trainer, evaluations)
    trainer.fit(lambda: None if len(trainer.history.accuracy_matrix) == 2 else evaluations.clear())
    assert_same(evaluations, fresh_evaluations(trainer, 2))


def count_passes(trainer: Trainer) -> list[Any]:
    """A list that grows by the images of a task when they are read to be tested."""
    of_test, passes = trainer.loader.of_test, list[Any]()

    def counting(images: Any) -> Any:
        passes.append(images)
        yield from of_test(images)

    trainer.loader.of_test = counting
    return passes


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("name", ["ncm", "smope_plus"])
@pytest.mark.parametrize("where", ["in a file", "nowhere, since the disk is full"])
def test_beyond_the_memory_they_are_in_a_file(
    name: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = tiny_stream(num_tasks=2)
    if where != "in a file":
        monkeypatch.setattr("tempfile.TemporaryFile", full_disk)
    trainer = quick_trainer(make_shallow_method(name), stream, tmp_path / "run")
    trainer.features.store.bytes_in_memory = 1000  # a task has 10 images of 128 or 256 bytes
    evaluations: list[Batch] = []
    note_evaluations(trainer, evaluations)
    passes = count_passes(trainer)
    trainer.fit(lambda: None if len(trainer.history.accuracy_matrix) == 2 else evaluations.clear())
    assert len(passes) == (2 if where == "in a file" else 3)
    assert_same(evaluations, fresh_evaluations(trainer, 2))
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"config.yaml", "checkpoints", "analysis", *(names & {"metrics.csv"})}


@pytest.mark.parametrize("name", ["ncm", "ranpac"])
def test_a_resumed_run_computes_what_it_needs(name: str, stream: Stream, tmp_path: Path) -> None:
    whole = quick_trainer(make_shallow_method(name), stream)
    whole.fit()

    def stop() -> None:
        raise KeyboardInterrupt

    first = quick_trainer(make_shallow_method(name), stream, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        first.fit(stop)
    directory = RunDirectory.open(tmp_path / "run")
    checkpoint = last_checkpoint(directory, lambda _, error: pytest.fail(str(error)))
    assert checkpoint is not None and not any("feature" in key for key in checkpoint.history)
    resumed = Trainer(
        make_shallow_method(name, seed=1),
        stream,
        first.settings,
        seed=0,
        device=CPU,
        directory=directory,
    )
    resumed.resume(checkpoint)
    resumed.fit()
    assert resumed.history.accuracy_matrix == whole.history.accuracy_matrix
    old, new = whole.method.trained_state(), resumed.method.trained_state()
    assert all(torch.equal(old[key], new[key]) for key in old)


def test_the_reference_reads_no_test_image_again(stream: Stream) -> None:
    """Features of finetune are those of nearest class mean."""
    trainer = quick_trainer(make_shallow_method("finetune"), stream)
    trainer.fit()
    alone = quick_trainer(copy.deepcopy(trainer.method), stream).reference_matrix()
    passes = count_passes(trainer)
    assert trainer.reference_matrix() == alone
    assert passes == []


def test_outside_a_run_the_network_is_always_asked(stream: Stream) -> None:
    """Whoever changes a method after its run gets numbers of the changed one."""
    trainer = quick_trainer(make_shallow_method("ncm"), stream)
    trainer.fit()
    before = trainer.accuracy(0, 4)
    with torch.no_grad():
        trainer.method.backbone.vit.norm.weight.zero_()
        trainer.method.backbone.vit.norm.bias.copy_(trainer.method.means[3])
    assert trainer.accuracy(0, 4) == 0 < before


def test_chosen_experts_are_counted_as_in_a_fresh_pass(stream: Stream) -> None:
    used = []
    for fresh in (False, True):
        method = make_shallow_method("smope_plus")
        if fresh:
            method.features_are_final = lambda task: False
        trainer = quick_trainer(method, stream, record="nothing")
        trainer.fit()
        used.append(trainer.history.expert_use)
    assert used[0] == used[1]
    assert used[0][-1]
