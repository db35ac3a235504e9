"""Plans: what is counted is what a run does, each source of seconds by hand, and the command."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from smope.cli.main import main
from smope.errors import UserError
from smope.methods.base import Method
from smope.methods.ease import EASE
from smope.methods.finetune import Finetune
from smope.methods.hide import HiDePrompt
from smope.methods.inflora import InfLoRA
from smope.methods.ncm import NearestClassMean
from smope.methods.ovor import OVOR
from smope.methods.rsiat import RSIAT
from smope.methods.smope import SMoPE
from smope.methods.tuna import TUNA
from smope.metrics.cost import count_flops, count_phases
from smope.planning import measuring
from smope.planning.estimate import from_measured, from_peak, from_run
from smope.planning.hardware import HARDWARE, choose, peak
from smope.planning.lines import duration
from smope.planning.measuring import Measured, StepTiming, measure
from smope.routers.adaptive_noise import AdaptiveNoise
from smope.training.passes import Passes
from smope.training.trainer import Trainer
from smope.training.workload import PhaseWork, Workload, count
from tests.tiny import PassedImages, tiny_backbone, tiny_settings, tiny_stream

pytestmark = pytest.mark.usefixtures("few_digits")

CPU = torch.device("cpu")
SMALL = [
    "experiment=smoke",
    "backbone.image_size=8",
    "method=finetune",
    "trainer.batch_size=32",
    "trainer.device=cpu",
]
METHODS: dict[str, Any] = {
    "smope": lambda: SMoPE(tiny_backbone(), 4, AdaptiveNoise(top_k=3), num_experts=5),
    "finetune": lambda: Finetune(tiny_backbone(), 4),
    "ncm": lambda: NearestClassMean(tiny_backbone(), 4),
    "inflora": lambda: InfLoRA(tiny_backbone(), 4, 2, blocks=[0]),
    "hide": lambda: HiDePrompt(tiny_backbone(), 4, 2, length=2),
    "ovor": lambda: OVOR(tiny_backbone(), 4, g_length=2, e_length=2),
}


def trainer_of(name: str, **changes: Any) -> Trainer:
    torch.manual_seed(0)
    method: Method = METHODS[name]()
    return Trainer(method, tiny_stream(), tiny_settings(**changes), seed=0, device=CPU)


@pytest.mark.parametrize(
    ("make", "evaluated", "own"),
    [
        # passes of an image after each of four tasks: TUNA's with the universal adapter
        (lambda: TUNA(tiny_backbone(), 4, 4), (1, 3, 4, 5), (0, 0, 0, 0)),
        (lambda: EASE(tiny_backbone(), 4, 4), (1, 2, 3, 4), (1, 2, 3, 4)),
        (lambda: RSIAT(tiny_backbone(), 4), (1, 1, 1, 1), (1, 2, 2, 2)),
    ],
)
def test_passes_cost_what_they_do_after_their_task(
    make: Callable[[], Method], evaluated: tuple[int, ...], own: tuple[int, ...]
) -> None:
    trainer = Trainer(make(), tiny_stream(num_tasks=4), tiny_settings(), seed=0, device=CPU)
    work, passed = count(trainer), PassedImages(trainer.method)
    tested, learned = list[int](), list[int]()
    trainer.accuracy = passed.during(trainer.accuracy, tested)
    trainer.method.end_task = passed.during(trainer.method.end_task, learned)
    trainer.fit()
    assert learned == [12 * number for number in own]
    assert work.passes.own * evaluated[-1] == pytest.approx(sum(learned), rel=0.01)
    seen = [5 * task * number for task, number in enumerate(evaluated, 1)]
    assert sum(tested) == sum(seen)
    assert work.passes.evaluated * evaluated[-1] == pytest.approx(sum(seen), rel=0.01)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("record", ["seen", "all"])
def test_a_run_does_what_was_counted(name: str, record: str) -> None:
    work, trainer = count(trainer_of(name, record=record)), trainer_of(name, record=record)
    history = trainer.fit()
    assert (work.steps, work.steps * work.batch) == (history.steps, history.images_trained)
    assert work.evaluated == history.images_evaluated
    assert work.train_images == sum(len(task.train) for task in trainer.stream.tasks)


def test_alignment_steps_are_those_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    from smope.training import alignment

    trainer, calls = trainer_of("hide"), []
    original = alignment.alignment_cosine
    monkeypatch.setattr(
        alignment, "alignment_cosine", lambda *a, **k: calls.append(a) or original(*a, **k)
    )
    work = count(trainer)
    trainer.fit()
    # two classifiers, three epochs, two old classes
    assert work.alignment_steps == len(calls) == 2 * 3 * 2


def test_counting_leaves_the_run_as_it_was() -> None:
    counted, fresh = trainer_of("smope"), trainer_of("smope")
    count(counted)
    for trainer in (counted, fresh):
        trainer.fit()
    assert counted.history.accuracy_matrix == fresh.history.accuracy_matrix
    pairs = zip(
        counted.method.state_dict().values(), fresh.method.state_dict().values(), strict=True
    )
    assert all(torch.equal(one, other) for one, other in pairs)


def test_phases_that_train_less_cost_less() -> None:
    """HiDe's identity phase and OVOR's second have no backward pass through the backbone."""
    for name, cheap, dear in (("hide", "identity", "prompts"), ("ovor", "outliers", "train")):
        trainer = trainer_of(name)
        work = {
            phase.name: phase.gflops
            for phase in count(trainer).phases
            if phase.tasks == "first task"
        }
        infer = count_flops(METHODS["finetune"](), trainer.spans[0])["infer_gflops"]["torch"]
        assert infer < work[cheap] < 1.2 * infer
        assert work[dear] > 1.6 * infer


def test_the_last_phase_is_what_count_flops_tells() -> None:
    for name in ("smope", "hide", "ovor"):
        trainer = trainer_of(name)
        span = trainer.spans[0]
        phases = [phase for phase, _ in trainer.steps_of_phases(span)]
        found = count_phases(trainer.method, span, phases)
        # the flops of one epoch in all, as count_flops begins its phases
        last = trainer.method.phases(span, 1)[-1]
        assert (
            count_phases(trainer.method, span, [last])[0]
            == count_flops(trainer.method, span)["train_gflops"]
        )
        assert len(found) == len(phases)


def test_activations_grow_with_the_batch_as_counted() -> None:
    """Told from two and three images, and what a step of the whole batch keeps."""
    from smope.training.workload import _saved_by_step

    for name in ("smope", "finetune"):
        trainer = trainer_of(name)
        phases = [phase for phase, _ in trainer.steps_of_phases(trainer.spans[0])]
        whole = max(
            _saved_by_step(trainer, trainer.spans[0], phase, trainer.settings.batch_size)
            for phase in phases
        )
        assert count(trainer).memory["activations"] == pytest.approx(whole, rel=0.02)


def test_memory_of_weights_gradients_and_optimizer_by_hand() -> None:
    trainer = trainer_of("finetune")
    memory, classifier = count(trainer).memory, 4 * (32 * 4 + 4)
    assert (memory["gradients"], memory["optimizer"]) == (classifier, 2 * classifier)
    weights = sum(4 * parameter.numel() for parameter in trainer.method.parameters())
    assert weights <= memory["weights"] < 1.2 * weights


WORK = Workload(
    batch=10,
    phases=(PhaseWork("first task", "a", 4, 2.0), PhaseWork("later tasks", "a", 8, 3.0)),
    train_images=100,
    statistics=2,
    evaluated=50,
    alignment_steps=6,
    infer_gflops=1.0,
    memory={"weights": 1, "gradients": 1, "optimizer": 2, "activations": 10},
    passes=Passes(evaluated=40.0, recorded=160.0, own=120.0, gflops=0.5),
)


def test_seconds_from_a_measurement_by_hand() -> None:
    steps = (
        StepTiming("first task", "a", 0.5, 0.4, 0.6, 3),
        StepTiming("later tasks", "a", 0.25, 0.2, 0.3, 3),
    )
    found = Measured("cpu", 1, steps, 0.01, 0.02, 0.5, 0.7, 0.1, ("odd",))
    estimate = from_measured(WORK, found, tasks=3)
    assert estimate.seconds == pytest.approx(
        {
            "training": 4 * 0.5 + 8 * 0.25,
            "passes after training": 120 * 0.01 + 0.5 + 2 * 0.7,
            "statistics and alignment": 160 * 0.01 + 6 * 0.1,
            "evaluation": 40 * 0.02,
        }
    )
    assert "odd" in estimate.assumptions


def test_seconds_from_a_peak_by_hand() -> None:
    estimate = from_peak(WORK, 2e10, 0.5, "card")  # 10 GFLOP/s
    assert estimate.seconds == pytest.approx(
        {
            "training": (4 * 10 * 2 + 8 * 10 * 3) / 10,
            "passes after training": 6.0,
            "statistics and alignment": 8.0,
            "evaluation": 4.0,
        }
    )
    assert "NOTHING WAS MEASURED" in estimate.assumptions[0]


def record(**changes: Any) -> dict[str, Any]:
    cost = {
        "images_per_second": {"train": 20.0, "infer": 100.0},
        "gflops_per_image": {"train_gflops": {"torch": 2.0}, "infer_gflops": {"torch": 0.5}},
        "seconds": {"train": 5.0, "align": 8.0, "eval": 1.0},
    }
    return {
        "status": "finished",
        "cost": cost,
        "tasks": [{"train": 200}, {"train": 200}],
        "device": "cpu",
        **changes,
    }


def test_seconds_from_a_run_by_hand() -> None:
    estimate = from_run(WORK, record(), "RUN")
    assert estimate.seconds == pytest.approx(
        {
            "training": (4 + 8) * 10 * 2.0 / (2.0 * 20.0),
            "statistics and alignment": 8.0 / 400 * 100 * 2,
            "evaluation": 50 / 100 * 2,
        }
    )
    with pytest.raises(
        UserError, match=r"--from RUN: is not finished or tells no cost; name a finished run"
    ):
        from_run(WORK, record(cost={}), "RUN")
    idle = record()
    idle["cost"]["images_per_second"]["train"] = None
    with pytest.raises(
        UserError, match=r"--from RUN: that run took no training steps, and this one does"
    ):
        from_run(WORK, idle, "RUN")
    assert from_run(replace(WORK, phases=()), idle, "RUN").seconds["training"] == 0


@pytest.mark.parametrize("name", METHODS)
def test_every_kind_of_method_can_be_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "MEASURING_SECONDS", 0.01)
    trainer = trainer_of(name)
    work = count(trainer)
    found = measure(trainer, work)
    assert {(timed.tasks, timed.name) for timed in found.phases} == {
        (one.tasks, one.name) for one in work.phases
    }
    assert all(0 < timed.low <= timed.seconds <= timed.high for timed in found.phases)
    assert min(found.pass_seconds, found.eval_seconds) > 0 and not found.assumed
    assert (found.alignment_step is not None) == bool(trainer.method.aligned())
    assert from_measured(work, found, 2).total > 0


def test_a_step_that_takes_too_long_is_measured_on_fewer_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measuring, "MEASURING_SECONDS", 0.01)
    monkeypatch.setattr(measuring, "LONGEST_STEP_SECONDS", 1e-6)
    trainer = trainer_of("finetune")
    found = measure(trainer, count(trainer))
    assert found.assumed == (
        "steps of 2 images were measured instead of 8 (memory or time), and scaled",
    )


def test_the_table_of_hardware() -> None:
    assert peak("h100", "bfloat16") == 989e12 and peak("t4", "float32") == 8.1e12
    for name, item in HARDWARE.items():
        assert item.source and item.teraflops["float32"] <= min(
            item.teraflops.get("bfloat16", 1e9), 1e9
        ), name
    with pytest.raises(UserError, match=r"--hardware h10: not in the table; did you mean h100\?"):
        choose("h10")
    with pytest.raises(
        UserError,
        match=r"--hardware t4: states no peak for trainer\.precision=bfloat16; it has float32",
    ):
        peak("t4", "bfloat16")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "0.5 s"), (61.4, "61.4 s"), (150, "2.5 min"), (7200, "2.0 h"), (90000, "25.0 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--hardware", "h10"], r"--hardware h10: not in the table; did you mean h100\?"),
        (["--hardware", "v100", "trainer.precision=bfloat16"], r"--hardware v100: states no peak "
                                                               r"for trainer"),
        (["--hardware", "t4", "--from", "x"], r"--from and --hardware are two sources of one rate"),
        (["--utilisation", "0.5"], r"--utilisation belongs to --hardware"),
        (["--hardware", "t4", "--utilisation", "1.5"], r"--utilisation must be above 0 and at "
                                                       r"most 1, got 1\.5"),
        (["--price", "-1"], r"--price must be a finite number, 0 or more, got -1"),
        (["--from", "nowhere"], r"--from=nowhere: no such directory"),
        (["trainer.epoch=3"], r"unknown key trainer\.epoch=3; did you mean trainer\.epochs\?"),
        (
            ["seed=0,1", "method=smope,cda"],
            r"method=cda is no choice; .*did you mean method=coda\?",
        ),
        (["--hardwre", "t4"], r"unrecognized arguments: --hardwre.*did you mean --hardware\?"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(
    arguments: list[str], message: str, mistake: Callable[..., str]
) -> None:
    line = mistake("plan", *arguments)
    assert re.search(message, line), line


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--list"]) == 0
    assert re.search(
        r"^a100 +19\.5 +312 +312 +9\.7 +80 GB +NVIDIA A100 datasheet", capsys.readouterr().out, re.M
    )


def test_a_sweep_is_planned_by_kind_and_priced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two numbers of epochs by two seeds are two plans of two runs each."""
    monkeypatch.chdir(tmp_path)
    arguments = [
        *SMALL,
        "seed=0,1",
        "trainer.epochs=1,2",
        "--hardware",
        "t4",
        "--utilisation",
        "0.1",
        "--price",
        "3",
    ]
    assert main(["plan", *arguments]) == 0
    screen = capsys.readouterr().out
    assert screen.count("COUNTED (exact)") == 2 and "MEASURED" not in screen.replace(
        "NOTHING WAS MEASURED", ""
    )
    assert "2 runs like this: seed=0 trainer.epochs=1, seed=1 trainer.epochs=1" in screen
    assert re.search(r"^4 runs one after the other: .* \(estimated\)$", screen, re.M)
    assert re.search(r"^cost: .* h at 3 an hour = \d+\.\d\d, the price being yours$", screen, re.M)
    assert "a share of 0.1 is assumed" in screen
    assert not os.listdir()


@pytest.mark.parametrize(("setting", "size"), [("auto", 450 * 32 * 32 * 3), ("false", 0)])
def test_images_on_the_device_are_part_of_a_plan(
    setting: str, size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counted for hardware that is elsewhere; this machine has no such device."""
    key = f"trainer.images_on_device={setting}"
    assert main(["plan", *SMALL, key, "--hardware", "t4", "--json"]) == 0
    [plan] = json.loads(capsys.readouterr().out)
    assert plan["image_bytes_on_device"] == size


def test_a_sweep_of_conf_is_planned_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from smope.planning import lines, make_plan

    planned: list[list[str]] = []
    monkeypatch.setattr(make_plan, "make_plan", lambda config, labels, *_: planned.append(labels))
    monkeypatch.setattr(lines, "lines", lambda plan: [])
    monkeypatch.setattr(lines, "total", lambda plans, price: [])
    assert (
        main(["plan", "sweep=ablation_small", "variant=ablation_1_dense,full", "--hardware", "t4"])
        == 0
    )
    assert sorted(map(len, planned)) == [2, 2], "two variants by the sweep's two seeds"
    assert "seed=1 variant=full" in {label for labels in planned for label in labels}


def test_from_a_finished_run_it_tells_that_runs_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same configuration again: training and evaluation come out as they were."""
    monkeypatch.chdir(tmp_path)
    assert main(["train", *SMALL, "run_dir=done"]) == 0
    capsys.readouterr()
    assert main(["plan", *SMALL, "--from", "done", "--json"]) == 0
    [plan] = json.loads(capsys.readouterr().out)
    seconds = json.loads(Path("done/run.json").read_text())["seconds"]
    assert plan["estimated_seconds"]["training"] == pytest.approx(seconds["train"], rel=0.05)
    assert plan["estimated_seconds"]["evaluation"] == pytest.approx(seconds["eval"], rel=0.01)
    assert plan["estimated_seconds"]["statistics and alignment"] == pytest.approx(
        seconds["align"], rel=0.01
    )


def test_measured_here_the_screen_says_what_is_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measuring, "MEASURING_SECONDS", 0.05)
    assert main(["plan", *SMALL]) == 0
    screen = capsys.readouterr().out
    heads = ["COUNTED (exact)", "MEASURED HERE (cpu, 1 threads)", "ESTIMATED", "ASSUMED"]
    assert [line for line in screen.splitlines() if line.split(" (")[0].isupper()] == heads
    assert "nothing was trained or written" in screen
    assert not os.listdir()
