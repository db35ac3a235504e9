"""Trackers, read back from what the real libraries wrote."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from smope.report import figures
from smope.report.live_pictures import live_pictures
from smope.trackers.base import Guarded, Tracker
from smope.trackers.csv import CsvTracker
from smope.trackers.tensorboard import TensorBoardTracker
from smope.trackers.wandb import WandbTracker, _has_key, sync_command
from tests.analysis.made_runs import expert_snapshots, write_run

CONFIG = {
    "seed": 3,
    "name": "made",
    "method": {"_target_": "smope.methods.smope.SMoPE"},
    "run_dir": "x",
}
SCORES = {"final_average_accuracy": 0.75, "forgetting": 0.5, "none": None}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run directory with a checkpoint and what evaluation recorded."""
    path = write_run(tmp_path / "run", snapshots=expert_snapshots())
    (path / "checkpoints").mkdir()
    (path / "checkpoints" / "002-00000000.safetensors").write_bytes(b"state")
    return path


def track(tracker: Tracker, run_dir: Path, first: int = 0, status: str = "finished") -> None:
    """Two tasks of one epoch each, or only the second."""
    tracker.draw = live_pictures
    tracker.start(CONFIG, run_dir, "made", 10 * first)
    for task in range(first, 2):
        rows = [{"loss": 0.5 - 0.1 * task, "learning_rate": 1e-3 * step} for step in range(1, 11)]
        tracker.log_steps(rows, first=10 * task + 1)
        tracker.log(
            {"task": task, "phase": "sparse", "loss": 0.5 - 0.1 * task, "learning_rate": 1e-3},
            10 * (task + 1),
        )
        tracker.log_experts({"effective": 5.5}, 10 * (task + 1))
        tracker.end_task([[1.0], [0.5, 1.0]][: task + 1], SCORES, 10 * (task + 1))
    tracker.finish(SCORES, status)


def records(folder: Path) -> Iterator[Any]:
    """The records of an offline run's transaction log: blocks of 32 KiB, records in one or several
    pieces.
    """
    (path,) = folder.glob("*.wandb")
    data, offset, whole = finished(path), 7, b""
    while offset + 7 <= len(data):
        left = 32768 - offset % 32768
        if left < 7:
            offset += left
            continue
        length, kind = int.from_bytes(data[offset + 4 : offset + 6], "little"), data[offset + 6]
        whole += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def finished(path: Path) -> bytes:
    """The log's content, once another process has stopped writing it."""
    size = -1
    for _ in range(100):
        if path.stat().st_size == size > 7:
            break
        size = path.stat().st_size
        time.sleep(0.3)
    return path.read_bytes()


def history(found: list[Any]) -> dict[int, dict[str, Any]]:
    """What was logged, by step."""
    rows: dict[int, dict[str, Any]] = {}
    for record in found:
        if record.WhichOneof("record_type") == "history":
            values = {
                "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                for item in record.history.item
            }
            rows.setdefault(int(values["_step"]), {}).update(values)
    return rows


def offline_runs(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "wandb").glob("offline-run-*"))


def test_wandb_offline(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(run_dir / "no_netrc"))
    track(WandbTracker(), run_dir)
    (folder,) = offline_runs(run_dir)
    found = list(records(folder))
    (run,) = [record.run for record in found if record.WhichOneof("record_type") == "run"]
    assert run.run_id == json.loads((run_dir / "wandb.json").read_text(encoding="utf-8"))["id"]
    assert (run.project, run.job_type, run.display_name) == ("smope", "smope", "made, seed 3")
    assert run.run_group.startswith("smope-made-")
    config = {
        item.key: json.loads(item.value_json) for item in run.config.update if item.key != "_wandb"
    }
    assert config == CONFIG
    rows = history(found)
    assert rows[10]["train/loss"] == rows[10]["step/loss"] == 0.5
    assert [rows[step]["step/loss"] for step in (9, 11)] == [0.5, 0.4]
    assert [rows[step]["step/learning_rate"] for step in (1, 12)] == [1e-3, 2e-3]
    assert sorted(rows) == list(range(1, 21))
    assert rows[20]["train/learning_rate"] == 1e-3
    assert rows[20]["accuracy/task_1"] == 0.5
    assert rows[20]["average_accuracy"] == rows[20]["scores/final_average_accuracy"] == 0.75
    assert rows[20]["experts/effective"] == 5.5
    assert rows[20]["accuracy_matrix/_type"] == "table-file"
    assert rows[20]["accuracy_matrix_map/_type"] == rows[20]["expert_load/_type"] == "image-file"
    table = json.loads(
        (folder / "files" / rows[20]["accuracy_matrix/path"]).read_text(encoding="utf-8")
    )
    assert table["columns"] == ["after task", "task 1", "task 2"]
    assert table["data"] == [[1, 1.0, None], [2, 0.5, 1.0]]
    assert (folder / "files" / rows[20]["expert_load/path"]).stat().st_size > 1000
    artefacts = [
        record.artifact for record in found if record.WhichOneof("record_type") == "artifact"
    ]
    (state,) = [artefact for artefact in artefacts if artefact.type == "model"]
    held = {entry.path for entry in state.manifest.contents}
    assert held == {"002-00000000.safetensors", "run.json", "config.yaml"}


@pytest.mark.parametrize(("status", "code"), [("finished", 0), ("failed", 1), ("interrupted", 1)])
def test_wandb_hears_how_a_run_ended(status: str, code: int, run_dir: Path) -> None:
    track(WandbTracker(mode="offline", upload=False), run_dir, status=status)
    (folder,) = offline_runs(run_dir)
    ends = [
        record.exit.exit_code
        for record in records(folder)
        if record.WhichOneof("record_type") == "exit"
    ]
    assert ends == [code]


def test_load_is_labelled_with_the_backbone_s_blocks(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the report does: from 0, and those that were chosen where some were."""
    seen: list[list[int]] = []
    draw = figures.load_map

    def note(name: str, title: str, load: Any, blocks: Any, *, text: str) -> Any:
        seen.append(list(blocks))
        return draw(name, title, load, blocks, text=text)

    monkeypatch.setattr(figures, "load_map", note)
    for blocks in (None, [3]):
        config = {**CONFIG, "method": {"_target_": "smope.methods.smope.SMoPE", "blocks": blocks}}
        tracker = TensorBoardTracker()
        tracker.draw = live_pictures
        tracker.start(config, run_dir, "made")
        tracker.end_task([[1.0], [0.5, 1.0]], SCORES, 1)
        tracker.finish(SCORES, "finished")
    assert seen == [[0], [3]]


@pytest.mark.parametrize(
    ("server", "entry", "found"),
    [
        (None, "api.wandb.ai", True),
        ("https://tracking.example.org:8080", "tracking.example.org", True),
        ("https://tracking.example.org", "api.wandb.ai", False),
        (None, "wandb.example.org", False),
    ],
)
def test_a_key_is_that_of_the_server(
    server: str | None, entry: str, found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text(
        f"machine {entry}\n  login user\n  password {'0' * 40}\n", encoding="utf-8"
    )
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    if server:
        monkeypatch.setenv("WANDB_BASE_URL", server)
    assert _has_key() is found


def test_a_resumed_run_goes_on_in_the_same_wandb_run(run_dir: Path) -> None:
    for first in (0, 1):
        track(
            WandbTracker(mode="offline", upload=False, group="sweep", job_type="try"),
            run_dir,
            first,
        )
    runs = [record.run for folder in offline_runs(run_dir) for record in records(folder)
            if record.WhichOneof("record_type") == "run"]  # fmt: skip
    assert {(run.run_id, run.run_group, run.job_type) for run in runs} == {
        (runs[0].run_id, "sweep", "try")
    }


def test_where_an_offline_run_is_and_how_it_is_sent(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After a resume both parts in their order, but not one that was sent already."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(run_dir / "no_netrc"))
    path = Path(shutil.move(run_dir, tmp_path / "it's a run"))
    lines: list[str] = []
    for first in (0, 1):
        tracker = WandbTracker(upload=False)
        tracker.report = lines.append
        track(tracker, path, first)
        if first == 0:
            (earlier,) = offline_runs(path)
            assert lines == [
                "W&B is offline (there is no API key: run `wandb login` for the next run); its "
                f"files are in {path / 'wandb'}",
                f"send this run to W&B with: {shlex.join(['wandb', 'sync', str(earlier)])}",
            ]
            earlier = earlier.rename(earlier.with_name("offline-run-20260101_000000-a"))
    (later,) = [part for part in offline_runs(path) if part != earlier]
    words = shlex.split(lines[-1].partition(": ")[2])
    assert words == ["wandb", "sync", str(earlier), "&&", "wandb", "sync", str(later)]
    (earlier / "run-a.wandb.synced").touch()
    assert shlex.split(sync_command(path)) == ["wandb", "sync", str(later)]


def test_wandb_disabled_writes_nothing(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker, lines = WandbTracker(), list[str]()
    tracker.report = lines.append
    track(tracker, run_dir)
    assert offline_runs(run_dir) == []
    assert lines == ["W&B is disabled (WANDB_MODE=disabled); nothing is logged"]


def test_tensorboard_says_how_it_is_opened(run_dir: Path) -> None:
    tracker, lines = TensorBoardTracker(), list[str]()
    tracker.report = lines.append
    track(tracker, run_dir)
    assert lines == [shlex.join(["tensorboard", "--logdir", str(run_dir / "tensorboard")])]


def test_online_without_a_key_is_refused_without_asking(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(run_dir / "no_netrc"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    said: list[str] = []
    track(Guarded(WandbTracker(mode="online"), said.append), run_dir)
    assert said == [
        "no tracking: WandbTracker did not start (no API key: run `wandb login`, or take "
        "tracker.mode=offline); "
        "training continues"
    ]


def test_a_tracker_that_fails_is_told_once_and_left_alone() -> None:
    class Failing(Tracker):
        calls = 0

        def log(self, values: Any, step: int) -> None:
            self.calls += 1
            raise OSError("no route")

    failing, said = Failing(), list[str]()
    guarded = Guarded(failing, said.append)
    guarded.log({}, 1)
    guarded.log({}, 2)
    assert failing.calls == 1
    assert said == ["no tracking: Failing failed in log (no route); training continues"]


def test_tensorboard(run_dir: Path) -> None:
    track(TensorBoardTracker(), run_dir)
    track(TensorBoardTracker(), run_dir, first=1)
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    assert [(event.step, round(event.value, 3)) for event in events.Scalars("train/loss")] == [
        (10, 0.5),
        (20, 0.4),
    ]
    assert [event.step for event in events.Scalars("step/loss")] == list(range(1, 21))
    assert [event.value for event in events.Scalars("accuracy/task_1")] == [1.0, 0.5]
    assert [event.value for event in events.Scalars("experts/effective")] == [5.5, 5.5]
    assert set(events.Tags()["images"]) == {"accuracy_matrix_map", "expert_load"}


def test_csv(run_dir: Path) -> None:
    track(CsvTracker(), run_dir)
    with (run_dir / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["average_accuracy"] for row in rows] == ["1.0", "0.75"]
    assert (rows[0]["task_2"], rows[1]["task_1"]) == ("", "0.5")
