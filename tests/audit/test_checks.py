"""Each check fails where it should: one fault at a time in a run that is in order otherwise."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smope.audit import checks
from smope.audit.restored_run import RestoredRun, Verdict, choose_sample
from smope.methods._shared.frozen_hash import frozen_sha256
from smope.methods.finetune import Finetune
from smope.run.resume import process
from smope.storage.run_directory import RunDirectory
from smope.streams.selection import UnresampledImages
from smope.streams.source import ImageSet
from smope.training.checkpoint import list_checkpoints, read_checkpoint
from smope.training.trainer import Trainer
from tests.tiny import tiny_backbone, tiny_settings, tiny_source, tiny_stream


def make_run(path: Path, **stream: Any) -> RestoredRun:
    """A small run, trained on two tasks, as an audit finds it."""
    torch.manual_seed(0)
    directory = RunDirectory.create(path, "seed: 0\n")
    method = Finetune(tiny_backbone(depth=2), 4)
    options = {"crop_scale": [0.3, 1.0], "flip": True, **stream}
    settings = tiny_settings(epochs=1)
    trainer = Trainer(
        method,
        tiny_stream(**options),
        settings,
        seed=0,
        device=torch.device("cpu"),
        directory=directory,
    )
    loaded = frozen_sha256(method)
    trainer.context = {"process": process(trainer.device)}
    trainer.fit()
    record = {
        "status": "finished",
        "config": {"stream": {"eval_crop": 1.0}},
        "backbone": method.backbone.identity.as_dict(),
        "frozen_weights": {"loaded": loaded, "trained": frozen_sha256(method)},
        "tasks": [{"test": len(task.test)} for task in trainer.stream.tasks],
        **trainer.history.record(),
    }
    sizes = [len(task.test) for task in trainer.stream.tasks]
    checkpoint = read_checkpoint(list_checkpoints(directory)[-1])
    return RestoredRun(trainer, record, checkpoint, choose_sample(sizes, 0))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RestoredRun:
    return make_run(tmp_path_factory.mktemp("audit") / "run")


@pytest.fixture
def run(whole: RestoredRun) -> RestoredRun:
    """The run, for one test to spoil."""
    trainer = copy.copy(whole.trainer)
    trainer.method = copy.deepcopy(whole.method)
    trainer.stream = copy.deepcopy(whole.trainer.stream)
    return replace(whole, trainer=trainer, record=copy.deepcopy(whole.record))


def override(run: RestoredRun, name: str, function: Callable[..., Any]) -> None:
    """Replace a method of the run's Method, in a way that copies of it follow."""
    setattr(run.method, "__class__", type("Spoiled", (type(run.method),), {name: function}))  # noqa: B010


def failed(check: Callable[[RestoredRun], Verdict], run: RestoredRun) -> str:
    verdict = check(run)
    assert not verdict.passed, verdict.text
    return verdict.text


def test_a_run_in_order_passes_every_check(whole: RestoredRun) -> None:
    before = copy.deepcopy(whole.method.state_dict())
    verdicts = list(checks.run_checks(whole))
    assert [verdict.text for verdict in verdicts if not verdict.passed] == []
    assert len({verdict.check for verdict in verdicts}) == 10
    assert all(torch.equal(value, before[key]) for key, value in whole.method.state_dict().items())
    assert len(whole.trainer.stream.tasks[0].test) == 10, "the reduced images are whole again"


def leaking(self: Any, images: Tensor) -> Tensor:
    features = Finetune.features(self, images)
    return features + 1e-4 * features.mean(0)


def test_a_method_that_looks_at_the_rest_of_the_batch(run: RestoredRun) -> None:
    override(run, "features", leaking)
    assert "alone and in batches of 8 differ by" in failed(checks.batch_size, run)
    assert "sorted by task and shuffled differ by" in failed(checks.image_order, run)


def test_a_reshape_that_mixes_images(run: RestoredRun) -> None:
    """The mistake that several published programs share: heads and images swapped in a reshape."""

    def mixed(self: Any, images: Tensor) -> Tensor:
        features = Finetune.features(self, images)
        return features.reshape(2, -1, len(images)).transpose(1, 2).reshape(features.shape)

    override(run, "features", mixed)
    failed(checks.batch_size, run)
    failed(checks.image_order, run)


def test_a_method_that_remembers_the_images_before(run: RestoredRun) -> None:

    def drifting(self: Any, images: Tensor) -> Tensor:
        self.drift = getattr(self, "drift", 0.0) + float(images.mean())
        return Finetune.features(self, images) + 1e-3 * self.drift

    override(run, "features", drifting)
    failed(checks.image_order, run)


def test_dropout_that_stays_on(run: RestoredRun) -> None:
    class Noisy(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            return nn.functional.dropout(features, 0.5)

    run.method.noise = Noisy()
    override(run, "features", lambda self, images: self.noise(Finetune.features(self, images)))
    assert "evaluated twice differ by" in failed(checks.repeated_evaluation, run)


def test_counting_during_evaluation(run: RestoredRun) -> None:
    run.method.register_buffer("seen", torch.zeros(()))

    def counting(self: Any, images: Tensor) -> Tensor:
        self.seen += len(images)
        return Finetune.features(self, images)

    override(run, "features", counting)
    assert failed(checks.repeated_evaluation, run) == "evaluating changed seen (1 in all)"


def test_a_module_left_in_training_mode(run: RestoredRun) -> None:
    class Stubborn(nn.Dropout):
        def train(self, mode: bool = True) -> Any:
            return super().train(True)

    run.method.stubborn = Stubborn(0.0)
    assert failed(checks.evaluation_mode, run) == "in training mode while evaluated: Stubborn"


def test_a_hidden_module_in_training_mode(run: RestoredRun) -> None:
    """One that the method keeps outside of its modules, where eval() does not reach it."""
    hidden = [nn.BatchNorm1d(32)]
    override(run, "features", lambda self, images: hidden[0](Finetune.features(self, images)))
    assert failed(checks.evaluation_mode, run) == "in training mode while evaluated: BatchNorm1d"


def test_training_transforms_at_test_time(run: RestoredRun) -> None:
    for task in run.trainer.stream.tasks:
        task.test.unresampled = UnresampledImages(task.test._selection, task.train.transform)
    assert "20 of 20 test images are not shown as stream.eval_crop says" in failed(
        checks.evaluation_transforms, run
    )


def test_another_crop_than_the_configuration_says(run: RestoredRun) -> None:
    run.record["config"]["stream"]["eval_crop"] = 0.875
    failed(checks.evaluation_transforms, run)


def test_shared_images_are_counted_by_their_pixels(tmp_path: Path) -> None:
    source = tiny_source(test=50)
    images = list(source.test.images)
    images[0], images[1] = (source.train.images[i].copy() for i in (0, 1))
    source = replace(source, test=ImageSet(source.test.targets, images))
    run = make_run(tmp_path / "two", source=source)
    verdict = checks.overlap(run)
    assert verdict.passed, "2 of 200 are 1 %"
    assert verdict.text.startswith(
        "2 of 200 test images (1 %) are among the training images, pixel for pixel"
    )
    assert "(allowed: 0)" in failed(checks.overlap, replace(run, strict=True))
    images[2] = source.train.images[2].copy()
    more = make_run(
        tmp_path / "three", source=replace(source, test=ImageSet(source.test.targets, images))
    )
    assert failed(checks.overlap, more).startswith("3 of 200 test images (1.5 %)")


def test_an_evaluation_in_which_later_classes_compete(run: RestoredRun) -> None:
    def careless(self: Trainer, index: int, seen_classes: int) -> float:
        return Trainer.accuracy(self, index, self.method.num_classes)

    run.trainer.accuracy = MethodType(careless, run.trainer)
    assert "with the 2 later classes favoured" in failed(checks.unseen_classes, run)


def test_classes_of_a_single_task_are_never_unseen(run: RestoredRun) -> None:
    run.trainer.spans = [replace(run.trainer.spans[0], stop=run.method.num_classes)]
    assert checks.unseen_classes(run).passed is None


def test_an_evaluation_that_passes_classify_by_is_no_proof(run: RestoredRun) -> None:
    run.trainer.accuracy = lambda index, seen: 0.5
    with pytest.raises(AssertionError, match="the trainer evaluates by"):
        checks.unseen_classes(run)


def test_a_frozen_weight_that_training_changed(run: RestoredRun) -> None:
    run.record["frozen_weights"]["trained"] = "f" * 64
    assert "but its tensors hash to" in failed(checks.frozen_weights, run)


def test_a_frozen_weight_that_is_another_now(run: RestoredRun) -> None:
    with torch.no_grad():
        run.method.backbone.vit.blocks[1].mlp.fc1.weight[0, 0] += 1e-6
    failed(checks.frozen_weights, run)


def test_another_weight_file(run: RestoredRun) -> None:
    run.record["backbone"]["sha256"] = "e" * 64
    assert "run.json says eeeeeeeeeeee" in failed(checks.frozen_weights, run)


def test_a_finished_run_must_tell_its_frozen_weights(run: RestoredRun) -> None:
    run.record["frozen_weights"] = None
    assert "lacks a hash" in failed(checks.frozen_weights, run)
    run.record["status"] = "interrupted"
    assert checks.frozen_weights(run).passed is None, "what cannot be looked at is not in order"


@pytest.mark.parametrize("row", [0, 1])
def test_a_tampered_matrix(row: int, run: RestoredRun) -> None:
    run.record["accuracy_matrix"][row][0] = 1.1 - run.record["accuracy_matrix"][row][0]
    text = failed(checks.last_row, run)
    assert text == f"run.json and the checkpoint differ in the matrix after task {row + 1}"


def test_a_state_that_gives_other_numbers(run: RestoredRun) -> None:
    with torch.no_grad():
        run.method.classifier.bias[0] += 100
    assert "evaluated again: task" in failed(checks.last_row, run)


def test_on_another_set_up_an_image_may_move(run: RestoredRun) -> None:
    images = [len(task.test) for task in run.trainer.stream.tasks]
    row = run.record["accuracy_matrix"][-1]
    moved = [
        value - 1 / count if value > 0.5 else value + 1 / count
        for value, count in zip(row, images, strict=True)
    ]
    history = {
        **run.checkpoint.history,
        "accuracy_matrix": [run.checkpoint.history["accuracy_matrix"][0], moved],
    }
    run.record["accuracy_matrix"][-1] = moved
    here = replace(run, checkpoint=replace(run.checkpoint, history=history))
    failed(checks.last_row, here)
    context = {"process": {**run.checkpoint.context["process"], "torch": "1.0"}}
    elsewhere = replace(run, checkpoint=replace(here.checkpoint, context=context))
    assert "or one image, on another set-up" in checks.last_row(elsewhere).text
    assert checks.last_row(elsewhere).passed


@pytest.mark.parametrize(
    "score",
    [
        "final_average_accuracy",
        "cumulative_average_accuracy",
        "forgetting",
        "sample_weighted_accuracy",
    ],
)
def test_a_tampered_score(score: str, run: RestoredRun) -> None:
    run.record[score] += 1e-6
    assert f"in run.json {score}" in failed(checks.scores, run)
    run.record[score] = None
    failed(checks.scores, run)
    del run.record[score]
    if score in checks.SCORES_OF_EVERY_VERSION:
        assert f"in run.json {score} None" in failed(checks.scores, run)


@pytest.mark.parametrize("value", [0.123, 1.2, -0.1, None])
def test_an_accuracy_that_is_no_number_of_images(value: float | None, run: RestoredRun) -> None:
    run.record["accuracy_matrix"][1][0] = value
    assert f"accuracy [2, 1] {value}" in failed(checks.scores, run)


def test_the_sample_is_spread_over_tasks_and_images() -> None:
    assert choose_sample([10, 4], 4) == ((0, 5), (0, 2))
    assert choose_sample([10, 4], 0) == (tuple(range(10)), tuple(range(4)))
    assert choose_sample([3, 3, 3], 1) == ((0,), (0,), (0,))
