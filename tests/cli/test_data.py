"""`smope data check`: what is printed, as text and as JSON, and with which exit code."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from smope.cli.main import main
from smope.config.hydra import compose
from smope.config.overrides import read_overrides
from smope.run.build_source import make_source
from smope.streams.pixels.preload import preload_images

COUNTS = {"train": 6, "test": 3}
Check = Callable[..., tuple[int, str]]


def picture(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    coarse = numpy.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=numpy.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def plain_folder(root: Path, seed: int = 0, classes: str = "abcd") -> Path:
    """Different pictures: six for training and three for testing of each class."""
    places = [
        root / split / name / f"{i}.png"
        for split, count in COUNTS.items()
        for name in classes
        for i in range(count)
    ]
    for number, path in enumerate(places):
        save(path, picture(1000 * seed + number))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return plain_folder(tmp_path / "photos")


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Check:
    """Exit code and standard output; nothing may go to standard error."""

    def run(*arguments: object) -> tuple[int, str]:
        code = main(["data", "check", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert err == ""
        return code, out

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line of a mistake in the command."""

    def run(*arguments: object) -> str:
        assert main(["data", *map(str, arguments)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        (line,) = err.splitlines()
        return line

    return run


def block(text: str, beginning: str) -> list[str]:
    """The lines of the one finding that begins so, its heading first."""
    (found,) = [part.splitlines() for part in text.split("\n\n") if part.startswith(beginning)]
    return found


def test_a_good_folder(root: Path, check: Check) -> None:
    code, text = check(root, "stream.num_tasks=2")
    assert code == 0
    assert text.startswith(
        f"{root} as stream=folder, recognised by class folders in train/ and test/\n\n4 classes\n"
    )
    assert re.search(r"^training +24 +0 +6 +6 +6$", text, re.MULTILINE)
    assert re.search(r"^test +12 +0 +3 +3 +3$", text, re.MULTILINE)
    assert re.search(r"^task 1 +2 +12 +6   c, a$", text, re.MULTILINE)
    assert re.search(r"^task 2 +2 +12 +6   b, d$", text, re.MULTILINE)
    assert re.search(r"^which method\?.*\n  method=ncm ", text, re.MULTILINE)
    assert text.endswith("\n\nnothing is wrong\n")


def test_the_hash_is_what_training_records(root: Path, check: Check) -> None:
    overrides = ["stream=folder", f"stream.root={root}", "stream.num_tasks=2"]
    recorded = preload_images(make_source(compose(read_overrides(overrides)))).content_hash
    code, text = check(root)
    assert code == 0
    assert f"content hash, as in run.json: {recorded}\n" in text
    assert json.loads(check(root, "--json")[1])["content_hash"] == recorded


def test_without_a_number_of_tasks_it_says_how_to_see_them(root: Path, check: Check) -> None:
    code, text = check(root, "--strict")
    assert code == 0
    assert block(text, "note: stream") == [
        "note: stream.num_tasks=N shows what each of N tasks would hold"
    ]
    assert "task 1" not in text
    code, text = check(root, "stream.classes_per_task=[3,1]")
    assert re.search(r"^task 1 +3 +18 +9   c, a, b$", text, re.MULTILINE)
    assert block(text, "note: the tasks")[0].startswith(
        "note: the tasks are uneven: 1 to 3 classes and 6 to 18 training images a task"
    )


def test_json_has_it_all_and_nothing_else(root: Path, check: Check) -> None:
    (root / "train" / "a" / "text.png").write_text("hello")
    shutil.copy(root / "train" / "a" / "0.png", root / "test" / "b" / "copy.png")
    code, text = check(root, "stream.num_tasks=2", "--json")
    report = json.loads(text)
    assert code == 1
    assert (report["root"], report["stream"]) == (str(root), "folder")
    assert report["recognised_by"] == "class folders in train/ and test/"
    assert report["splits"]["train"] == {
        "images": 24,
        "unreadable": 1,
        "fewest": 6,
        "median": 6,
        "most": 6,
    }
    assert report["classes"][1] == {"name": "b", "train": 6, "test": 4}
    assert report["image_sizes"][0] == {"name": "train/a/0.png", "width": 48, "height": 40}
    assert report["tasks"][0] == {"name": "task 1", "classes": ["c", "a"], "train": 12, "test": 6}
    assert (report["evaluated_on"], report["facts"]) == ("test", {})
    assert (report["errors"], report["warnings"], report["notes"]) == (2, 1, 1)
    assert [(finding["kind"], finding["level"]) for finding in report["findings"]] == [
        ("unreadable", "error"),
        ("in_both_splits", "error"),
        ("several_classes", "warning"),
        ("backbone", "note"),
    ]
    unreadable, both, several, _ = (finding["items"] for finding in report["findings"])
    assert unreadable == [{"names": ["train/a/text.png"], "detail": "not a known image format"}]
    assert both == [{"names": ["train/a/0.png", "test/b/copy.png"], "detail": ""}]
    assert several == [{"names": ["train/a/0.png", "test/b/copy.png"], "detail": "classes a, b"}]


def test_every_broken_file_is_an_error_and_named(root: Path, check: Check) -> None:
    cut = save(root / "train" / "a" / "cut.jpg", picture(1, (200, 200)))
    cut.write_bytes(cut.read_bytes()[:-500])
    (root / "train" / "b" / "text.jpg").write_text("hello")
    (root / "test" / "c" / "nothing.png").touch()
    (root / "test" / "d" / "link.png").symlink_to(root / "away.png")
    code, text = check(root)
    assert code == 1
    heading, *items = block(text, "error")
    assert heading.startswith(
        "error: 4 images cannot be read; replace or remove them, or train with stream.broken"
    )
    assert items[0].startswith("  train/a/cut.jpg: image file is truncated")
    assert items[1:] == [
        "  train/b/text.jpg: not a known image format",
        "  test/c/nothing.png: the file is empty",
        "  test/d/link.png: No such file or directory",
    ]
    assert "content hash of the images that can be read, as in run.json: " in text
    assert re.search(r"^test +12 +2 ", text, re.MULTILINE)
    assert text.endswith("\n1 error, 0 warnings\n")


def test_a_long_list_is_cut_on_the_screen_only(root: Path, check: Check) -> None:
    for number in range(25):
        (root / "train" / "a" / f"x{number:02}.png").write_text(f"hello {number}")
    lines = block(check(root)[1], "error")
    assert (len(lines), lines[-2:]) == (
        22,
        ["  train/a/x19.png: not a known image format", "  and 5 more, all in --json"],
    )
    (finding,) = [
        it for it in json.loads(check(root, "--json")[1])["findings"] if it["kind"] == "unreadable"
    ]
    assert len(finding["items"]) == 25


def test_unusual_images_are_warnings_and_errors_if_strict(root: Path, check: Check) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    train = root / "train" / "a"
    save(train / "gray.jpg", picture(1).convert("L"))
    save(train / "cmyk.jpg", picture(2).convert("CMYK"))
    save(train / "turned.jpg", picture(3), exif=exif)
    save(train / "alpha.png", picture(4).convert("RGBA"))
    save(
        train / "deep.png", Image.fromarray(numpy.arange(1920, dtype=numpy.uint16).reshape(40, 48))
    )
    frames = [picture(seed).convert("P") for seed in (5, 6)]
    save(root / "test" / "a" / "moving.gif", frames[0], save_all=True, append_images=frames[1:])
    code, text = check(root)
    assert code == 0
    # the seven below, and that the range of the 16-bit image is a guess
    assert text.count("warning: ") == 8
    assert block(text, "warning: 2 grayscale images: ")[1:] == [
        "  train/a/deep.png",
        "  train/a/gray.jpg",
    ]
    assert block(text, "warning: 1 image of more than 8 bits without a declared range")
    for heading, name in (
        ("1 CMYK image: converted to RGB without a colour profile", "train/a/cmyk.jpg"),
        ("1 EXIF-rotated image: turned or mirrored as the camera noted", "train/a/turned.jpg"),
        ("1 alpha image: laid over white", "train/a/alpha.png"),
        ("1 16-bit image: reduced to 8 bits a channel", "train/a/deep.png"),
        ("1 palette image: each pixel takes its colour from the palette", "test/a/moving.gif"),
        (
            "1 animated or multi-page image: the first picture of the file counts",
            "test/a/moving.gif",
        ),
    ):
        assert block(text, f"warning: {heading}, in training and prediction alike")[1:] == [
            f"  {name}"
        ]
    code, text = check(root, "--strict")
    assert code == 1
    assert text.endswith("\n8 errors, 0 warnings\n")


def test_overlap_of_training_and_test_images(tmp_path: Path, check: Check) -> None:
    root = tmp_path / "photos"
    for split, count, seed in (("train", 5, 0), ("test", 100, 10)):
        for number in range(count):
            save(root / split / "a" / f"{number:03}.png", picture(seed + number))
            save(root / split / "b" / f"{number:03}.png", picture(500 + seed + number))
    # the same picture in another file format
    save(root / "test" / "a" / "007.png", picture(2)).rename(root / "test" / "a" / "copy.png")
    save(root / "test" / "a" / "copy.bmp", picture(3))
    code, text = check(root)
    assert code == 0
    assert block(text, "warning") == [
        "warning: 2 of 201 test images (0.995 %) are among the training images, pixel for pixel",
        "  train/a/002.png = test/a/copy.png",
        "  train/a/003.png = test/a/copy.bmp",
    ]
    assert check(root, "--strict")[0] == 1
    save(root / "test" / "b" / "third.png", picture(504))
    code, text = check(root)
    assert code == 1
    assert block(text, "error")[0].startswith("error: 3 of 202 test images (1.49 %) are among")


def test_small_classes_and_notes_do_not_fail(root: Path, check: Check) -> None:
    for path in list((root / "train" / "d").iterdir())[1:]:
        path.unlink()
    shutil.copy(root / "train" / "a" / "0.png", root / "train" / "a" / "again.png")
    save(root / "train" / "b" / "tiny.png", picture(1, (20, 50)))
    save(root / "train" / "b" / "long.png", picture(2, (300, 40)))
    (root / "train" / "b" / "notes.txt").touch()
    code, text = check(root, "stream.num_tasks=2")
    assert code == 0
    assert block(text, "warning") == [
        "warning: 1 class has fewer than 5 training images",
        "  d: 1 image",
    ]
    assert "training images a class: d 1, c 6, a 7, b 8\n" in text
    assert "image sizes: 20x50 (train/b/tiny.png) to 300x40 (train/b/long.png)\n" in text
    assert block(text, "note: 1 training image repeats")[1:] == [
        "  train/a/0.png = train/a/again.png"
    ]
    assert block(text, "note: 1 image is less than 32 pixels")[1:] == ["  train/b/tiny.png: 20x50"]
    assert block(text, "note: 1 image is more than 4 times as long as wide")[1:] == [
        "  train/b/long.png: 300x40"
    ]
    assert block(text, "note: 1 file lies beside the images")[1:] == ["  train/b/notes.txt"]
    assert check(root, "--strict")[0] == 1, "for the small class"


def test_many_classes_are_shown_by_the_smallest_and_the_largest(
    tmp_path: Path, check: Check
) -> None:
    root = plain_folder(tmp_path / "photos", classes="abcdefghijkl")
    for number, name in enumerate("lbk"):
        save(root / "train" / name / "more.png", picture(5000 + number))
    (root / "train" / "c" / "0.png").unlink()
    text = check(root)[1]
    assert "classes with the fewest training images: c 5, a 6, d 6, e 6, f 6\n" in text
    assert "classes with the most training images: l 7, k 7, b 7, j 6, i 6\n" in text
    assert "test images: " not in text


def test_all_gaps_of_a_folder_are_named(root: Path, check: Check) -> None:
    shutil.rmtree(root / "test" / "b")
    (root / "test" / "d").rename(root / "test" / "D")
    for path in (root / "train" / "c").iterdir():
        path.unlink()
    (root / "train" / "a" / "text.png").write_text("hello")
    code, text = check(root, "stream.num_tasks=2")
    assert code == 1
    refusal = (
        "error: training refuses this data set: stream.root=.*: every class needs a test folder, "
        "there is none for b, d"
    )
    assert re.search(f"^{refusal}", text, re.MULTILINE)
    assert block(text, "error: 2 classes have no readable training images")[1:] == ["  D", "  c"]
    assert block(text, "error: 2 classes have no readable test images")[1:] == ["  b", "  d"]
    assert block(text, "error: 1 image cannot be read")[1:] == [
        "  train/a/text.png: not a known image format"
    ]
    assert "content hash" not in text
    report = json.loads(check(root, "stream.num_tasks=2", "--json")[1])
    assert (report["content_hash"], report["tasks"], report["errors"]) == (None, None, 4)
    assert report["classes"][0] == {"name": "D", "train": 0, "test": 3}


def test_a_class_of_broken_images_only(root: Path, check: Check) -> None:
    for path in (root / "test" / "b").iterdir():
        path.write_text("hello")
    code, text = check(root, "stream.num_tasks=2")
    assert code == 1
    assert block(text, "error: 1 class has no readable test images")[1:] == ["  b"]
    assert "task 1" not in text


def test_a_layout_of_another_kind(root: Path, check: Check) -> None:
    code, text = check(root, "stream=domains")
    assert code == 1
    heading, error, verdict = text.strip().split("\n\n")
    assert heading == f"{root} as stream=domains"
    assert error.startswith(
        f"error: training refuses this data set: stream.root={root} must hold <domain>/train/"
    )
    assert verdict == "1 error, 0 warnings"
    report = json.loads(check(root, "stream=domains", "--json")[1])
    assert (report["recognised_by"], report["splits"], report["classes"], report["tasks"]) == (
        None,
    ) * 4


def test_tasks_that_training_refuses(root: Path, check: Check) -> None:
    code, text = check(root, "stream.num_tasks=3")
    assert code == 1
    refusal = (
        "error: training refuses these tasks: stream.num_tasks=3 does not divide the 4 classes "
        "evenly"
    )
    assert block(text, "error")[0].startswith(refusal)
    assert re.search(r"^training +24 ", text, re.MULTILINE), "the rest is there"


def test_tasks_with_held_out_images(root: Path, check: Check) -> None:
    text = check(root, "stream.num_tasks=2", "stream.validation_fraction=0.34")[1]
    assert re.search(r"classes +training +validation$", text, re.MULTILINE)
    assert re.search(r"^task 1 +2 +8 +4   c, a$", text, re.MULTILINE)
    assert (
        json.loads(
            check(root, "stream.num_tasks=2", "stream.validation_fraction=0.34", "--json")[1]
        )["evaluated_on"]
        == "validation"
    )


def test_what_a_stream_says_is_in_the_report(root: Path, check: Check) -> None:
    save(root / "test" / "other" / "1.png", picture(1))
    code, text = check(root)
    assert code == 0
    said = (
        f"warning: stream.root={root}: test folders without a training folder are left out: other"
    )
    assert block(text, "warning") == [said]


def test_domains_are_tasks(tmp_path: Path, check: Check) -> None:
    for seed, domain in enumerate(("photo", "sketch")):
        plain_folder(tmp_path / "pictures" / domain, seed, "ab")
    code, text = check(tmp_path / "pictures")
    assert code == 0
    assert " as stream=domains, recognised by train/ and test/ in each of its folders\n" in text
    assert re.search(r"^photo +2 +12 +6   ", text, re.MULTILINE)
    assert re.search(r"^sketch +2 +12 +6   ", text, re.MULTILINE)
    report = json.loads(check(tmp_path / "pictures", "stream.domains=[sketch]", "--json")[1])
    assert [task["name"] for task in report["tasks"]] == ["sketch"]


def test_a_table(root: Path, check: Check) -> None:
    rows = [
        f"{path.relative_to(root)},{path.parent.name},{path.parts[-3]}"
        for path in sorted(root.rglob("*.png"))
    ]
    table = root / "labels.csv"
    table.write_text("\n".join(["path,label,split", *rows]))
    code, text = check(table, "stream.num_tasks=2")
    assert code == 0
    assert text.startswith(f"{table} as stream=table, recognised by a .csv file\n")
    assert "image sizes: 48x40 (train/a/0.png) to " in text
    assert re.search(r"^task 1 +2 +12 +6   c, a$", text, re.MULTILINE)


def test_names_that_are_no_valid_text(root: Path, check: Check) -> None:
    (root / "train" / "a" / "\udcff.png").write_text("hello")
    assert block(check(root)[1], "error")[1:] == [r"  train/a/\xff.png: not a known image format"]


def test_a_path_is_taken_as_it_stands(
    tmp_path: Path, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_folder(tmp_path / "a=b, [c]")
    monkeypatch.chdir(tmp_path)
    code, text = check("a=b, [c]")
    assert code == 0
    assert text.startswith(f"{tmp_path / 'a=b, [c]'} as stream=folder")


def test_nothing_is_written(root: Path, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    before = sorted(root.rglob("*"))
    assert check(".", "stream.num_tasks=2")[0] == 0
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which folder? Write smope data check ROOT"),
        (["check"], "which folder? Write smope data check ROOT"),
        (["chek", "{root}"], "invalid choice: 'chek'"),
        (
            ["check", "stream=folder"],
            "ROOT comes before stream=folder; write smope data check ROOT stream=folder",
        ),
        (["check", "{root}/nowhere"], "ROOT={root}/nowhere does not exist; check the path"),
        (["check", "{root}/train"], "it holds a, b, c, d; ROOT={root} looks right"),
        (
            ["check", "{root}", "stream.root={root}"],
            "stream.root is ROOT={root}; leave it out of what follows",
        ),
        (["check", "{root}", "stream=fodler"], "did you mean stream=folder?"),
        (["check", "{root}", "stream.num_task=2"], "did you mean stream.num_tasks?"),
        (["check", "{root}", "stream.num_tasks=0"], "stream.num_tasks must be at least 1"),
        (["check", "{root}", "--jsn"], "did you mean --json?"),
        (["check", "{root}", "stream=folder,domains"], "gives several values"),
    ],
)
def test_mistakes_in_the_command_exit_with_2(
    arguments: list[str], message: str, root: Path, refused: Callable[..., str]
) -> None:
    line = refused(*(argument.format(root=root) for argument in arguments))
    assert message.format(root=root) in line


def test_cifar100_has_images_in_both_splits(data_root: Path, check: Check) -> None:
    code, text = check(data_root / "cifar100_20k")
    assert code == 0
    assert " as stream=cifar100, recognised by parquet files\n" in text
    assert block(text, "warning: 3 of 10,000 test images (0.03 %) are among the training images")[
        1
    ] == (
        "  row 1572 of data/train-00000-of-00002.parquet = row 8255 of "
        "data/test-00000-of-00001.parquet"
    )
    assert re.search(
        r"^task 1 +10 +2,000 +1,000   cloud, bicycle, boy, beetle, motorcycle and 5 more$",
        text,
        re.MULTILINE,
    )


def test_real_photographs_and_domains(data_root: Path, check: Check) -> None:
    code, text = check(data_root / "caltech100", "stream.num_tasks=10")
    assert code == 0
    assert block(text, "warning: 158 grayscale images")[-1] == "  and 148 more, all in --json"
    assert re.search(r"^task 10 +10 +200 +100 ", text, re.MULTILINE)
    code, text = check(data_root / "pacs", "--strict")
    assert code == 0
    assert text.endswith("\n\nnothing is wrong\n")
