"""Plans without images: sizes alone are enough, and what is counted is what a run does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file

from smope.cli.main import main
from smope.errors import UserError
from smope.methods._shared.ridge_sums import Sums
from smope.methods.ncm import NearestClassMean
from smope.methods.smope import SMoPE
from smope.metrics.cost import stored_bytes
from smope.planning.at_once import at_once_line
from smope.planning.estimate import Estimate
from smope.planning.lines import Plan
from smope.planning.paper_stream import PaperStream
from smope.routers.adaptive_noise import AdaptiveNoise
from smope.storage.run_directory import RunDirectory
from smope.training import disk
from smope.training.passes import Passes
from smope.training.trainer import Trainer
from smope.training.workload import Workload, alignment_gflops, count
from tests.tiny import tiny_backbone, tiny_settings, tiny_stream

CPU = torch.device("cpu")


def trainer_of(
    kind: str, paper: bool = False, path: Path | None = None, **changes: object
) -> Trainer:
    torch.manual_seed(0)
    method = NearestClassMean(tiny_backbone(), 4)
    if kind == "smope":
        method = SMoPE(tiny_backbone(), 4, AdaptiveNoise(top_k=3), num_experts=5)
    stream = PaperStream(4, 48, 2, 20).stream() if paper else tiny_stream()
    directory = RunDirectory.create(path, "seed: 0\n") if path else None
    return Trainer(
        method, stream, tiny_settings(**changes), seed=0, device=CPU, directory=directory
    )


@pytest.mark.parametrize("kind", ["smope", "ncm"])
def test_sizes_alone_are_counted_as_images_are(kind: str) -> None:
    assert count(trainer_of(kind, paper=True)) == count(trainer_of(kind))


@pytest.mark.parametrize("record", ["seen", "all", "top", "nothing"])
@pytest.mark.parametrize("kind", ["smope", "ncm"])
def test_the_disk_that_a_run_takes_is_what_was_counted(
    kind: str, record: str, tmp_path: Path
) -> None:
    counted = count(trainer_of(kind, record=record)).disk
    trainer = trainer_of(kind, path=tmp_path / "run", record=record, epochs=2)
    trainer.fit()
    names = ("images", "task-001", "task-002")
    files = [tmp_path / "run" / "analysis" / f"{name}.safetensors" for name in names]
    arrays = [load_file(file) for file in files if file.exists()]
    assert counted["analysis"] == sum(item.nbytes for file in arrays for item in file.values())
    last = max((tmp_path / "run" / "checkpoints").iterdir())
    head = last.stat().st_size - stored_bytes(trainer.method)
    assert 0 < head < 10_000, "names, history and sizes beside the state"
    assert counted["checkpoints"] == 3 * stored_bytes(trainer.method)


@pytest.mark.parametrize("images", [3, 5, 40])
def test_sums_of_a_ridge_classifier_grow_as_counted(images: int) -> None:
    sums = Sums(10, 4)
    empty = sum(value.numel() * value.element_size() for value in sums.buffers())
    for _ in range(images):
        sums.add(torch.randn(1, 10, dtype=torch.float64), torch.eye(4, dtype=torch.float64)[:1])
    full = sum(value.numel() * value.element_size() for value in sums.buffers())
    assert sums.bytes_after(images) == full - empty


def test_features_are_on_disk_beyond_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert disk.feature_bytes(trainer_of("ncm")) == 0
    monkeypatch.setattr(disk, "BYTES_IN_MEMORY", 1000)
    assert disk.feature_bytes(trainer_of("ncm")) == 20 * 32 * 4 - 1000
    assert disk.feature_bytes(trainer_of("smope")) == 0, "its features change"


def test_operations_of_the_alignment_by_hand() -> None:
    trainer = trainer_of("smope")
    settings = replace(
        trainer.settings,
        alignment_batches="all",
        alignment_epochs=3,
        alignment_samples_per_class=8,
    )
    by_hand = 3 * 4 * (3 * 2 * 8 * 32 * 4) / 1e9  # epochs, batches, and three products of a batch
    assert alignment_gflops(trainer.spans[1], settings, trainer.method) == pytest.approx(by_hand)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((4, 48, 0), r"--tasks must be at least 1"),
        ((1, 48, 2), r"--classes must be at least 2 \(one for each of --tasks\), got 1"),
        ((4, 3, 2), r"--images must be at least 4"),
        ((4, 48, 2, 1), r"--test-images must be at least 4"),
    ],
)
def test_sizes_that_cannot_be_are_named(sizes: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PaperStream(*sizes).check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--classes", "9"], "--classes describes a stream without images, which needs --images"),
        (["--test-images", "9"], "--test-images describes a stream"),
        (
            ["--classes", "9", "--images", "90", "--tasks", "3"],
            "has nothing to measure; add --hardware NAME",
        ),
    ],
)
def test_a_mistake_is_one_line(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_plan_on_paper_names_the_largest_part(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--classes", "1000", "--images", "1000000", "--tasks", "100"]
    assert main(["plan", *sizes, "method=ncm", "backbone=glyph_vit", "--hardware", "a100"]) == 0
    text = capsys.readouterr().out
    assert "NearestClassMean on paper: 1000 classes in 100 tasks" in text
    assert "evaluation: 50,000 images" in text
    assert "the largest part: passes after training" in text
    assert "disk: checkpoints and model" in text


def plan_of(memory: dict[str, int], free: float | None, resident: int | None = None) -> Plan:
    work = Workload(8, (), 0, 0, 0, 0, 0.0, memory, Passes(0.0))
    estimate = Estimate({"training": 1.0}, ())
    return Plan("run", ("as given",), 2, work, estimate, None, 0.0, resident, "card", free)


SMALL_RUN = {"weights": 10**9, "gradients": 0, "optimizer": 0, "activations": 2 * 10**9}
LARGE_RUN = {**SMALL_RUN, "activations": 4 * 10**9}


def test_runs_at_once_are_checked_by_the_largest() -> None:
    plans = [plan_of(SMALL_RUN, 12e9), plan_of(LARGE_RUN, 12e9)]  # 3.5 GB and 5.5 GB with libraries
    assert at_once_line(plans, 2).startswith("2 at once: 2 x 5.50 GB = 11.00 GB of 12.00 GB free")
    with pytest.raises(UserError, match=r"3 x 5\.50 GB = 16\.50 GB.*write --at-once 2"):
        at_once_line(plans, 3)
    assert at_once_line(plans[:1], 3).startswith("3 at once")
    with pytest.raises(UserError, match=r"one run needs 5\.50 GB, and card has 4\.00 GB free"):
        at_once_line([plan_of(LARGE_RUN, 4e9)], 1)
    with pytest.raises(UserError, match="memory of card is not known"):
        at_once_line([plan_of(SMALL_RUN, None)], 2)


def test_a_process_on_a_cpu_is_what_is_resident_and_a_step() -> None:
    assert plan_of(LARGE_RUN, 12e9, resident=3 * 10**9).run_memory == 7 * 10**9


@pytest.mark.parametrize(("runs", "code"), [("0", 2), ("100000", 2), ("2", 0)])
def test_the_command_refuses_more_than_fit(
    runs: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--classes", "10", "--images", "1000", "--tasks", "2", "--hardware", "t4"]
    assert main(["plan", *sizes, "method=ncm", "backbone=glyph_vit", "--at-once", runs]) == code
    output = capsys.readouterr()
    assert ("2 at once" in output.out) if code == 0 else ("--at-once" in output.err)
