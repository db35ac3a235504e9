"""`smope predict`: what it prints, what it writes, and how it answers mistakes."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from smope.cli.main import main
from smope.serving import predict

Capture = pytest.CaptureFixture[str]


def right(path: str, name: str) -> bool:
    return Path(path).parent.name == name


def test_a_line_an_image(run_dir: Path, pictures: Path, capsys: Capture) -> None:
    capsys.readouterr()
    assert main(["predict", str(run_dir), str(pictures)]) == 0
    told = capsys.readouterr()
    rows = [
        re.fullmatch(r"(.+\.png) +(\w.*\w)  +(\d+\.\d\d) %", line) for line in told.out.splitlines()
    ]
    assert all(rows)
    found = [row.groups() for row in rows if row]
    assert [path for path, _, _ in found] == [str(path) for path in sorted(pictures.rglob("*.png"))]
    assert sum(right(path, name) for path, name, _ in found) > len(found) / 2, (
        "four classes: chance is a quarter"
    )
    assert told.err == ""


def test_files_and_folders_in_their_order(
    run_dir: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    """A file is taken whatever its name; of a folder what looks like an image and is not hidden,
    below as well.
    """
    image = pictures / "blue" / "0.png"
    for name in (
        "deep/er/b.PNG",
        "deep/c.png",
        "a.png",
        ".hidden.png",
        ".folder/d.png",
        "notes.txt",
    ):
        place = tmp_path / "inbox" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, place)
    plain = shutil.copy(image, tmp_path / "no suffix")
    capsys.readouterr()
    assert (
        main(
            ["predict", str(run_dir), str(plain), "--top", "1", str(tmp_path / "inbox"), str(image)]
        )
        == 0
    )
    shown = [line.partition("  ")[0] for line in capsys.readouterr().out.splitlines()]
    inbox = tmp_path / "inbox"
    assert shown == [
        str(plain),
        *(f"{inbox}/{name}" for name in ("a.png", "deep/c.png", "deep/er/b.PNG")),
        str(image),
    ]


def test_the_table(run_dir: Path, pictures: Path, tmp_path: Path) -> None:
    table = tmp_path / "classes.csv"
    assert main(["predict", str(run_dir), str(pictures), "--top", "2", "--csv", str(table)]) == 0
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [str(path) for path in sorted(pictures.rglob("*.png"))]
    assert list(rows[0]) == ["path", "class", "probability", "class_2", "probability_2"]
    assert all(1 >= float(row["probability"]) >= float(row["probability_2"]) > 0 for row in rows)
    assert {row["class"] for row in rows} <= {"red fish", "green", "blue", "yellow"}
    assert all(row["class"] != row["class_2"] for row in rows)


def test_the_document(run_dir: Path, pictures: Path, capsys: Capture) -> None:
    capsys.readouterr()
    assert (
        main(["predict", str(run_dir / "model.safetensors"), str(pictures), "--json", "--top", "4"])
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    record = json.loads((run_dir / "run.json").read_text())
    assert (found["classes"], found["tasks_done"]) == (record["class_names"], 2)
    assert (found["config_hash"], found["broken"]) == (record["config_hash"], [])
    for image in found["images"]:
        assert image["top"][0] == {"class": image["class"], "probability": image["probability"]}
        assert sum(guess["probability"] for guess in image["top"]) == pytest.approx(1)


def piped(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Let standard input hold these bytes."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_a_folder_of_runs_is_its_latest(run_dir: Path, pictures: Path, capsys: Capture) -> None:
    capsys.readouterr()
    assert main(["predict", str(run_dir.parent), str(pictures)]) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 20
    assert printed.err == (
        f"RUN={run_dir.parent}: {run_dir}, the only finished run below {run_dir.parent}/\n"
    )


def test_paths_come_through_a_pipe(
    run_dir: Path, pictures: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted((pictures / "blue").iterdir())[:2]
    one_a_line = f"{files[0]}\n\n{pictures / 'green'}\r\n".encode()
    for content, number in ((one_a_line, 6), ("\0".join(map(str, files)).encode() + b"\0", 2)):
        piped(monkeypatch, content)
        capsys.readouterr()
        assert main(["predict", str(run_dir), "-"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert (len(lines), lines[0].partition("  ")[0]) == (number, str(files[0]))


def test_an_image_comes_through_a_pipe(
    run_dir: Path, pictures: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = pictures / "blue" / "0.png"
    piped(monkeypatch, file.read_bytes())
    capsys.readouterr()
    assert main(["predict", str(run_dir), "-", str(file)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.split()[0] == "-" and first.split()[1:] == second.split()[1:]
    piped(monkeypatch, file.read_bytes()[:-100])
    assert main(["predict", str(run_dir), "-"]) in (0, 1), "Pillow may or may not mind"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "IMAGE=-: standard input is empty; pipe an image, or paths of images one a line"),
        (b" \n", "IMAGE=-: standard input is empty"),
        (b"\x89PN\0\xff\0", "IMAGE=-: standard input holds neither an image of a known format nor"),
        (b"nowhere.png\n", "IMAGE=nowhere.png: no such file or folder"),
    ],
)
def test_what_else_comes_through_a_pipe_is_a_mistake(
    content: bytes, message: str, mistake: Any, monkeypatch: pytest.MonkeyPatch, run_dir: Path
) -> None:
    piped(monkeypatch, content)
    assert message in mistake("predict", str(run_dir), "-")


def test_the_table_is_printed(run_dir: Path, pictures: Path, tmp_path: Path, capsys: Any) -> None:
    table = tmp_path / "table.csv"
    words = ["predict", str(run_dir), str(pictures), "--top", "2"]
    assert main([*words, "--csv", str(table)]) == 0
    capsys.readouterr()
    assert main([*words, "--csv", "-"]) == 0
    assert capsys.readouterr().out.encode() == table.read_bytes()


def test_unknown_images_are_named_so(
    run_dir: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    table = tmp_path / "table.csv"
    words = ["predict", str(run_dir), str(pictures), "--top", "2"]
    assert main([*words, "--csv", str(table)]) == 0
    plain = list(csv.DictReader(table.open(newline="")))
    capsys.readouterr()
    assert main([*words, "--min-probability", "1", "--csv", str(table)]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert re.match(r"all \d+ images are unknown: the highest probability is 0\.", printed.err)
    judged = list(csv.DictReader(table.open(newline="")))
    columns = ["path", "class", "probability", "class_2", "probability_2"]
    assert list(judged[0]) == [*columns, "best_guess", "unknown_score"]
    assert {row["class"] for row in judged} == {"unknown"}
    assert [row["best_guess"] for row in judged] == [row["class"] for row in plain]
    for row, before in zip(judged, plain, strict=True):
        assert [row[name] for name in columns[2:]] == [before[name] for name in columns[2:]]
        assert float(row["unknown_score"])
    pattern = rf"{re.escape(judged[0]['path'])} +unknown  best guess: (\w.*\w)  +\d+\.\d\d %  .* %"
    assert re.fullmatch(pattern, lines[0])[1] == plain[0]["class"]  # pyright: ignore
    assert main([*words, "--min-probability", "0.01"]) == 0
    assert capsys.readouterr().err == ""
    assert main([*words, "--min-probability", "1", "--json"]) == 0
    image = json.loads(capsys.readouterr().out)["images"][0]
    assert (image["class"], image["unknown"]) == ("unknown", True)
    assert image["top"][0]["class"] == plain[0]["class"]


def test_the_unknown_score_without_a_lowest_probability(
    run_dir: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    """It is that of --min-probability, and no class is called unknown for it."""
    table = tmp_path / "table.csv"
    words = ["predict", str(run_dir), str(pictures), "--csv", str(table)]
    assert main([*words, "--min-probability", "0.5"]) == 0
    judged = list(csv.DictReader(table.open(newline="")))
    capsys.readouterr()
    assert main([*words, "--unknown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = list(csv.DictReader(table.open(newline="")))
    assert list(rows[0]) == ["path", "class", "probability", "unknown_score"]
    assert [row["unknown_score"] for row in rows] == [row["unknown_score"] for row in judged]
    for line, row in zip(lines, rows, strict=True):
        assert line.endswith(f" %  unknown score {float(row['unknown_score']):.2f}")
        assert row["class"] != "unknown"


def test_broken_images_are_named_and_left_out(
    run_dir: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    bad, good = tmp_path / "bad.png", pictures / "blue" / "0.png"
    bad.write_text("no image")
    capsys.readouterr()
    assert main(["predict", str(run_dir), str(tmp_path), str(good)]) == 1
    told = capsys.readouterr()
    assert [line.partition("  ")[0] for line in told.out.splitlines()] == [str(good)]
    assert told.err.splitlines() == [
        f"cannot read image {bad}: not a known image format; replace the file or remove it",
        "1 of 2 images could not be read",
    ]
    assert main(["predict", str(run_dir), str(bad), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], len(found["broken"])) == ([], 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["nowhere", "."],
            r"RUN=nowhere: no such file or directory; give a run directory or its "
            r"model\.safetensors",
        ),
        (["."], r"required: IMAGE; see `smope predict --help`"),
        (
            [".", "nowhere.png"],
            r"IMAGE=nowhere\.png: no such file or folder; give image files or folders of them",
        ),
        ([".", "."], r"IMAGE=\.: no image file in this folder \(\.bmp, .*\); name another"),
        ([".", ".", "--top", "0"], r"--top=0: must be at least 1"),
        ([".", ".", "--top", "many"], r"argument --top: invalid int value: 'many'"),
        ([".", ".", "--tpo", "1"], r"unrecognized arguments: --tpo 1; did you mean --top\?"),
        (
            [".", ".", "--csv", "no/where.csv"],
            r"--csv=no/where\.csv: must be a file in a folder that is there; write",
        ),
        ([".", ".", "--csv", "."], r"--csv=\.: must be a file"),
        ([".", ".", "--csv", "-", "--json"], r"--csv - and --json both print; leave one of"),
        ([".", "-", "-"], r"IMAGE=-: standard input can be read once"),
        ([".", ".", "--workers", "0"], r"--workers=0: must be in 1\.\.256; leave it out for"),
        ([".", ".", "--resume"], r"--resume: continues a table; name it with --csv FILE or"),
        ([".", ".", "--resume", "--csv", "-"], r"--resume: continues a table; name it with"),
        ([".", ".", "--csv", "a", "--parquet", "b"], r"--csv and --parquet: a table is written"),
        ([".", ".", "--parquet", "no/where.parquet"], r"--parquet=no/where\.parquet: must be a fi"),
        (
            [".", ".", "--min-probability", "80"],
            r"--min-probability=80: must be in 0\.\.1; write for example --min-probability 0\.8",
        ),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str, mistake: Any) -> None:
    assert re.search(message, mistake("predict", *words))


def test_a_folder_that_is_no_run(pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["predict", str(tmp_path), str(pictures)]) == 2
    assert "holds no config.yaml, so it is not a run directory" in capsys.readouterr().err


def test_more_guesses_than_classes(run_dir: Path, pictures: Path, capsys: Capture) -> None:
    capsys.readouterr()
    assert main(["predict", str(run_dir), str(pictures), "--top", "5"]) == 2
    assert (
        "top must be in 1..4, for as many classes have been seen, got 5" in capsys.readouterr().err
    )


def test_an_unfinished_run_says_what_it_knows(
    run_dir: Path, pictures: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = predict.read_model
    monkeypatch.setattr(predict, "read_model", lambda path: first_task_of(read(path)))
    capsys.readouterr()
    assert main(["predict", str(run_dir), str(pictures)]) == 0
    assert capsys.readouterr().err == "1 of 2 tasks are learned: 2 of 4 classes can be predicted\n"


def first_task_of(artefact: Any) -> Any:
    return replace(artefact, tasks_done=1, class_names=artefact.class_names[:2])
