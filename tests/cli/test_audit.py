"""`smope audit`: what it prints and stores, and what it says of runs that are no whole ones."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from smope.backbones.weights import EMBEDDED
from smope.cli.main import main
from smope.methods.base import TaskSpan
from smope.methods.ncm import NearestClassMean

pytestmark = pytest.mark.usefixtures("few_digits")

TINY = [
    "experiment=smoke",
    "backbone.image_size=8",
    "trainer.batch_size=32",
    "method=ncm",
    "trainer.device=cpu",
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copy(EMBEDDED, tmp_path_factory.mktemp("weights") / "vit.safetensors"))


@pytest.fixture(scope="module")
def finished(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("audit") / "run"
    statistics = [
        "backbone.pixel_statistics=given",
        "backbone.mean=[0.5,0.5,0.5]",
        "backbone.std=[0.5,0.5,0.5]",
    ]
    assert (
        main(["train", *TINY, f"backbone.weights={weights}", *statistics, f"run_dir={run_dir}"])
        == 0
    )
    return run_dir


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def audit(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, list[str]]]:
    """The exit code and the lines of `smope audit` on `run_dir`."""

    def call(*options: str) -> tuple[int, list[str]]:
        capsys.readouterr()
        code = main(["audit", str(run_dir), "--images", "8", *options])
        said = capsys.readouterr()
        return code, [*said.out.splitlines(), *said.err.splitlines()]

    return call


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    edit(record)
    path.write_text(json.dumps(record), encoding="utf-8")


def test_a_verdict_a_line_and_audit_json(run_dir: Path, audit: Any) -> None:
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    code, lines = audit()
    assert code == 0
    assert [line[:6] for line in lines[:11]] == ["ok    "] * 11
    assert lines[11:] == ["11 of 11 checks passed", f"stored in {run_dir / 'audit.json'}"]
    found = json.loads((run_dir / "audit.json").read_text(encoding="utf-8"))
    assert (found["passed"], found["strict"], found["tasks_done"], found["images_compared"]) == (
        True,
        False,
        2,
        8,
    )
    assert all(path.read_bytes() == content for path, content in before.items()), (
        "nothing else is written"
    )
    code, lines = audit("--json")
    assert json.loads("\n".join(lines[:-1]))["verdicts"] == found["verdicts"]


def test_a_tampered_record(run_dir: Path, audit: Any) -> None:
    change(run_dir / "run.json", lambda record: record.update(final_average_accuracy=0.99))
    code, lines = audit()
    assert code == 1
    assert next(line for line in lines if line.startswith("FAILED")).split()[1] == "scores"
    assert "10 of 11 checks passed" in lines
    assert json.loads((run_dir / "audit.json").read_text(encoding="utf-8"))["passed"] is False


def test_a_changed_weight_in_the_backbone_s_file(
    run_dir: Path, audit: Any, weights: Path, tmp_path: Path
) -> None:
    tensors = load_file(weights)
    tensors["norm.bias"][0] += 1e-3
    save_file(tensors, tmp_path / "other.safetensors")
    config = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    config["backbone"]["weights"] = str(tmp_path / "other.safetensors")
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    code, lines = audit()
    assert code == 1
    assert re.match(
        r"FAILED  state .* was trained on another backbone \(sha256 \w{12}, here \w{12}\)", lines[0]
    )
    assert lines[1] == "0 of 1 checks passed; the others need a state that fits"


def test_a_configuration_that_was_edited_afterwards(run_dir: Path, audit: Any) -> None:
    config = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    config["trainer"]["learning_rate"] = 0.123
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    code, lines = audit()
    assert code == 1
    assert "config.yaml and run.json differ in trainer.learning_rate" in lines[0]


def test_a_method_that_trains_the_frozen_backbone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Careless(NearestClassMean):
        def begin_task(self, task: TaskSpan) -> None:
            with torch.no_grad():
                self.backbone.vit.blocks[7].mlp.fc2.bias[3] += 0.5

    run_dir = tmp_path / "careless"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("smope.methods.ncm.NearestClassMean.begin_task", Careless.begin_task)
        assert main(["train", *TINY, f"run_dir={run_dir}"]) == 0
    told = "NearestClassMean has changed weights of the frozen backbone: do not use this run"
    assert told in capsys.readouterr().out
    assert main(["audit", str(run_dir), "--images", "8"]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAILED")]
    assert failed[0].startswith("FAILED  frozen weights")


def test_the_last_checkpoint_damaged(run_dir: Path, audit: Any) -> None:
    (run_dir / "checkpoints" / "002-00000000.safetensors").write_bytes(b"")
    code, lines = audit()
    assert code == 1
    assert "cannot be read" in lines[0]
    assert "run.json has results of 2 tasks, the last checkpoint that can be read of 1" in lines[0]


def test_an_interrupted_run_is_told_from_a_whole_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    end_task = NearestClassMean.end_task

    def stop_in_the_second(self: Any, task: TaskSpan, batches: Any) -> None:
        if task.index:
            raise KeyboardInterrupt
        end_task(self, task, batches)

    monkeypatch.setattr(NearestClassMean, "end_task", stop_in_the_second)
    assert main(["train", *TINY, f"run_dir={tmp_path / 'run'}"]) == 130
    capsys.readouterr()
    assert main(["audit", str(tmp_path / "run"), "--images", "8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("; 1 of 2 tasks are learned (run.json: interrupted)")
    assert [line.split()[0] for line in lines[:11]] == ["ok"] * 8 + ["-"] + ["ok"] * 2
    assert lines[8].split()[1:3] == ["frozen", "weights"]
    said = (
        "10 of 11 checks passed, 1 could not be made; of 2 tasks 1 are "
        "learned, and nothing is said of the others"
    )
    assert lines[11] == said
    found = json.loads((tmp_path / "run" / "audit.json").read_text(encoding="utf-8"))
    assert (found["passed"], found["tasks_done"], found["tasks"]) == (True, 1, 2)
    assert found["verdicts"][8]["passed"] is None
    assert main(["eval", str(tmp_path / "run")]) == 0
    said = f"1 of the 2 tasks are learned; continue with: smope train resume={tmp_path / 'run'}"
    assert said in capsys.readouterr().out


def test_no_checkpoint_is_left(run_dir: Path, audit: Any) -> None:
    shutil.rmtree(run_dir / "checkpoints")
    (run_dir / "checkpoints").mkdir()
    code, (line,) = audit()
    assert code == 2
    assert (
        "holds no finished task's checkpoint that can be read; continue with: smope train resume="
        in line
    )


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "run/run.json",
            r"is a file; smope audit looks at a run directory, .*, and at nothing else yet",
        ),
        ("nowhere", r"nowhere: no such directory; run directories are named runs/<name>/<time>"),
        ("run/checkpoints", r"holds no config\.yaml, so it is not a run directory"),
    ],
)
def test_what_is_no_run_directory(
    path: str, message: str, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", str(run_dir.parent / path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)


def test_a_directory_that_cannot_be_written(
    run_dir: Path, audit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("smope.cli.audit.write_atomically", refuse)
    code, lines = audit()
    assert code == 0
    assert lines[-1].endswith(
        "audit.json: cannot be written (Read-only file system); the verdicts stand"
    )
