"""The command line: exit codes, one-line errors, what is imported, and how a run is handed over."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import smope
from smope.cli import train
from smope.cli.main import COMMANDS, main
from smope.config.conf_files import ALL_GROUPS
from smope.config.config import Config
from smope.config.hydra import compose
from smope.config.identity import GROUPS
from smope.config.overrides import read_overrides
from smope.errors import UserError

HEAVY = ("torch", "timm", "avalanche", "torchvision", "wandb", "sklearn", "numpy")
Handed = list[tuple[Config, Path, dict[str, bool]]]


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Handed:
    """An empty current folder, and what reaches the trainer instead of a trainer."""
    calls: Handed = []

    def hand_over(
        config: Config, run_dir: Path, _given: Any = (), **options: bool
    ) -> dict[str, Any]:
        calls.append((config, run_dir, options))
        if config.seed == 13:
            raise UserError("seed=13 brings bad luck; take another")
        return {"final_average_accuracy": 0.5}

    monkeypatch.chdir(tmp_path)

    def run_apart(config: Config, run_dir: Path, *, log: Path, resume: bool, **_: Any) -> int:
        try:
            record = hand_over(config, run_dir, resume=resume)
        except UserError as error:
            log.parent.mkdir(parents=True)
            log.write_text(f"Traceback\n\nsmope: error: {error}\n")
            return 2
        run_dir.mkdir(parents=True)
        (run_dir / "run.json").write_text(json.dumps({"status": "finished", **record}))
        return 0

    monkeypatch.setattr(train, "_train", hand_over)
    monkeypatch.setattr("smope.sweeps.job_runner.run_apart", run_apart)
    return calls


def saved_run(path: Path, *overrides: str) -> Path:
    """A run directory with the configuration of these overrides."""
    from smope.config.hydra import compose
    from smope.config.overrides import read_overrides

    path.mkdir(parents=True)
    (path / "config.yaml").write_text(
        compose(read_overrides(overrides)).to_yaml(), encoding="utf-8"
    )
    return path


def test_train_writes_the_report_when_asked(
    handed: Handed, monkeypatch: pytest.MonkeyPatch
) -> None:
    from smope.cli import report

    asked: list[list[str]] = []
    monkeypatch.setattr(report, "run", lambda arguments: asked.append(arguments) or 0)
    assert main(["train", "--report", "run_dir=here"]) == 0
    assert main(["train", "--report", "--dry-run", "run_dir=there"]) == 0
    assert main(["train", "run_dir=elsewhere"]) == 0
    assert asked == [["here"]]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)
    assert "examples:" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out.lower()
    assert f"usage: smope {command}" in text
    assert "example" in text


def test_train_help_lists_groups_choices_and_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    conf = Path(smope.__file__).parent.parent / "conf"
    for path in (path for group in ALL_GROUPS for path in (conf / group).glob("[!_]*.yaml")):
        assert re.search(rf"{path.parent.name}=\w+ +choices:[^:]*\b{path.stem}\b", text), path
    for key in ("num_experts: 25", "epsilon: 0.4", "seed: 0", "run_dir: null"):
        assert key in text
    assert "defaults:" not in text
    defaults = compose(read_overrides([])).as_dict()
    for key in (key for group in GROUPS for key in defaults[group] if key != "_target_"):
        assert re.search(rf"^    {key}: .+", text, re.MULTILINE), key
    for section in re.findall(r"^  \w+=\w+ .*(?:\n .*)*", text, flags=re.MULTILINE):
        keys = re.findall(r"^    (\w+):", section, flags=re.MULTILINE)
        assert len(keys) == len(set(keys)), "each key once"
    assert re.search(r"crop_scale: \[0\.6, 1\.0\]", text), (
        "that of the choice, not what its group shares"
    )


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"smope {smope.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], r"unknown command 'trian'; did you mean `smope train`\?"),
        (
            ["frobnicate"],
            rf"unknown command 'frobnicate'; choose one of {', '.join(COMMANDS)}$",
        ),
        (["seed=1"], r"overrides follow a command: `smope train seed=1`"),
        (["train", "--dryrun"], r"unrecognized arguments: --dryrun; did you mean --dry-run\?"),
        (["train", "router.topk=1"], r"did you mean router\.top_k\?"),
        (["train", "-m", "run_dir=x", "seed=1,2"], r"run_dir belongs to a single run"),
        (
            ["train", "-m", "--report", "seed=1,2"],
            r"--report belongs to a single run; with -m, afterwards",
        ),
        (
            ["train", "-m", "router.topk=1,2"],
            r"unknown key router\.topk=1; did you mean router\.top_k\?",
        ),
        (["train", "resume=nowhere"], r"resume=nowhere: no such directory"),
        (
            ["train", "-m", "hydra/launcher=jolib", "seed=1,2"],
            r"hydra/launcher=jolib is no choice; did you mean joblib\?",
        ),
        (["train", "sweep=ablation_small"], r"sweep=ablation_small is many runs; add -m"),
        (
            ["train", "-m", "sweep=ablation_smal"],
            r"sweep=ablation_smal is no choice; .*did you mean sweep=ablation_small\?",
        ),
        (
            ["train", "-m", "sweep=ablation", "variant=full", "seed=0"],
            r"stream\.root has no value yet; write stream\.root=<folder of images>",
        ),
    ],
)
def test_a_mistake_exits_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], handed: Handed
) -> None:
    assert main(arguments) == 2
    line = error_line(capsys)
    assert line.startswith("smope: error: ")
    assert re.search(message, line)
    assert not handed
    assert not os.listdir()


def test_a_launcher_that_is_not_installed_names_its_extra(
    handed: Handed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("smope.config.launchers._is_installed", lambda _: False)
    assert main(["train", "-m", "hydra/launcher=submitit_slurm", "seed=1,2"]) == 2
    assert error_line(capsys).endswith(
        "=submitit_slurm needs hydra-submitit-launcher, which is not installed; pip install "
        "'smope[slurm]'"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["train", "--help"],
        ["train", "router.topk=3"],
        ["train", "router.top_k=ten"],
        ["train", "router.top_k=30"],
        ["train", "-m", "router.top_k=30,40"],
        ["train", "stream=folder", "stream.root=/nowhere", "stream.num_tasks=2"],
        ["train", "resume=/nowhere"],
        ["nonsense"],
    ],
)
def test_quick_answers_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    code, modules, _ = answered(arguments, tmp_path)
    assert code == (0 if {"--help", "--version"} & set(arguments) else 2)
    assert not set(HEAVY) & modules
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "trainer.device=mps"],
            "trainer.device=mps: this machine has no such device; use trainer.device=auto or cpu",
        ),
        (["train", "stream.num_tasks=3"], "does not divide the 10 classes evenly"),
        (["train", "stream.num_tasks=11"], "must be in 1..10, the number of classes, got 11"),
        (["train", "stream=glyphs", "stream.classes_per_task=[50,49]"], "must add up to 100"),
        (["train", "stream.class_order=[0,1,2]"], "each of the 10 classes exactly once"),
        (["train", "--dry-run", "stream.num_tasks=3"], "use one of 1, 2, 5, 10"),
        (["train", "-m", "stream.num_tasks=3,4"], "use one of 1, 2, 5, 10"),
        (["train", "trainer.device=mps", "stream.num_tasks=3"], "; and stream.num_tasks=3"),
    ],
)
@pytest.mark.skipif(sys.platform == "darwin", reason="Apple's machines have the device mps")
def test_mistakes_that_need_no_data_import_no_torch(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    code, modules, error = answered(arguments, tmp_path)
    assert code == 2
    assert message in error
    assert not (set(HEAVY) - {"numpy"}) & modules
    assert not os.listdir(tmp_path)


def answered(arguments: list[str], folder: Path) -> tuple[int, set[str], str]:
    """The exit code of a command, the modules that it imported, and what it wrote to stderr."""
    program = (
        "import json, sys\nfrom smope.cli.main import COMMANDS, main\n"
        "code = main(json.loads(sys.argv[1]))\n"
        "print(json.dumps([code, sorted(sys.modules)]), file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(smope.__file__).parent.parent)}
    command = [sys.executable, "-c", program, json.dumps(arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=environment, check=True
    )
    error, _, last = done.stderr.rstrip().rpartition("\n")
    code, modules = json.loads(last)
    return code, set(modules), error


def test_a_run_goes_to_its_name_and_time(handed: Handed) -> None:
    assert main(["train", "name=first try", "seed=3"]) == 0
    (config, run_dir, options) = handed[0]
    assert re.fullmatch(r"runs/first try/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", str(run_dir))
    assert config.seed == 3
    assert not options.get("resume")
    assert not os.listdir(), "the trainer makes the directory, and Hydra makes none"


def test_run_dir_is_taken_as_written(handed: Handed, tmp_path: Path) -> None:
    assert main(["train", "run_dir=a=b, [c]"]) == 0
    assert handed[0][1] == Path("a=b, [c]")


def test_two_runs_within_a_second_go_apart(handed: Handed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smope.run.plan.time.strftime", lambda _: "now")
    Path("runs/digits/now").mkdir(parents=True)
    assert main(["train"]) == 0
    assert handed[0][1] == Path("runs/digits/now_2")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_run_dir_in_use_is_refused(
    kind: str, handed: Handed, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "file":
        Path("used").touch()
    else:
        Path("used/inside").mkdir(parents=True)
    assert main(["train", "run_dir=used"]) == 2
    assert "run_dir=used" in error_line(capsys)
    assert not handed


def test_dry_run_is_handed_over_as_such(handed: Handed) -> None:
    assert main(["train", "--dry-run", "seed=1"]) == 0
    assert handed[0][2]["dry_run"] is True


def test_resume_takes_the_saved_configuration(handed: Handed) -> None:
    run = saved_run(Path("old"), "seed=4", "router=topk", "experiment=smoke")
    assert main(["train", "resume=old"]) == 0
    (config, run_dir, options) = handed[0]
    assert (config.seed, config.router, config.resume) == (4, {**config.router, "top_k": 5}, None)
    assert config.router["_target_"].endswith("TopK")
    assert (run_dir, options["resume"]) == (run, True)


def test_a_resumed_run_may_find_its_data_elsewhere(handed: Handed) -> None:
    for name in ("before", "after"):
        Path(name).mkdir()
    saved_run(
        Path("old"),
        "stream=folder",
        "stream.root=before",
        "stream.num_tasks=2",
        "backbone=glyph_vit",
    )
    Path("before").rmdir()
    assert main(["train", "resume=old", "stream.root=after", "trainer.num_workers=2"]) == 0
    config = handed[0][0]
    assert Path(config.stream["root"]) == Path("after").absolute()
    assert config.trainer["num_workers"] == 2


def test_resume_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(
        "smope.run.train.train", lambda *args, **options: calls.append((args, options))
    )
    run = saved_run(tmp_path / "old", "seed=4")
    smope.train(f"resume={run}")
    [((config, run_dir), options)] = calls
    assert (config.seed, run_dir, options) == (4, run, {"resume": True})


@pytest.mark.parametrize(
    "repeated", [["seed=4"], ["router=topk"], ["experiment=smoke", "seed=4"], ["run_dir=old"]]
)
def test_resume_may_repeat_overrides(repeated: list[str], handed: Handed) -> None:
    saved_run(Path("old"), "seed=4", "router=topk", "experiment=smoke")
    assert main(["train", "resume=old", *repeated]) == 0
    assert len(handed) == 1


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        (["seed=5"], "seed=5"),
        (["trainer.epochs=9", "seed=4"], "trainer.epochs=9"),
        (["method=ncm"], "method._target_=smope.methods.ncm.NearestClassMean"),
        (["router=adaptive_noise"], "router._target_=smope.routers.adaptive_noise.AdaptiveNoise"),
    ],
)
def test_resume_refuses_other_overrides(
    changed: list[str], names: str, handed: Handed, capsys: pytest.CaptureFixture[str]
) -> None:
    saved_run(Path("old"), "seed=4", "router=topk")
    assert main(["train", "resume=old", *changed]) == 2
    line = error_line(capsys)
    assert names in line
    assert "leave the override out" in line
    assert not handed


def test_multirun_runs_every_combination(handed: Handed) -> None:
    assert main(["train", "-m", "seed=1,2", "method=smope,ncm", "name=sweep"]) == 0
    assert [
        (config.seed, config.method["_target_"].rpartition(".")[2]) for config, _, _ in handed
    ] == [
        (1, "SMoPE"),
        (1, "NearestClassMean"),
        (2, "SMoPE"),
        (2, "NearestClassMean"),
    ]
    assert [run_dir for _, run_dir, _ in handed] == [
        Path("runs/sweep") / f"seed{c.seed}-{method}-{c.config_hash}"
        for (c, _, _), method in zip(handed, ["smope", "ncm"] * 2, strict=True)
    ]
    assert os.listdir() == ["runs"]


def test_a_failed_job_does_not_stop_the_others(
    handed: Handed, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "-m", "seed=12,13,14"]) == 1
    assert [config.seed for config, _, _ in handed] == [12, 13, 14]
    told = capsys.readouterr()
    assert (
        "smope: error: job seed=13: seed=13 brings bad luck; take another; log: "
        "runs/digits/logs/seed13-" in told.err
    )
    assert "Traceback" not in told.err
    assert "sweep: 2 of 3 jobs finished" in told.out
    assert "failed: seed=13: seed=13 brings bad luck; take another; log: " in told.out
    assert "the table: smope collect runs/digits" in told.out


def test_a_job_that_breaks_a_rule_fails_alone(
    handed: Handed, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "-m", "router.top_k=30,3"]) == 1
    assert [config.router["top_k"] for config, _, _ in handed] == [3]
    assert "router.top_k must be in 1..method.num_experts=25, got 30" in capsys.readouterr().err


def test_multirun_sweeps_paths_and_shows_dry_runs(handed: Handed, tmp_path: Path) -> None:
    for name in ("a=1", "b c"):
        (tmp_path / name).mkdir()
    arguments = [
        "train",
        "-m",
        "stream=folder",
        "stream.num_tasks=2",
        "stream.root=a=1,b c",
        "--dry-run",
    ]
    assert main(arguments) == 0
    assert [config.stream["root"] for config, _, _ in handed] == [
        str(tmp_path / "a=1"),
        str(tmp_path / "b c"),
    ]
    assert all(options["dry_run"] for _, _, options in handed)
    assert sorted(os.listdir()) == ["a=1", "b c"]


def test_ctrl_c_is_one_line_and_130(
    handed: Handed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "_train", interrupted)
    monkeypatch.setattr("smope.sweeps.job_runner.run_apart", interrupted)
    assert main(["train"]) == 130
    assert error_line(capsys) == "smope: interrupted"
    assert main(["train", "-m", "seed=1,2"]) == 130


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_sweep_lets_its_run_save_and_begins_no_other(
    number: int,
    code: int,
    handed: Handed,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    begun: list[Path] = []

    def run_apart(
        config: Config, run_dir: Path, *, stop_requested: Callable[[], bool], **_: Any
    ) -> int:
        begun.append(run_dir)
        assert not stop_requested()
        signal.raise_signal(number)
        assert stop_requested()
        return 143

    monkeypatch.setattr("smope.sweeps.job_runner.run_apart", run_apart)
    # ignored in the background of a script
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(["train", "-m", "seed=1,2,3"]) == code
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    told = capfd.readouterr()
    assert len(begun) == 1
    assert "stopping: runs save a checkpoint first; a second signal stops at once" in told.err
    assert told.out.rstrip().endswith(
        "the same command continues from here: smope train -m seed=1,2,3"
    )
    assert not list(Path("runs/digits").glob(".stop*"))


def test_a_file_that_cannot_be_written_is_one_line(
    handed: Handed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "runs/x")

    monkeypatch.setattr(train, "_train", full)
    assert main(["train"]) == 1
    assert "No space left on device" in error_line(capsys)


def test_a_missing_dependency_points_to_doctor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "hydra.core.override_parser.overrides_parser", None)
    assert main(["train", "seed=1"]) == 1
    assert "`smope doctor` shows what is missing" in error_line(capsys)


def test_the_traceback_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOPE_FULL_ERROR", "1")
    with pytest.raises(UserError, match="unknown command"):
        main(["nonsense"])


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m smope train --help | head -n 1"
    environment = {**os.environ, "PYTHONPATH": str(Path(smope.__file__).parent.parent)}
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, env=environment, check=True
    )
    assert done.stderr == ""
    assert done.stdout.startswith("usage: smope train")
