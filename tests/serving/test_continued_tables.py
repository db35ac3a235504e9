"""Tables of `smope predict` are written as it goes, and continued after an interruption."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from smope.cli import predict_table
from smope.cli.main import main
from smope.cli.predict_table import Finished, Table, TableFile
from smope.serving.predict import Classifier
from smope.serving.prediction import Guess, Prediction
from smope.storage.files import write_atomically
from tests.disks import disk, remount

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def command(run_dir: Path, pictures: Path, tmp_path: Path) -> Callable[..., int]:
    """Words -> the exit code of classifying the pictures into a table with two classes each."""

    def run(*words: Path | str, table: str = "t.csv", model: Path = run_dir) -> int:
        into = ["--csv", str(tmp_path / table)]
        return main(["predict", str(model), str(pictures), "--top", "2", *into, *map(str, words)])

    return run


@pytest.fixture(scope="module")
def whole(
    run_dir: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, str]]:
    """The rows of a table that nothing happened to."""
    path = tmp_path_factory.mktemp("whole") / "t.csv"
    assert main(["predict", str(run_dir), str(pictures), "--top", "2", "--csv", str(path)]) == 0
    return rows(path)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def equal(first: list[dict[str, str]], second: list[dict[str, str]]) -> bool:
    """Batches differ after an interruption, and with them the last digit."""

    def split(row: dict[str, Any]) -> tuple[list[str], list[float]]:
        numbers = [float(value) for key, value in row.items() if key.startswith("probability")]
        return [value for key, value in row.items() if not key.startswith("prob")], numbers

    return len(first) == len(second) and all(
        split(one)[0] == split(other)[0]
        and split(one)[1] == pytest.approx(split(other)[1], abs=2e-6)
        for one, other in zip(first, second, strict=True)
    )


@pytest.fixture
def stopped(
    command: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[[str], None]:
    """(table) -> it is half written: 7 of 20 rows. The command says how it is continued."""

    def stop(table: str) -> None:
        plain, count = Table.row, 0

        def row(self: Table, prediction: Prediction) -> list[str]:
            nonlocal count
            count += 1
            if count > 7:
                raise KeyboardInterrupt
            return plain(self, prediction)

        with monkeypatch.context() as patch:
            patch.setattr(Table, "row", row)
            assert command(table=table) == 130
        assert "is kept as far as it came; --resume continues it" in capsys.readouterr().err

    return stop


@pytest.mark.parametrize("lost", [0, 1, 2, 40, 10_000])
def test_a_half_written_table_is_continued(
    lost: int,
    command: Callable[..., int],
    stopped: Callable[[str], None],
    whole: list[dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    """Whatever part of a line a killed process left; what is there is not computed again."""
    path = tmp_path / "t.csv"
    stopped("t.csv")
    assert rows(path) == whole[:7]
    content = path.read_bytes()
    path.write_bytes(content[: max(0, len(content) - lost)])
    present = max(path.read_bytes().count(b"\r\n") - 1, 0)
    prepare, decoded = Classifier._prepare, []
    monkeypatch.setattr(
        Classifier, "_prepare", lambda self, image: decoded.append(image) or prepare(self, image)
    )
    capsys.readouterr()
    assert command("--resume") == 0
    assert len(decoded) == 20 - present
    assert equal(rows(path), whole)
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 20 - present
    assert printed.err == (f"{path}: {present} images are there already\n" if present else "")
    assert command("--resume") == 0
    assert equal(rows(path), whole)
    assert len(decoded) == 20 - present, "a table that is whole lacks nothing"


@pytest.mark.parametrize("ending", [".parquet", ".pq"])
def test_a_parquet_file_is_continued(
    ending: str,
    stopped: Callable[[str], None],
    whole: list[dict[str, str]],
    run_dir: Path,
    pictures: Path,
    tmp_path: Path,
) -> None:
    path, part = tmp_path / f"t{ending}", tmp_path / f"t{ending}.part"
    into = ["--csv" if ending == ".parquet" else "--parquet", str(path)]
    words = ["predict", str(run_dir), str(pictures), "--top", "2", *into]
    if ending == ".parquet":
        stopped(path.name)
        assert not path.exists()
        part.write_bytes(part.read_bytes()[:-5])
    assert main([*words, "--resume"]) == 0
    assert not part.exists()
    table = parquet.read_table(path)
    assert [str(kind) for kind in table.schema.types] == [
        "string", "string", "double", "string", "double"
    ]  # fmt: skip
    found = [
        {key: value if isinstance(value, str) else f"{value:.6f}" for key, value in row.items()}
        for row in table.to_pylist()
    ]
    assert equal(found, whole)
    for image in ("new.png", "newer.png"):
        shutil.copy(pictures / "blue" / "0.png", tmp_path / image)
    assert main([*words, str(tmp_path / "new.png"), "--resume"]) == 0
    assert parquet.read_table(path).num_rows == 21
    assert main([*words, "--resume", "--unknown"]) == 2
    assert not part.exists()
    path.write_bytes(b"PAR1 no more")
    assert main([*words, "--resume"]) == 2


def test_what_continues_no_table_is_refused(
    command: Callable[..., int],
    stopped: Callable[[str], None],
    tmp_path: Path,
    capsys: Capture,
    pictures: Path,
    run_dir: Path,
) -> None:
    path, note = tmp_path / "t.csv", tmp_path / "t.csv.json"
    stopped("t.csv")
    before = path.read_bytes(), note.read_bytes()

    def answer(*words: str, **keys: Any) -> str:
        capsys.readouterr()
        assert command(*words, **keys) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert path.read_bytes() == before[0]
        return line.removeprefix("smope: error: ")

    assert answer() == f"--csv={path}: is half written; continue it with --resume, or delete {path}"
    text = answer("--resume", "--top", "3")
    assert text == (
        f"--resume: {path} was made with --top 2, which is now 3; give what it was made with, or "
        "name another file"
    )
    assert "was made with --min-probability none, which is now 0.5" in answer(
        "--resume", "--min-probability", "0.5"
    )
    assert "was made with --unknown none, which is now set" in answer("--resume", "--unknown")
    other = tmp_path / "other.safetensors"
    assert main(["forget", str(run_dir), "blue", "--out", str(other)]) == 0
    text = answer("--resume", model=other)
    assert "was made with the model of sha256 " in text and "which is now " in text
    assert note.read_bytes() == before[1]
    note.unlink()
    assert "t.csv.json, which says what made" in answer("--resume")
    note.write_text('{"mine": 1}')
    assert "t.csv.json is where a note about the table goes, and something else" in answer()
    note.write_bytes(before[1])
    path.write_bytes(before[0] + b"a row,of\r\nanother,table\r\n")
    before = path.read_bytes(), before[1]
    assert f"row 9 of {path} is none of this table, whose columns are path, class" in answer(
        "--resume"
    )
    path.unlink()
    assert command() == 0
    assert command() == 0, "a table that is whole is written anew"
    assert json.loads(note.read_bytes())["complete"] is True


def test_any_name_is_continued(
    run_dir: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Names with quotes, line breaks and bytes that are no text."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in (b'a"b.png', b"c\nd.png", b"e\r\nf.png", b"g,h.png", b"\xff.png"):
        shutil.copy(pictures / "blue" / "0.png", os.fsdecode(os.fsencode(folder) + b"/" + name))
    words = ["predict", str(run_dir), str(folder), "--resume"]
    for table in ("--csv", "--parquet"):
        path = tmp_path / f"t{table}"
        assert main([*words, table, str(path)]) == 0
        content = path.read_bytes()
        capsys.readouterr()
        assert main([*words, table, str(path)]) == 0
        if table == "--csv":
            assert path.read_bytes() == content
            assert "5 images are there already" in capsys.readouterr().err
        else:
            assert "\\xff.png" in parquet.read_table(path)["path"][-1].as_py()


def test_a_disk_that_fills_up(
    run_dir: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    """What it has room for is there, and continued once there is more."""
    images = shutil.copytree(pictures, tmp_path / ("long name" * 20))
    words = ["predict", str(run_dir), str(images), "--csv"]
    assert main([*words, str(tmp_path / "whole.csv")]) == 0
    with disk(tmp_path / "small", "12k") as small:
        (small / "ballast").write_bytes(bytes(4096))
        capsys.readouterr()
        assert main([*words, str(small / "t.csv")]) == 1
        [line] = capsys.readouterr().err.splitlines()
        assert "t.csv: cannot be written (No space left on device); make room or name" in line
        assert (small / "t.csv").stat().st_size == 4096
        remount(small, "size=24k")
        assert main([*words, str(small / "t.csv"), "--resume"]) == 0
        assert equal(rows(small / "t.csv"), rows(tmp_path / "whole.csv"))
        assert {path.name for path in small.iterdir()} == {"ballast", "t.csv", "t.csv.json"}


def test_no_room_for_a_row(
    command: Callable[..., int],
    whole: list[dict[str, str]],
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write, count = TableFile._write, 0

    def full(self: TableFile, cells: list[str]) -> None:
        nonlocal count
        count += 1
        if count == 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, cells)

    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(TableFile, "_write", full)
        assert command() == 1
    printed = capsys.readouterr()
    assert "t.csv: cannot be written (No space left on device); make room" in printed.err
    assert len(printed.out.splitlines()) == 8, "what could not be written is printed all the same"
    assert rows(tmp_path / "t.csv") == whole[:7]


def test_two_processes_on_one_table(
    command: Callable[..., int], tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "t.csv"
    program = (
        "import sys; from pathlib import Path; from smope.storage.files import lock_file\n"
        "file = lock_file(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    arguments = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        capsys.readouterr()
        assert command() == 2
        [line] = capsys.readouterr().err.splitlines()
        assert "t.csv: another process writes it; wait until it has ended, or name another" in line
        holder.kill()
    assert command() == 0


def test_an_image_from_a_pipe_has_no_path(
    run_dir: Path, pictures: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (pictures / "blue" / "0.png").read_bytes()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    words = ["predict", str(run_dir), "-", "--resume", "--csv", str(tmp_path / "t.csv")]
    capsys.readouterr()
    assert main(words) == 2
    assert "--resume: an image from a pipe has no path; name its file" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_rows_of_another_model_are_never_continued(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process is killed when it begins to replace a whole table by that of another model."""
    path = tmp_path / f"t.{suffix}"

    def table_of(model: str) -> TableFile:
        made_by = {"the model of sha256": model}
        return TableFile(path, "--csv=t", Table(1, with_unknown=False), suffix != "csv", made_by)

    with table_of("first").opened(False, Finished()) as file:
        file.add(Prediction(Path("a.png"), (Guess("blue", 0.9),), 0.0))

    def killed(*arguments: Any) -> None:
        write_atomically(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(predict_table, "write_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            table_of("second").opened(False, Finished()).__enter__()
    finished = Finished()
    with table_of("second").opened(True, finished):
        assert "a.png" not in finished
