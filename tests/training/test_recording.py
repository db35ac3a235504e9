"""What evaluation leaves for the analysis: it says what the matrix says, changes nothing, and
survives a break.
"""

from __future__ import annotations

import csv
import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from pandas.testing import assert_frame_equal
from PIL import Image
from safetensors.numpy import load_file

from smope.analysis.calibration import calibration_scores
from smope.analysis.classes import class_accuracies
from smope.analysis.confusion import class_confusion, split_errors
from smope.analysis.mistakes import worst_mistakes
from smope.analysis.run import Run
from smope.analysis.snapshots import Snapshots
from smope.errors import UserError
from smope.methods.base import Method
from smope.methods.finetune import Finetune
from smope.methods.smope import SMoPE
from smope.routers.adaptive_noise import AdaptiveNoise
from smope.routers.dense import Dense
from smope.storage.run_directory import RunDirectory
from smope.streams.stream import Stream
from smope.training import recording, top_logits
from smope.training.checkpoint import last_checkpoint
from smope.training.mistakes import MAX_MISTAKES
from smope.training.settings import TrainerSettings
from smope.training.top_logits import (
    bytes_of_all_logits,
    resolved,
    summarised,
    top_logits_line,
)
from smope.training.trainer import Trainer
from tests.tiny import shades, tiny_backbone, tiny_settings, tiny_source, tiny_stream

CPU = torch.device("cpu")
Files = dict[str, dict[str, numpy.ndarray]]


@pytest.fixture(scope="module")
def stream() -> Stream:
    return tiny_stream()


def make(router: Any = None) -> SMoPE:
    torch.manual_seed(0)
    return SMoPE(
        tiny_backbone(depth=2), 4, router or AdaptiveNoise(3), num_experts=7, blocks=[0, 1]
    )


def train(path: Path, stream: Stream, method: Method, **changes: Any) -> Trainer:
    directory = RunDirectory.create(path, "seed: 0\n")
    trainer = Trainer(
        method, stream, tiny_settings(**changes), seed=0, device=CPU, directory=directory
    )
    trainer.fit()
    return trainer


def read(path: Path) -> Files:
    return {file.stem: load_file(file) for file in sorted((path / "analysis").iterdir())}


@pytest.fixture(scope="module")
def seen(stream: Stream, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return train(tmp_path_factory.mktemp("seen") / "run", stream, make())


def folder(trainer: Trainer) -> Path:
    assert trainer.outputs.directory is not None
    return trainer.outputs.directory.path


def test_the_images_are_described_once_in_the_order_of_tasks(seen: Trainer, stream: Stream) -> None:
    images = read(folder(seen))["images"]
    assert images["labels"].tolist() == [
        label for task in stream.tasks for label in task.test.targets
    ]
    assert images["tasks"].tolist() == [0] * 10 + [1] * 10
    assert images["source_index"].tolist() == [
        i for task in stream.tasks for i in task.test.source_index
    ]
    assert images["labels"][images["example_of"]].tolist() == [0, 1, 2, 3], (
        "a picture of each class"
    )
    first = (255 * stream.tasks[0].test[int(images["example_of"][0])][0]).round()
    assert numpy.array_equal(images["examples"][0], first.permute(1, 2, 0).numpy())


def test_what_was_predicted_gives_the_accuracy_matrix(seen: Trainer) -> None:
    files = read(folder(seen))
    labels, tasks = files["images"]["labels"], files["images"]["tasks"]
    for after, row in enumerate(seen.history.accuracy_matrix):
        predicted = files[f"task-{after + 1:03d}"]["predicted"]
        right = predicted == labels[: len(predicted)]
        assert [
            right[tasks[: len(right)] == task].mean() for task in range(after + 1)
        ] == pytest.approx(row)


def test_logits_and_experts_are_those_of_the_method(seen: Trainer, stream: Stream) -> None:
    last, method = read(folder(seen))["task-002"], seen.method.eval()
    assert isinstance(method, SMoPE)
    images = torch.stack([stream.tasks[1].test[index][0] for index in range(10)])
    with torch.no_grad():
        logits = method(images)
    assert last["logits"].dtype == numpy.float16
    assert last["logits"].shape == (20, 4)
    assert (last["logits"].max(-1) == 0).all() and last["top"].dtype == numpy.float32
    assert numpy.allclose(
        last["logits"][10:] + last["top"][10:, None], logits, atol=1e-2, rtol=1e-3
    )
    assert last["experts.1"].dtype == numpy.uint8
    assert numpy.array_equal(last["experts.1"][10:], method.routings[1].expert_ids.numpy())
    for name, rows in (("keys", method.experts[0].keys), ("values", method.experts[0].values)):
        assert numpy.array_equal(last[f"{name}.0"], rows.detach().numpy())
    assert numpy.array_equal(last["counts.1"], method.experts[1].counts.numpy())


def test_the_surest_mistakes_have_pictures_and_names(seen: Trainer, stream: Stream) -> None:
    """A report needs no data set: what it shows of images lies in the run."""
    run = Run(folder(seen), {"class_names": "abcd", "accuracy_matrix": [[1, None], [1, 1]]})
    files = read(folder(seen))
    labels = files["images"]["labels"].astype(int)
    wrong = files["task-002"]["predicted"] != labels
    assert 1 < wrong.sum() < MAX_MISTAKES
    mistakes = worst_mistakes(run)
    assert sorted(mistake.index for mistake in mistakes) == numpy.flatnonzero(wrong).tolist()
    probabilities = [mistake.probability for mistake in mistakes]
    assert probabilities == sorted(probabilities, reverse=True)
    tests = [(task.test, item) for task in stream.tasks for item in range(len(task.test))]
    for mistake in mistakes:
        test, item = tests[mistake.index]
        assert mistake.name == test.name(item)
        picture = numpy.asarray(Image.open(io.BytesIO(mistake.jpeg))).astype(float)
        pixels = 255 * test[item][0].permute(1, 2, 0).numpy()
        assert picture.shape == pixels.shape
        assert abs(picture - pixels).mean() < 12, "as the model sees it, in JPEG's quality"
        assert mistake.label == "abcd"[labels[mistake.index]] != mistake.predicted


def test_pictures_of_another_task_are_not_shown(seen: Trainer, tmp_path: Path) -> None:
    """A run killed while it wrote, or a damaged file: mistakes without pictures, and no error."""
    for content in (b"", b"damaged"):
        copy = tmp_path / f"run{len(content)}"
        shutil.copytree(folder(seen), copy)
        (copy / "analysis" / "mistakes.safetensors").write_bytes(content)
        run = Run(copy, {"class_names": "abcd", "accuracy_matrix": [[1, None], [1, 1]]})
        mistakes = worst_mistakes(run)
        assert mistakes and all(not mistake.jpeg and not mistake.name for mistake in mistakes)
    earlier = Run(folder(seen), {"class_names": "abcd", "accuracy_matrix": [[1, None]]})
    assert all(not mistake.jpeg for mistake in worst_mistakes(earlier))


def test_only_seen_classes_and_images_are_there(seen: Trainer) -> None:
    first = read(folder(seen))["task-001"]
    assert first["logits"].shape == (10, 2)
    assert first["experts.0"].shape == (10, 2, 3)


def test_tasks_to_come_on_request(seen: Trainer, stream: Stream, tmp_path: Path) -> None:
    train(tmp_path / "run", stream, make(), record="all")
    files, usual = read(tmp_path / "run"), read(folder(seen))
    assert files["task-001"]["logits"].shape == (20, 2)
    assert files["task-001"]["experts.1"].shape == (20, 2, 3)
    assert numpy.array_equal(files["task-001"]["logits"][:10], usual["task-001"]["logits"])
    assert same(files["task-002"], usual["task-002"])


def same(first: dict[str, numpy.ndarray], second: dict[str, numpy.ndarray]) -> bool:
    return first.keys() == second.keys() and all(
        numpy.array_equal(first[key], second[key]) for key in first
    )


@pytest.mark.parametrize("record", ["nothing", "all"])
def test_no_number_depends_on_it(
    record: str, seen: Trainer, stream: Stream, tmp_path: Path
) -> None:
    trainer = train(tmp_path / "run", stream, make(), record=record)
    ours, usual = trainer.method.trained_state(), seen.method.trained_state()
    assert all(torch.equal(ours[key], usual[key]) for key in usual)
    assert trainer.history.accuracy_matrix == seen.history.accuracy_matrix
    assert metrics(folder(trainer)) == metrics(folder(seen))
    assert (tmp_path / "run" / "analysis").exists() == (record != "nothing")


def metrics(path: Path) -> list[dict[str, str]]:
    with (path / "metrics.csv").open(newline="") as file:
        return [{**row, "images_per_second": ""} for row in csv.DictReader(file)]


def test_methods_without_experts_and_with_all_of_them_have_no_choices(
    stream: Stream, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    train(tmp_path / "plain", stream, Finetune(tiny_backbone(depth=1), 4))
    assert set(read(tmp_path / "plain")["task-002"]) == {"logits", "top", "predicted"}
    train(tmp_path / "dense", stream, make(Dense(3)))
    found = set(read(tmp_path / "dense")["task-002"])
    assert "keys.0" in found
    assert "experts.0" not in found


def test_logits_keep_what_they_differ_by_however_large_they_are(
    stream: Stream, tmp_path: Path
) -> None:
    """Discriminants (slda) are all shifted by what is the same for every class."""

    class Far(Finetune):
        def classify(self, features: torch.Tensor) -> torch.Tensor:
            return super().classify(features) + 4e4

    kept = []
    for kind, name in ((Finetune, "near"), (Far, "far")):
        torch.manual_seed(0)
        train(tmp_path / name, stream, kind(tiny_backbone(depth=1), 4))
        kept.append(Snapshots(tmp_path / name).last)
    near, far = kept
    assert numpy.array_equal(far.logits.argmax(-1), far.predicted)
    assert numpy.allclose(far.probabilities, near.probabilities, atol=0.02)


def test_auto_records_a_small_run_as_seen_does(
    seen: Trainer, stream: Stream, tmp_path: Path
) -> None:
    assert tiny_settings().record == TrainerSettings().record == "auto"
    train(tmp_path / "run", stream, make(), record="seen")
    ours, theirs = read(folder(seen)), read(tmp_path / "run")
    assert ours.keys() == theirs.keys()
    for name, arrays in ours.items():
        assert same(arrays, theirs[name])
        assert all(arrays[key].dtype == theirs[name][key].dtype for key in arrays)


def test_auto_records_the_largest_logits_of_a_large_run_and_says_so(
    seen: Trainer, stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(read(folder(seen))[f"task-00{after}"]["logits"].nbytes for after in (1, 2))
    assert bytes_of_all_logits(stream) == size
    monkeypatch.setattr(top_logits, "MOST_BYTES", size)
    assert resolved("auto", stream) == "seen" and top_logits_line("auto", stream) is None
    monkeypatch.setattr(top_logits, "MOST_BYTES", size - 1)
    assert "trainer.record=seen" in (top_logits_line("auto", stream) or "")
    assert top_logits_line("seen", stream) is None
    train(tmp_path / "run", stream, make())
    last, all_logits = read(tmp_path / "run")["task-002"], read(folder(seen))["task-002"]
    shared = last.keys() & all_logits.keys()
    assert all_logits.keys() - shared == {"logits"}
    assert all(numpy.array_equal(last[key], all_logits[key]) for key in shared)
    with pytest.raises(UserError, match=r"after task 2 recorded the largest.*trainer\.record=seen"):
        _ = Snapshots(tmp_path / "run").last.logits


def test_what_top_records_of_an_image_does_not_grow_with_the_classes() -> None:
    sizes = []
    for classes in (20, 20_000):
        record = summarised(torch.randn(3, classes), torch.tensor([0, 1, 5]), (0, 1), 2)
        sizes.append(sum(value.numel() * value.element_size() for value in record.values()))
    assert sizes[0] == sizes[1]


def test_numbers_of_many_classes_are_not_cut(stream: Stream, tmp_path: Path) -> None:
    assert recording._as_array(torch.tensor([0, 65_535], dtype=torch.int32)).dtype == numpy.uint16
    many = recording._as_array(torch.tensor([0, 70_000], dtype=torch.int32))
    assert many.tolist() == [0, 70_000]


@pytest.mark.parametrize("domains", [False, True])
@pytest.mark.parametrize("top", [1, 10])
def test_every_analysis_is_the_same_with_the_largest_logits_alone(
    domains: bool, top: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(top_logits, "TOP", top)
    stream = tiny_stream(source=shades(tiny_source()) if domains else None)
    runs = []
    for record in ("seen", "top"):
        trainer = train(tmp_path / record, stream, make(), record=record, learning_rate=1e-5)
        about = {
            "class_names": list("abcd"),
            "accuracy_matrix": trainer.history.full_matrix(),
            "tasks": [{"classes": list(task.classes)} for task in stream.tasks],
            "status": "finished",
        }
        runs.append(Run(folder(trainer), about))
    ours, theirs = runs
    assert not ours.snapshots.last.correct.all()
    for analysis in (split_errors, calibration_scores, class_accuracies):
        assert_frame_equal(analysis(ours), analysis(theirs), atol=2e-3, rtol=2e-3)
    assert_frame_equal(class_confusion(ours), class_confusion(theirs))
    for mine, other in zip(worst_mistakes(ours), worst_mistakes(theirs), strict=True):
        assert mine.name == other.name and mine.jpeg == other.jpeg
        assert mine.probability == pytest.approx(other.probability, abs=2e-3)


class Broken(BaseException):
    """Stands for a process that is killed."""


@pytest.mark.parametrize("name", ["_save", "accuracy"])
def test_a_run_broken_off_and_resumed_leaves_the_same_files(
    name: str, seen: Trainer, stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the checkpoint of the second task, its file just written, and within its
    evaluation.
    """
    real = getattr(Trainer, name)

    def breaking(self: Trainer, *arguments: Any) -> Any:
        evaluated = name == "_save" and len(self.history.accuracy_matrix) == 2
        if evaluated or (name == "accuracy" and arguments == (1, 4)):
            raise Broken
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, name, breaking)
        with pytest.raises(Broken):
            train(tmp_path / "run", stream, make())
    directory = RunDirectory.open(tmp_path / "run")
    assert (directory.analysis / "task-002.safetensors").exists() == (name == "_save")
    (
        directory.analysis / ".task-002.safetensors.1.tmp"
    ).touch()  # half written by a process that was killed
    directory.remove_leftovers()
    trainer = Trainer(make(), stream, tiny_settings(), seed=0, device=CPU, directory=directory)
    checkpoint = last_checkpoint(directory, lambda _, error: pytest.fail(str(error)))
    assert checkpoint is not None
    trainer.resume(checkpoint)
    trainer.fit()
    ours, usual = read(tmp_path / "run"), read(folder(seen))
    assert ours.keys() == usual.keys()
    assert all(same(ours[name], usual[name]) for name in usual)


def test_a_task_whose_classes_were_all_forgotten_has_no_logits() -> None:
    stream = tiny_stream(num_tasks=2)
    first, second = stream.tasks
    emptied = replace(stream, tasks=[first, replace(second, classes=(), test=[])])
    images, classes = len(first.test), len(first.classes)
    assert bytes_of_all_logits(emptied) == 2 * 2 * images * classes
