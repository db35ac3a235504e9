"""The file: what it refuses to be, and what it may call."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import smope
from smope.errors import UserError
from smope.run import artefact as module
from smope.run.artefact import read_model, to_bytes


@pytest.fixture
def file(run_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(run_dir / "model.safetensors", tmp_path / "model.safetensors"))


def content_hash(path: Path) -> str:
    with safe_open(path, framework="pt") as opened:
        return opened.metadata()["sha256"]


def test_it_says_what_it_is(run_dir: Path) -> None:
    found = read_model(run_dir)
    record = json.loads((run_dir / "run.json").read_text())
    assert (found.num_classes, found.total_tasks, found.tasks_done) == (4, 2, 2)
    assert (found.image_size, found.eval_crop, found.precision) == (16, 0.875, "float32")
    assert (found.seed, found.config_hash, found.smope_version) == (
        0,
        record["config_hash"],
        smope.__version__,
    )
    assert found.identity == record["backbone"]
    assert found.class_names == record["class_names"]
    assert (found.method, found.router) == (record["config"]["method"], record["config"]["router"])
    assert not found.has_backbone


def test_written_again_it_is_the_same(file: Path) -> None:
    before = content_hash(file)
    file.write_bytes(to_bytes(read_model(file)))
    assert content_hash(file) == before


@pytest.mark.parametrize("content", [b"", b"hello, this is text", b"\xff" * 200])
def test_files_of_another_kind(content: bytes, file: Path) -> None:
    file.write_bytes(content)
    with pytest.raises(
        UserError,
        match=r"model .*: cannot be read .*; give a run directory, or the model\.safetensors",
    ):
        read_model(file)


def test_other_safetensors_files(run_dir: Path, file: Path) -> None:
    save_file({"weight": torch.zeros(2)}, file)
    for path in (file, next((run_dir / "checkpoints").iterdir())):
        with pytest.raises(
            UserError,
            match=r"is no model of a run, but another safetensors file; give a run directory",
        ):
            read_model(path)


def test_a_changed_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    file.write_bytes(content)
    with pytest.raises(
        UserError, match="is damaged: its content does not match its sha256; give a run directory"
    ):
        read_model(file)


def test_a_damaged_one_in_a_run_directory(run_dir: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(run_dir, tmp_path / "run"))
    (again / "model.safetensors").write_bytes(b"half")
    with pytest.raises(
        UserError, match=r"cannot be read .*; remove it, and the run's last checkpoint serves"
    ):
        read_model(again)


def test_another_format(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = read_model(file)
    monkeypatch.setattr(module, "MODEL_FORMAT_VERSION", 2)
    file.write_bytes(to_bytes(found))
    monkeypatch.undo()
    with pytest.raises(
        UserError,
        match=r"has format version 2, this smope reads 1; use smope [0-9.]+\S*, which wrote it",
    ):
        read_model(file)


def test_a_record_that_makes_no_sense(file: Path) -> None:
    file.write_bytes(to_bytes(replace(read_model(file), tasks_done=-1, class_names="abc")))  # type: ignore[arg-type]
    with pytest.raises(
        UserError,
        match=r"is no model of a run: its record makes no sense \(tasks_done, class_names\)",
    ):
        read_model(file)


def test_a_run_that_has_finished_no_task(run_dir: Path, tmp_path: Path) -> None:
    young = tmp_path / "young"
    young.mkdir()
    shutil.copy(run_dir / "config.yaml", young)
    nothing = r"RUN=.*young: holds neither model\.safetensors nor a checkpoint of a finished task; "
    with pytest.raises(UserError, match=rf"{nothing}continue with: smope train resume=.*young"):
        read_model(young)
    shutil.copy(run_dir / "run.json", young)
    with pytest.raises(UserError, match=rf"{nothing}train it anew"):
        read_model(young)
    with pytest.raises(
        UserError,
        match=r"RUN=.*old: no such file or directory; give a run directory or its model.safe",
    ):
        read_model(tmp_path / "old")
    with pytest.raises(UserError, match=r"holds no config\.yaml, so it is not a run directory"):
        read_model(tmp_path)


def test_a_trial_of_a_search_has_none(run_dir: Path, tmp_path: Path) -> None:
    trial = Path(shutil.copytree(run_dir, tmp_path / "trial"))
    (trial / "model.safetensors").unlink()
    record = json.loads((trial / "run.json").read_text())
    (trial / "run.json").write_text(json.dumps({**record, "part": {"first_tasks": 2}}))
    with pytest.raises(
        UserError, match="is a trial of a search, which keeps no model; train with its settings"
    ):
        read_model(trial)


@pytest.mark.parametrize("group", ["backbone", "method", "router"])
def test_nothing_else_is_called_in_its_name(group: str, file: Path, tmp_path: Path) -> None:
    """A file may be anybody's: it names classes, and these are made only where they are what they
    should be.
    """
    found = read_model(file)
    bad = {
        "os.mkdir": (f"{tmp_path / 'made'}", "os.mkdir makes no"),
        "smope.streams.pixels.decode.decode": ("x", "decode makes no"),
        "not_there.Thing": ("x", "not_there.Thing is not here"),
    }
    for target, (path, message) in bad.items():
        file.write_bytes(to_bytes(replace(found, **{group: {"_target_": target, "path": path}})))
        with pytest.raises(UserError, match=message):
            smope.load(file)
    assert not (tmp_path / "made").exists()


def test_a_key_of_another_version(file: Path) -> None:
    found = read_model(file)
    file.write_bytes(to_bytes(replace(found, method={**found.method, "moon": 1})))
    with pytest.raises(
        UserError,
        match=r"smope\.methods\.smope\.SMoPE has no moon here; use the version of smope that",
    ):
        smope.load(file)
