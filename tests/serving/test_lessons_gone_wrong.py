"""What may be wrong with a model or with new images: one line each, and the model is untouched."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from smope.cli.main import main
from smope.errors import UserError
from smope.run.artefact import read_model, write_artefact
from smope.serving.growth import learning_record
from smope.serving.learning import Pupil
from smope.serving.versions import write_version
from tests.disks import disk, remount
from tests.test_properties import mutated

from .colours import Run, loaded, part


@pytest.fixture
def model(colour_run: Callable[..., Run], tmp_path: Path) -> Path:
    """A learnable model in a folder of its own."""
    file = loaded(colour_run("ncm").artefacts[1], tmp_path / "model").artefact.file
    assert file is not None
    return file.path


@pytest.fixture
def new(colours: Path, tmp_path: Path) -> Path:
    return part(colours, tmp_path / "new", "emerald", "fuchsia") / "train"


@pytest.fixture
def refused(model: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Words of a command -> the one line with which it ends; the model's folder is as before."""

    def answer(*words: Path | str, code: int = 2) -> str:
        before = contents(model.parent)
        capsys.readouterr()
        assert main([*map(str, words), "--device", "cpu"]) == code
        lines = capsys.readouterr().err.splitlines()
        assert contents(model.parent) == before
        assert len(lines) == 1, lines
        return lines[0].removeprefix("smope: error: ")

    return answer


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_folders_that_teach_nothing(
    model: Path, new: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    empty = tmp_path / "empty"
    (empty / "moss").mkdir(parents=True)
    assert "holds no image files" in refused("learn", model, empty)
    assert "no such folder" in refused("learn", model, tmp_path / "nowhere")
    assert "is a file" in refused("learn", model, model)
    assert "has folders train and test; give one of them" in refused("learn", model, new.parent)
    (new / "moss").mkdir()
    line = refused("learn", model, new)
    assert "folders without image files" in line
    assert "moss" in line
    (new / "moss" / "broken.png").write_bytes(b"no picture")
    line = refused("learn", model, new)
    assert "broken.png" in line
    assert "leave it out with --skip-broken" in line
    assert "no image of moss can be read" in refused("learn", model, new, "--skip-broken")


def test_classes_that_are_known_or_not(
    model: Path, new: Path, colours: Path, refused: Callable[..., str]
) -> None:
    line = refused("learn", model, colours / "train")
    assert "the model knows amber, blue, coral, dark already; write --more-images" in line
    line = refused("learn", model, new / "emerald", "--validate", colours / "test")
    assert "--validate=" in line
    assert "the model will not know fuchsia" in line


def test_files_that_are_no_model(
    model: Path, new: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "run"),)

    bad = tmp_path / "bad.safetensors"
    for content in (b"", b"\xff" * 100, pickle.dumps(Hostile()), model.read_bytes()[:-9]):
        bad.write_bytes(content)
        for words in (("learn", bad, new), ("forget", bad, "amber"), ("forget", bad, "--undo")):
            assert "give a run directory, or the model.safetensors of one" in refused(*words)
    assert not (tmp_path / "run").exists()


def test_a_model_that_only_classifies_says_how_to_get_another(
    model: Path, new: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    small = tmp_path / "small.safetensors"
    assert main(["pack", str(model), "--out", str(small)]) == 0
    assert small.stat().st_size < model.stat().st_size
    line = refused("learn", small, new)
    assert "smope pack RUN --learnable --out FILE" in line
    assert "trainer.keep=learnable" in line
    assert main(["forget", str(small), "amber", "--device", "cpu"]) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"tasks": []},
        {"tasks": [{"classes": [0, 1], "images": 20}, {"classes": [9], "images": 20}]},
        {"tasks": "abc"},
        {"trainer": {"_target_": "os.mkdir"}},
        {"trainer": {"_target_": "smope.training.settings.TrainerSettings", "epochs": -1}},
        {"trainer": {"_target_": "smope.training.settings.TrainerSettings", "moon": 1}},
        {"augmentation": {"crop_scale": "x", "flip": True}},
        {"augmentation": 3},
    ],
)
def test_a_record_of_learning_that_makes_no_sense(
    changes: dict[str, Any], model: Path, new: Path, refused: Callable[..., str]
) -> None:
    good = read_model(model)
    assert good.learning is not None
    bad = model.with_name("bad.safetensors")
    write_artefact(replace(good, learning={**good.learning, **changes}), bad)
    assert "model: its record of learning makes no sense (" in refused("learn", bad, new)


def test_what_only_the_training_machine_could_do_is_not_asked_of_another(model: Path) -> None:
    """A lesson may be on a device without a compiler, and with too little memory for images."""
    trained = read_model(model)
    assert trained.learning is not None
    settings = {**trained.learning["trainer"], "images_on_device": True, "compile": True}
    record = learning_record(
        replace(trained, learning={**trained.learning, "trainer": settings}), "cpu"
    )
    assert record.settings.images_on_device == "auto" and record.settings.compile is False


def test_mutated_models_are_refused_or_unharmed(model: Path, tmp_path: Path) -> None:
    """As test_properties does with checkpoints."""
    whole, draw, bad = model.read_bytes(), random.Random(0), tmp_path / "bad.safetensors"
    good, refusals = read_model(model), []
    for _ in range(300):
        bad.write_bytes(mutated(whole, draw))
        try:
            read = read_model(bad)
        except UserError as error:
            refusals.append(str(error))
            continue
        assert (read.learning, read.lineage) == (good.learning, good.lineage)
        assert read.file is not None
        assert read.file.sha256 == good.file.sha256  # type: ignore[union-attr]
    assert not any("\n" in text for text in refusals)
    assert len(refusals) > 200


COMMANDS = {
    "learn": ["--device", "cpu"],
    "forget": ["--device", "cpu"],
    "pack": [],
    "export": ["--format", "torch"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk(
    command: str, model: Path, new: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was there is there, and no half of a file."""
    last = {"learn": [str(new)], "forget": ["amber"]}.get(command, [])
    with disk(tmp_path / "small", "64k") as small:
        copy = Path(shutil.copy(model, small))
        out = small / ("out.pt2" if command == "export" else "out.safetensors")
        if command == "export":
            out.write_bytes(b"the one before")
        (small / "ballast").write_bytes(bytes(_room(small)))
        before = contents(small)
        capsys.readouterr()
        words = [command, str(copy), *last, "--out", str(out), *COMMANDS[command]]
        assert main(words) == 1
        [line] = capsys.readouterr().err.splitlines()
        assert f"{out}: cannot be written (No space left on device); make room" in line
        assert contents(small) == before


@pytest.mark.parametrize("command", ["learn", "forget", "serve", "pack"])
def test_a_folder_that_cannot_be_written_to(
    command: str, model: Path, new: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is refused before anything is learned, and no room is asked for."""
    last = {
        "learn": [str(new), "--device", "cpu"],
        "forget": ["amber", "--device", "cpu"],
        "serve": ["--learn", "--port", "0"],
        "pack": ["--learnable", "--out", str(tmp_path / "disk" / "out.safetensors")],
    }
    with disk(tmp_path / "disk", "1m") as folder:
        copy = Path(shutil.copy(model, folder))
        remount(folder, "ro")
        capsys.readouterr()
        assert main([command, str(copy), *last[command]]) == 2
        printed = capsys.readouterr()
        [line] = printed.err.splitlines()
        assert "folder cannot be written to; name " in line
        assert "images" not in printed.out
        remount(folder, "rw")


def test_a_file_that_cannot_be_written_asks_for_room_only_on_a_full_disk(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = {
        errno.ENOSPC: "; make room",
        errno.EROFS: "; use a folder that can be written to",
        errno.EACCES: "; use a folder that can be written to",
    }
    artefact = read_model(model)
    for number, way_out in words.items():

        def failing(*_: object, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("smope.run.artefact.write_new", failing)
        with pytest.raises(OSError, match=f"cannot be written .*{way_out}$"):
            write_artefact(artefact, tmp_path / "new.safetensors")


def _room(folder: Path) -> int:
    """Bytes that are free on a disk, but for its last page."""
    room = os.statvfs(folder)
    return (room.f_bavail - 1) * room.f_bsize


def test_two_processes_on_one_model(model: Path, new: Path, colours: Path, tmp_path: Path) -> None:
    """Each writes a file, none the other's, and the second says what it has nothing of."""
    (folders := tmp_path / "both").mkdir()
    for name in ("emerald", "fuchsia"):
        shutil.copytree(new / name, folders / name / name)
    before = model.read_bytes()
    words = [
        ["learn", str(model), str(folders / "emerald"), "--device", "cpu"],
        ["learn", str(model), str(folders / "fuchsia"), "--device", "cpu"],
        ["forget", str(model), "amber", "--device", "cpu"],
    ]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "smope", *each],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for each in words
    ]
    printed = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], printed
    assert [err for _, err in printed] == ["", "", ""]
    files = [model.with_name(f"model-v{number}.safetensors") for number in (2, 3, 4)]
    assert set(model.parent.iterdir()) == {model, *files}
    assert model.read_bytes() == before
    parent = read_model(model).file
    assert parent is not None
    known = {tuple(read_model(file).class_names) for file in files}
    four = ("amber", "blue", "coral", "dark")
    assert known == {(*four, "emerald"), (*four, "fuchsia"), four[1:]}
    for file in files:
        assert read_model(file).lineage[0]["parent"]["sha256"] == parent.sha256
    notes = {
        line
        for out, _ in printed
        for line in out.splitlines()
        if line.startswith("it was made of model.safetensors and has nothing of ")
    }
    assert notes == {
        f"it was made of model.safetensors and has nothing of {others}: to add to the latest, give "
        "that as MODEL"
        for others in ("model-v2.safetensors", "model-v2.safetensors, model-v3.safetensors")
    }


def test_several_at_a_time_write_a_file_each(model: Path) -> None:
    """And nothing that exists is overwritten."""
    before = model.read_bytes()
    artefact = read_model(model)
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(write_version, artefact, model, None) for _ in range(4)]
    paths = [future.result().file.path for future in futures]  # type: ignore[union-attr]
    assert sorted(path.name for path in paths) == [f"model-v{n}.safetensors" for n in (2, 3, 4, 5)]
    assert model.read_bytes() == before
    assert len(list(model.parent.iterdir())) == 5, "no temporary file is left"
    with pytest.raises(FileExistsError, match="exists, and nothing is overwritten"):
        write_version(artefact, model, model)


def test_out_is_a_new_file(
    model: Path, new: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    for command in ("learn", "forget"):
        last = new if command == "learn" else "amber"
        assert "exists, and nothing is overwritten" in refused(command, model, last, "--out", model)
        nowhere = tmp_path / "no" / "x.safetensors"
        assert "there is no folder" in refused(command, model, last, "--out", nowhere)


def test_an_interrupted_lesson_says_that_nothing_was_written(
    model: Path, new: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: Pupil) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(Pupil, "learn", interrupted)
    before = contents(model.parent)
    assert main(["learn", str(model), str(new), "--device", "cpu"]) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert contents(model.parent) == before


def test_a_dry_run_writes_nothing(
    model: Path, new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(model.parent)
    assert main(["learn", str(model), str(new), "--dry-run", "--device", "cpu"]) == 0
    assert contents(model.parent) == before
    text = capsys.readouterr().out
    assert "NearestClassMean, 4 classes in 2 tasks" in text
    assert "new: emerald (10), fuchsia (10)" in text


def test_what_a_run_keeps_and_what_is_packed_of_it(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run without trainer.keep=learnable has what learning needs in its last checkpoint."""
    out = tmp_path / "learnable.safetensors"
    copy = shutil.copytree(run_dir, tmp_path / "copied")
    assert main(["pack", str(copy), "--learnable", "--out", str(out)]) == 0
    assert "to classify alone it needs" in capsys.readouterr().out
    packed = read_model(out)
    assert packed.learning is not None
    assert read_model(copy).learning is None
    assert packed.state.keys() > read_model(copy).state.keys()


def test_a_model_in_memory_outlives_its_file(model: Path) -> None:
    artefact = read_model(model)
    before = {key: value.clone() for key, value in artefact.state.items()}
    os.truncate(model, 0)
    assert all(torch.equal(value, before[key]) for key, value in artefact.state.items())
