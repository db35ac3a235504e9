"""The training loop: what it measures, where its random numbers come from, and what it refuses
before it starts.
"""

from __future__ import annotations

import copy
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from smope.errors import UserError
from smope.methods.base import Method, TaskSpan
from smope.methods.finetune import Finetune
from smope.methods.ncm import NearestClassMean
from smope.methods.smope import SMoPE
from smope.routers.adaptive_noise import AdaptiveNoise
from smope.storage.run_directory import RunDirectory
from smope.streams.stream import Stream
from smope.training import compiling, device
from smope.training.checkpoint import list_checkpoints
from smope.training.history import History
from smope.training.trainer import Trainer
from tests.tiny import tiny_backbone, tiny_settings, tiny_source, tiny_stream

CPU = torch.device("cpu")
AUGMENTED: dict[str, Any] = {"crop_scale": [0.3, 1.0], "flip": True}


class Watched(Finetune):
    """Writes down every training batch."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.batches: list[tuple[int, list[int], Tensor]] = []

    def losses(self, images: Tensor, labels: Tensor, task: TaskSpan) -> dict[str, Tensor]:
        self.batches.append((task.index, labels.tolist(), images.clone()))
        return super().losses(images, labels, task)


def make(kind: type[Method], classes: int = 4, **options: Any) -> Any:
    torch.manual_seed(0)
    backbone = tiny_backbone(depth=2)
    if kind is SMoPE:
        return SMoPE(backbone, classes, AdaptiveNoise(3), num_experts=7, blocks=[0, 1], **options)
    return kind(backbone, classes, **options)


def trainer_of(method: Method, stream: Stream, seed: int = 0, **changes: Any) -> Trainer:
    directory, history = changes.pop("directory", None), changes.pop("history", None)
    trainer = Trainer(
        method, stream, tiny_settings(**changes), seed=seed, device=CPU, directory=directory
    )
    trainer.history = history or trainer.history
    return trainer


@pytest.fixture(scope="module")
def stream() -> Stream:
    return tiny_stream()


@pytest.fixture(scope="module")
def augmented() -> Stream:
    return tiny_stream(**AUGMENTED)


def test_the_matrix_is_lower_triangular_in_fractions() -> None:
    stream = tiny_stream(num_tasks=4)
    history = trainer_of(make(NearestClassMean), stream).fit()
    assert [len(row) for row in history.accuracy_matrix] == [1, 2, 3, 4]
    assert history.test_images == [5, 5, 5, 5]
    assert all(value * 5 in range(6) for row in history.accuracy_matrix for value in row)
    full = history.full_matrix()
    assert [[value is None for value in row] for row in full] == [
        [j > t for j in range(4)] for t in range(4)
    ]
    assert len(history.seconds_per_task) == 4
    assert sum(history.seconds.values()) == pytest.approx(sum(history.seconds_per_task))


def test_accuracy_is_among_the_classes_seen(stream: Stream) -> None:
    """Classes still to come are out of the race even if their logits are the largest."""
    method = make(Finetune)
    trainer = trainer_of(method, stream)
    with torch.no_grad():
        method.classifier.weight.zero_()
        method.classifier.bias.copy_(torch.tensor([1.0, 0.0, 5.0, 9.0]))
    assert trainer.accuracy(0, 2) == 0.5, "the first of two classes"
    assert trainer.accuracy(0, 4) == 0
    assert trainer.accuracy(1, 4) == 0.5


def test_steps_drop_the_incomplete_batch(stream: Stream) -> None:
    method = make(Watched)
    trainer = trainer_of(method, stream, batch_size=7, epochs=2)
    history = trainer.fit()
    assert trainer.steps(trainer.spans[0]) == 2 * (24 // 7)
    assert [len(labels) for _, labels, _ in method.batches] == [7] * 12
    assert (history.steps, history.images_trained) == (12, 84)


def test_phases_of_the_first_task(stream: Stream, tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run", "seed: 0\n")
    method = make(SMoPE)
    trainer_of(method, stream, epochs=4, dense_epochs=None, directory=directory).fit()
    rows = list(csv.DictReader(directory.metrics.open()))
    phases = [(row["task"], row["phase"], row["epoch"]) for row in rows]
    assert phases == [("0", "dense", str(e)) for e in range(2)] + [
        (t, "sparse", str(e)) for t in "01" for e in range(4)
    ]
    assert [int(row["step"]) for row in rows] == [3 * (n + 1) for n in range(10)]
    assert [bool(row["router"]) for row in rows] == [False] * 2 + [True] * 8
    assert [bool(row["prototype"]) for row in rows] == [False] * 6 + [True] * 4
    for row in rows:
        parts = sum(float(row[name] or 0) for name in ("cross_entropy", "router", "prototype"))
        assert float(row["loss"]) == pytest.approx(parts, rel=1e-5)
    assert [path.name for path in list_checkpoints(directory)] == [
        "001-00000012.safetensors",
        "002-00000000.safetensors",
    ]


def test_a_method_without_phases_has_checkpoints_at_task_boundaries(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run", "seed: 0\n")
    trainer_of(make(NearestClassMean), tiny_stream(num_tasks=4), directory=directory).fit()
    assert [path.name for path in list_checkpoints(directory)] == [
        "003-00000000.safetensors",
        "004-00000000.safetensors",
    ]


def same_batches(first: list[Any], second: list[Any]) -> bool:
    return len(first) == len(second) and all(
        (a[0], a[1]) == (b[0], b[1]) and torch.equal(a[2], b[2])
        for a, b in zip(first, second, strict=True)
    )


def test_batches_do_not_depend_on_what_ran_before(augmented: Stream) -> None:
    """The second task's images and their order are the same whether the first was trained in this
    process or not.
    """
    whole = make(Watched)
    trainer_of(whole, augmented).fit()
    torch.manual_seed(77)
    torch.rand(5)
    resumed = make(Watched)
    history = History([10, 10], accuracy_matrix=[[1.0]])
    trainer = trainer_of(resumed, augmented, history=history)
    torch.manual_seed(78)
    trainer.fit()
    second = [batch for batch in whole.batches if batch[0] == 1]
    assert same_batches(second, resumed.batches)


def test_every_epoch_has_its_own_order_and_augmentation(augmented: Stream) -> None:
    method = make(Watched)
    trainer_of(method, augmented, epochs=2).fit()
    first, second = method.batches[:3], method.batches[3:6]
    assert [labels for _, labels, _ in first] != [labels for _, labels, _ in second]
    pixels = [
        torch.cat([images for _, _, images in epoch]).flatten(1).double().sum(1).sort().values
        for epoch in (first, second)
    ]
    assert not torch.allclose(*pixels), "another crop of the same images"


def test_the_seed_changes_the_order(augmented: Stream) -> None:
    runs = []
    for seed in (0, 0, 1):
        runs.append(make(Watched))
        trainer_of(runs[-1], augmented, seed=seed, epochs=1).fit()
    assert same_batches(runs[0].batches, runs[1].batches)
    assert [labels for _, labels, _ in runs[0].batches] != [
        labels for _, labels, _ in runs[2].batches
    ]


def test_workers_change_no_number(augmented: Stream) -> None:
    runs = [make(Watched), make(Watched)]
    histories = [
        trainer_of(method, augmented, epochs=1, num_workers=workers).fit()
        for method, workers in zip(runs, (0, 1), strict=True)
    ]
    assert same_batches(runs[0].batches, runs[1].batches)
    assert histories[0].accuracy_matrix == histories[1].accuracy_matrix


def test_activation_checkpointing_changes_no_number(augmented: Stream) -> None:
    runs = [make(SMoPE), make(SMoPE)]
    histories = [
        trainer_of(method, augmented, epochs=1, activation_checkpointing=on).fit()
        for method, on in zip(runs, (False, True), strict=True)
    ]
    assert [method.backbone.recompute for method in runs] == [False, True]
    assert histories[0].accuracy_matrix == histories[1].accuracy_matrix
    pairs = zip(*(method.trained_state().values() for method in runs), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_compiled_it_learns_the_same(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through both tasks, dense and sparse, in training and evaluation, with batches of several
    sizes.
    """
    monkeypatch.setattr(compiling, "COMPILER", "aot_eager")  # all of it but the generated code
    torch.compiler.reset()
    runs = [make(SMoPE), make(SMoPE)]
    for method, on in zip(runs, (False, True), strict=True):
        trainer_of(method, stream, compile=on, epochs=2).fit()
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    for (name, ours), theirs in zip(
        runs[0].trained_state().items(), runs[1].trained_state().values(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("which", ["train", "plain"])
def test_statistics_are_of_every_training_image(which: str, stream: Stream) -> None:
    method = make(Finetune, align=True)
    trainer_of(method, stream, statistics_images=which, batch_size=20).fit()
    for task in stream.tasks:
        images = torch.stack([task.train_plain[index][0] for index in range(len(task.train_plain))])
        labels = torch.tensor(task.train_plain.targets)
        with torch.no_grad():
            features = method.features(images)
        for label in task.classes:
            own = features[labels == label]
            assert len(own) == 12
            torch.testing.assert_close(
                method.statistics.mean[label, 0], own.mean(0), rtol=1e-4, atol=1e-5
            )
            torch.testing.assert_close(
                method.statistics.variance[label, 0], own.var(0, correction=0), rtol=1e-3, atol=1e-5
            )


def test_statistics_of_augmented_images_differ(augmented: Stream) -> None:
    means = []
    for which in ("train", "plain"):
        method = make(Finetune, align=True)
        trainer_of(method, augmented, statistics_images=which).fit()
        means.append(method.statistics.mean.clone())
    assert not torch.allclose(*means)


def test_a_batch_larger_than_a_task(stream: Stream) -> None:
    trainer_of(make(Finetune), stream, batch_size=24)
    with pytest.raises(
        UserError, match=r"trainer\.batch_size=25 is larger than the 24 training images of task 1"
    ):
        trainer_of(make(Finetune), stream, batch_size=25)
    trainer_of(make(NearestClassMean), stream, batch_size=25)


def test_a_later_task_that_is_too_small() -> None:
    source = tiny_source(train=6)
    stream = tiny_stream(source=source, num_tasks=2, classes_per_task=[3, 1])
    with pytest.raises(
        UserError, match=r"batch_size=8 is larger than the 6 training images of task 2"
    ):
        trainer_of(make(Finetune), stream)


@pytest.mark.parametrize(("frozen", "phase"), [(3, "dense"), (12, "sparse")])
def test_frozen_steps_must_leave_some(frozen: int, phase: str, stream: Stream) -> None:
    """Three steps in the dense epoch, twelve in the four sparse ones."""
    dense = 1 if phase == "dense" else 0
    trainer_of(make(SMoPE), stream, frozen_steps=frozen - 1, dense_epochs=dense)
    with pytest.raises(UserError, match=rf"trainer\.frozen_steps={frozen} must be below"):
        trainer_of(make(SMoPE), stream, frozen_steps=frozen, dense_epochs=dense)


def test_precision_float64(stream: Stream) -> None:
    method = make(Watched)
    trainer_of(method, stream, precision="float64", epochs=1).fit()
    assert method.classifier.weight.dtype == torch.float64
    assert {images.dtype for _, _, images in method.batches} == {torch.float64}


def test_precision_bfloat16_keeps_weights_and_scores_in_float32(stream: Stream) -> None:
    method = make(SMoPE)
    dtypes: set[torch.dtype] = set()
    method.register_forward_hook(lambda _module, _inputs, logits: dtypes.add(logits.dtype))
    trainer_of(method, stream, precision="bfloat16", epochs=2).fit()
    assert dtypes == {torch.bfloat16}
    assert {p.dtype for p in method.parameters()} == {torch.float32}
    assert {routing.scores.dtype for routing in method.routings} == {torch.float32}
    assert all(torch.isfinite(value).all() for value in method.trained_state().values())


def test_on_task_end_is_called_after_each_checkpoint(stream: Stream, tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path / "run", "seed: 0\n")
    seen: list[int] = []
    trainer_of(make(NearestClassMean), stream, directory=directory).fit(
        lambda: seen.append(len(list_checkpoints(directory)))
    )
    assert seen == [1, 2]


def test_the_method_is_given_the_trainer_s_loader_for_usage(augmented: Stream) -> None:
    """One pass over whole, shuffled, augmented batches; every image's K hits in every block and
    head.
    """
    method = make(SMoPE)
    trainer_of(method, augmented, batch_size=7).fit()
    for bank in method.experts:
        assert bank.counts.sum(-1).tolist() == [2 * 21 * 3] * 2, (
            "two tasks of 21 whole-batch images, three experts"
        )


@pytest.fixture
def matmul() -> Iterator[Any]:
    """oneDNN's switch for float32 products, as it was afterwards."""
    switch: Any = getattr(torch.backends.mkldnn, "matmul", None)
    if switch is None:
        pytest.skip("this torch has no such switch")
    before = switch.fp32_precision
    device._products_are_exact.cache_clear()
    yield switch
    device._products_are_exact.cache_clear()
    switch.fp32_precision = before


def test_onednn_only_where_it_is_exact(matmul: Any) -> None:
    matmul.fp32_precision = "ieee"
    chosen = device.prefer_onednn()
    assert matmul.fp32_precision == ("bf16" if chosen else "ieee")
    draw = torch.Generator().manual_seed(1)
    for rows, width, wide in ((197, 192, 576), (1576, 768, 3072), (17, 32, 96)):
        left, right = (
            torch.randn(rows, width, generator=draw),
            torch.randn(wide, width, generator=draw),
        )
        exact = left.double() @ right.double().T
        for product in (
            torch.nn.functional.linear(left, right),
            torch.bmm(left[None], right.T[None])[0],
        ):
            assert (product.double() - exact).abs().max() <= 1e-5 * exact.abs().max()


@pytest.mark.parametrize("least", [0, 10**8], ids=["every product", "large ones"])
@pytest.mark.parametrize("kind", ["linear", "bmm"])
def test_onednn_is_left_where_it_is_not_exact(
    kind: str, least: int, matmul: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch 2.11 on a processor with bfloat16 units: products in a batch are reduced, single ones
    only if large.
    """
    matmul.fp32_precision = "ieee"
    monkeypatch.setattr(device, "_onednn_has_effect", lambda: True)
    module = {"linear": torch.nn.functional, "bmm": torch}[kind]
    exact = getattr(module, kind)

    def reduced(left: Tensor, right: Tensor) -> Tensor:
        large = left.numel() * right.shape[-2 if kind == "linear" else -1] > least
        return (
            exact(left.bfloat16().float(), right.bfloat16().float())
            if large
            else exact(left, right)
        )

    monkeypatch.setattr(module, kind, reduced)
    assert not device.prefer_onednn()
    assert matmul.fp32_precision == "ieee"


def test_onednn_is_left_where_it_has_no_effect(
    matmul: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the record does not name what is not used, and attention takes the kernel that is
    faster without it.
    """
    matmul.fp32_precision = "ieee"
    monkeypatch.setattr(device, "_onednn_has_effect", lambda: False)
    assert not device.prefer_onednn()
    assert matmul.fp32_precision == device.float32_products() == "ieee"


def test_deterministic_kernels() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    try:
        device.prepare_process(tiny_settings(deterministic=True), torch.device("meta"))
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(before)


def test_a_device_that_is_not_there() -> None:
    assert device.resolve_device("cpu") == CPU
    index = torch.cuda.device_count()
    with pytest.raises(
        UserError,
        match=rf"trainer\.device=cuda:{index}: this machine has no such device; use .*auto",
    ):
        device.resolve_device(f"cuda:{index}")


def test_a_method_may_be_copied_while_it_learns(stream: Stream) -> None:
    """What it remembers is its own: a copy goes its own way."""
    method = make(SMoPE)
    before = {key: value.clone() for key, value in method.trained_state().items()}
    trainer_of(copy.deepcopy(method), stream, epochs=1).fit()
    assert all(torch.equal(value, before[key]) for key, value in method.trained_state().items())
