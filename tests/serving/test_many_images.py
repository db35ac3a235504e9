"""`smope predict` on any number of images: bounded memory, and a bar that shows how far it is."""

from __future__ import annotations

import gc
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import smope
from smope.cli.main import main
from smope.console import progress
from smope.serving import files, standard_input
from smope.serving.prediction import Prediction

Capture = pytest.CaptureFixture[str]


def linked(root: Path, folders: int, each: int) -> Path:
    """A tree of many names for one file."""
    root.mkdir()
    (root / "first.png").write_bytes(b"")
    for folder in range(folders):
        path = root / f"{folder:05d}"
        path.mkdir()
        for index in range(each):
            os.link(root / "first.png", path / f"{index:05d}.png")
    return root


# In a process of its own. pathlib interns names, and the table of interned strings doubles when it
# is full, which it is at any time in a process that has run other tests: here it has room.
PEAK = """
import sys, tracemalloc
from pathlib import Path
from smope.serving import files, standard_input

interned = [sys.intern(f"name {{index}}") for index in range(200_000)]
{images}
for images in (first, *others):  # the first one pays for what is imported and cached once
    tracemalloc.start()
    count = sum(1 for _ in images)
    print(count, tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
"""


def peaks(images: str, *paths: Path) -> list[tuple[int, int]]:
    """For each iterator of `others`: how many images it gives, the most bytes held meanwhile."""
    command = [sys.executable, "-c", PEAK.format(images=images), *map(str, paths)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    _, *others = ((int(count), int(most)) for count, most in map(str.split, printed.splitlines()))
    return others


def test_names_of_one_folder_at_a_time_are_held(tmp_path: Path) -> None:
    """Of 20 folders as of 2, and of a flat one fewer than 100 bytes a name."""
    few, many, flat = peaks(
        "first, *others = (files.find_images([Path(path)]) for path in sys.argv[1:])",
        linked(tmp_path / "warm", 1, 1),
        linked(tmp_path / "few", 2, 500),
        linked(tmp_path / "many", 20, 500),
        linked(tmp_path / "flat", 1, 10_000),
    )
    assert (few[0], many[0], flat[0]) == (1_001, 10_001, 10_001)
    assert many[1] < few[1] + 10_000
    assert flat[1] < 100 * 10_000


def test_paths_from_a_pipe_are_not_listed_again(tmp_path: Path) -> None:
    root = linked(tmp_path / "flat", 1, 5_000)
    listing = tmp_path / "listing"
    listing.write_bytes("\n".join(map(str, sorted(root.rglob("*.png")))).encode())
    inputs = standard_input.Inputs([standard_input.STANDARD_INPUT], listing.read_bytes())
    assert inputs.survey().warnings() == []
    assert inputs.count == 5_001
    ((count, most),) = peaks(
        "content = Path(sys.argv[1]).read_bytes()\n"
        "inputs = standard_input.Inputs([standard_input.STANDARD_INPUT], content)\n"
        "inputs.survey()\n"
        "first, others = iter(inputs), [iter(inputs)]",
        listing,
    )
    assert count == 5_001
    assert most < 100_000


def test_the_order_is_that_of_the_names(tmp_path: Path) -> None:
    names = ["b.png", "b/a.png", "b-c/a.png", "b.d/z.png", "a/é.png", "a/z/1.png", "Z.png", "ä.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    expected = sorted(map(tmp_path.joinpath, names), key=lambda path: path.parts)
    assert list(files.find_images([tmp_path])) == expected


def test_what_is_left_out_is_counted(tmp_path: Path, pictures: Path, capsys: Capture) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "linked").symlink_to(pictures)
    for name in ("a.png", "b.svg", "c.SVG"):
        (tmp_path / "in" / name).write_bytes(b"")
    not_read = files.NotRead()
    assert list(files.find_images([tmp_path / "in"], not_read)) == [tmp_path / "in" / "a.png"]
    assert not_read.suffix_counts == {".svg": 2}
    assert not_read.warnings() == [
        "2 pictures are not read: .svg 2 (export drawings as PNG)",
        f"1 link to a folder is not followed, such as {tmp_path / 'in' / 'linked'}; name the "
        "folder itself",
    ]


def test_images_are_read_no_more_than_a_batch_ahead(run_dir: Path, pictures: Path) -> None:
    classifier, taken = smope.load(run_dir), 0
    file = next(pictures.rglob("*.png"))

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield file

    answers = classifier.predict(endless(), batch_size=4, workers=2)
    for number in range(1, 30):
        next(answers)
        assert taken <= number + 8
    answers.close()  # pyright: ignore[reportAttributeAccessIssue]
    taken = 0
    answers = classifier.predict(endless(), batch_size=1)
    for number in range(1, 5):
        next(answers)
        assert taken == number, "one by one nothing is taken ahead"


def test_the_number_of_workers_changes_nothing(run_dir: Path, pictures: Path) -> None:
    classifier = smope.load(run_dir)
    one, five = (list(classifier.predict(pictures, workers=number)) for number in (1, 5))
    assert one == five
    with pytest.raises(ValueError, match="workers must be at least 1, got 0; leave it out for all"):
        classifier.predict(pictures, workers=0)


def test_predictions_are_not_held(
    run_dir: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """As lines, as a document or as a table, no more live than a batch has."""
    (tmp_path / "many").mkdir()
    for number in range(200):
        os.link(pictures / "blue" / "0.png", tmp_path / "many" / f"{number}.png")
    created, alive = 0, []
    plain = Prediction.__init__

    def counted(self: Prediction, *args: Any, **keys: Any) -> None:
        nonlocal created
        plain(self, *args, **keys)
        created += 1
        if created % 200 == 0:
            alive.append(sum(type(each) is Prediction for each in gc.get_objects()))

    monkeypatch.setattr(Prediction, "__init__", counted)
    table = ["--csv", str(tmp_path / "t.csv")]
    for more in (table, ["--json"], ["--csv", "-"]):
        assert main(["predict", str(run_dir), str(tmp_path / "many"), *more]) == 0
    assert len(alive) == 3
    assert max(alive) <= 64


def test_the_document_is_whole(run_dir: Path, pictures: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "bad.png").write_bytes(b"")
    for images, code in ((pictures, 0), (tmp_path, 1)):
        capsys.readouterr()
        assert main(["predict", str(run_dir), str(images), "--json"]) == code
        text = capsys.readouterr().out
        assert text == json.dumps(json.loads(text), indent=1) + "\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_is_for_terminals(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(progress, "BAR_DELAY_SECONDS", 0)
    with progress.image_bar(3, "images") as bar:
        bar.update()
    assert capsys.readouterr() == ("", "")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.image_bar(3, "images") as bar:
        bar.skip()
        bar.update()
        bar.update()
    assert "images: 100%" in terminal.getvalue()
    assert " images/s]" in terminal.getvalue()
    read, written = os.pipe()
    terminal.truncate(0)
    with os.fdopen(read), os.fdopen(written, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with progress.image_bar(3, "images") as bar:
            bar.update()
        monkeypatch.undo()
    assert terminal.getvalue() == ""
