from __future__ import annotations

import hashlib
import logging
import os
import shutil
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from smope.errors import UserError
from smope.streams import table
from smope.streams.pixels.preload import preload_images
from smope.streams.stream import build_stream


@pytest.fixture
def root(tmp_path, write_image) -> Path:
    """A folder with images 0.png to 19.png in img/."""
    place = tmp_path / "photos"
    for i in range(20):
        write_image(place / "img" / f"{i}.png", i, 8, 8)
    return place


def write(root: Path, text: str | bytes, name: str = "images.csv") -> str:
    (root / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return str(root / name)


PLAIN = (
    ""
    "path,label,split\nimg/0.png,dog,train\nimg/1.png,cat,train\nimg/2.png,dog,test\nimg/3.png,cat,test\n"
)


def lines_of(rows: int = 20, columns: str = "path,label", tasks: bool = False) -> list[str]:
    """A header and a row an image: classes a and b in turn, task 1 for the first half."""
    rest = [f",{1 + (2 * i) // rows}" if tasks else "" for i in range(rows)]
    return [columns] + [f"img/{i}.png,{'ab'[i % 2]}{rest[i]}" for i in range(rows)]


def content(source) -> tuple:
    return source.class_names, source.train, source.test, source.task_names


def test_a_plain_table(root, pixels):
    source = table.load(write(root, PLAIN))
    assert (
        source.name == "table"
        and source.class_names == ("cat", "dog")
        and source.task_names is None
    )
    assert [path.name for path in source.train.images] == ["0.png", "1.png"]
    assert list(source.train.targets) == [1, 0] and list(source.test.targets) == [1, 0]
    assert source.train.pixels(1).tobytes() == pixels(1, 8, 8).tobytes()
    assert source.train.tasks is None and source.test.tasks is None
    lines = ["test\timg/2.png", "test\timg/3.png", "train\timg/0.png", "train\timg/1.png"]
    digest = hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()
    assert source.facts == {"split": "as in the table", "split_hash": digest}
    stream = build_stream(source, image_size=16, seed=0, num_tasks=2, class_order="sorted")
    assert [task.class_names for task in stream.tasks] == [("cat",), ("dog",)]


@pytest.mark.parametrize(
    "text",
    [
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        "\ufeff" + PLAIN,
        "\n\r\n" + PLAIN.replace("\n", "\n\n"),
        PLAIN.rstrip("\n"),
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        PLAIN.replace(",", " ,  "),
        PLAIN.replace("img/", '"img/').replace(".png,", '.png", '),
        PLAIN.replace("path,label,split", "Path, LABEL ,Split")
        .replace("train", "Training")
        .replace("test", "TESTING"),
        "\n".join(",".join(reversed(line.split(","))) for line in PLAIN.splitlines()),
        PLAIN.replace("img/", ".\\img\\"),
        PLAIN.replace("img/", "./img/../img//"),
        PLAIN.replace("\n", ",,\n"),
        PLAIN.replace("split", "split,").replace("train", "train,"),
        "path,label,split\n" + "\n".join(reversed(PLAIN.splitlines()[1:])),
    ],
)
def test_the_same_table_in_other_forms(root, text, caplog):
    expected = content(table.load(write(root, PLAIN, "plain.csv")))
    assert content(table.load(write(root, text))) == expected
    assert not caplog.text


def test_delimiters_within_values(root, write_image):
    write_image(root / "a, b;c.png", 30, 8, 8)
    for delimiter in (",", ";", "\t"):
        header = delimiter.join(("path", "label", "split"))
        rows = [f'"a, b;c.png"{delimiter}"dog ""big"", old"{delimiter}train']
        rows += [
            f"img/{i}.png{delimiter}'dog'{delimiter}{split}"
            for i, split in enumerate(("train", "test"))
        ]
        rows += [f'img/2.png{delimiter}"dog ""big"", old"{delimiter}test']
        source = table.load(write(root, "\n".join([header, *rows])))
        assert (
            source.class_names == ("'dog'", 'dog "big", old')
            and source.train.images[0].name == "a, b;c.png"
        )


def test_root_and_absolute_paths(root, tmp_path, monkeypatch):
    expected = content(table.load(write(root, PLAIN)))
    other = tmp_path / "tables"
    other.mkdir()
    assert content(table.load(write(other, PLAIN), root=str(root))) == expected
    absolute = write(other, PLAIN.replace("img/", f"{root}/img/"))
    assert content(table.load(absolute, root=str(root))) == expected
    monkeypatch.chdir(root)
    assert content(table.load("images.csv")) == expected
    monkeypatch.chdir(tmp_path)
    assert content(table.load("tables/images.csv", root="photos")) == expected
    monkeypatch.setenv("HOME", str(tmp_path))
    assert content(table.load("~/photos/images.csv")) == expected


def test_labels_are_in_order_and_text(root):
    rows = [f"img/{i}.png,{label},{split}" for i, (label, split) in enumerate(
        (label, split) for label in ("10", "9", "-1") for split in ("train", "test")
    )]  # fmt: skip
    assert table.load(write(root, "\n".join(["path,label,split", *rows]))).class_names == (
        "-1",
        "9",
        "10",
    )
    rows[0], rows[1] = rows[0].replace(",10,", ",ten,"), rows[1].replace(",10,", ",ten,")
    assert table.load(write(root, "\n".join(["path,label,split", *rows]))).class_names == (
        "9",
        "-1",
        "ten",
    )


def test_a_fifth_of_each_class_is_drawn_for_testing(root):
    rows = lines_of()
    source = table.load(write(root, "\n".join(rows)))
    assert Counter(source.train.targets) == {0: 8, 1: 8} and Counter(source.test.targets) == {
        0: 2,
        1: 2,
    }
    assert not set(source.train.images) & set(source.test.images)
    facts = source.facts
    assert (facts["split"], facts["split_seed"], len(facts["split_hash"])) == ("drawn", 0, 64)

    shuffled = table.load(write(root, "\n".join([rows[0], *rows[:0:-1]])))
    assert content(shuffled) == content(source) and shuffled.facts == source.facts
    empty_column = [f"{row},{'split' if not number else ''}" for number, row in enumerate(rows)]
    assert content(table.load(write(root, "\n".join(empty_column)))) == content(source)
    other = table.load(write(root, "\n".join(rows)), split_seed=1)
    assert other.facts["split_hash"] != facts["split_hash"]
    assert facts["test_fraction"] == 0.2
    half = table.load(write(root, "\n".join(rows)), test_fraction=0.5)
    assert Counter(half.test.targets) == {0: 5, 1: 5} and half.facts["test_fraction"] == 0.5
    moved = table.load(str(shutil.copytree(root, root.parent / "moved") / "images.csv"))
    assert (
        moved.facts == facts
        and preload_images(moved).content_hash == preload_images(source).content_hash
    )


def test_task_numbers(root):
    """Tasks 10, 2.0 and 2: in order of number, however they are written; test images follow their
    class.
    """
    rows = [
        "img/0.png,a,10,train",
        "img/1.png,b,2.0,train",
        "img/2.png,a,02,train",
        "img/3.png,a,10,train",
    ]
    tests = ["img/4.png,a,,test", "img/5.png,b,,test"]
    source = table.load(write(root, "\n".join(["path,label,task,split", *rows, *tests])))
    assert (
        source.task_names == ("2", "10")
        and list(source.train.tasks) == [1, 0, 0, 1]
        and source.test.tasks is None
    )
    stream = build_stream(source, image_size=16, seed=0, num_tasks=None, class_order="sorted")
    assert [task.name for task in stream.tasks] == ["2", "10"]
    assert [list(task.test.targets) for task in stream.tasks] == [[1], [0]]
    given = [row.replace(",,", ",10,") for row in tests]
    source = table.load(write(root, "\n".join(["path,label,task,split", *rows, *given])))
    assert list(source.test.tasks) == [1, 1]


def test_task_names_come_in_order_of_appearance(root):
    rows = [f"img/{i}.png,{'ab'[i % 2]},{('winter', 'spring')[i // 10]}" for i in range(20)]
    source = table.load(write(root, "\n".join(["path,label,task", *rows])))
    assert source.task_names == ("winter", "spring")
    assert Counter(zip(source.test.tasks, source.test.targets, strict=True)) == dict.fromkeys(
        [(0, 0), (0, 1), (1, 0), (1, 1)], 1
    )
    mixed = [row.replace("spring", "1") for row in rows]
    assert table.load(write(root, "\n".join(["path,label,task", *mixed]))).task_names == (
        "winter",
        "1",
    )


def test_an_empty_task_column_is_none(root):
    rows = lines_of(columns="path,label,task")
    assert table.load(write(root, "\n".join(rows))).task_names is None


def test_other_columns_are_ignored_with_one_warning(root, caplog):
    rows = lines_of(columns="path,label,Width,notes,")
    rows[1:] = [f"{row},640," + '"two\nlines, and a ""word""",0' for row in rows[1:]]
    with caplog.at_level(logging.WARNING):
        source = table.load(write(root, "\n".join(rows)))
    assert len(source.train) == 16
    assert [record.getMessage() for record in caplog.records] == [
        f"stream.table={root}/images.csv: columns without a meaning here are ignored: width, notes"
    ]


def refused(path: str, message: str, **options: object) -> None:
    with pytest.raises(UserError, match=message) as caught:
        table.load(path, **options)  # type: ignore[arg-type]
    assert f"stream.table={path}" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_tables(root):
    refused(
        str(root / "no.csv"), r"no\.csv: no such file; give a CSV file with columns path and label$"
    )
    refused(str(root / "no" / "no.csv"), r"no such file")
    refused(str(root), r": is a folder; give a CSV file")
    with pytest.raises(UserError, match=r"stream\.root=.*nowhere does not exist"):
        table.load(write(root, PLAIN), root=str(root / "nowhere"))


@pytest.mark.parametrize(
    "text", ["", "\n \n", "img/0.png,dog\nimg/1.png,cat\n", "filename,class\na,b\n", "path|label\n"]
)
def test_a_first_line_without_the_columns(root, text):
    first = text.strip().split("\n")[0]
    refused(
        write(root, text),
        rf"the first line must name columns path and label .*, got '{first.replace('|', '.')}'; "
        rf"add such a line$",
    )


def test_odd_first_lines(root):
    refused(
        write(root, '"path";"label";"path"\n'), r"two columns are called path; rename or remove one"
    )
    refused(write(root, "path,label\n\n"), r"has no rows below its first line; add one an image")
    refused(write(root, "x" * 500), r"got 'x{80}'; add")


def test_other_encodings(root):
    text = PLAIN.replace("dog", "käfer")
    refused(
        write(root, text.encode("latin1")),
        r"line 2: b'img/0\.png,k\\xe4fer,train' is not UTF-8 text; save the table as CSV in UTF-8",
    )
    expected = content(table.load(write(root, text)))
    assert "käfer" in expected[0]
    for encoding in ("utf-16", "utf-8-sig", "utf-32"):
        assert content(table.load(write(root, text.encode(encoding)))) == expected
    marked = b"\xfe\xff" + text.replace(",", "\t").encode("utf-16-be")
    assert content(table.load(write(root, marked))) == expected


def test_paths_in_another_form_of_unicode(root, write_image):
    """macOS stores é as two signs, and tables are often written elsewhere."""
    composed, decomposed = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    write_image(root / decomposed / f"{composed}.png", 60, 8, 8)
    source = table.load(write(root, PLAIN.replace("img/0", f"{composed}/{decomposed}")))
    assert root / decomposed / f"{composed}.png" in source.train.images
    refused(write(root, PLAIN.replace("img/0", "é/è")), r"line 2: there is no file é/è\.png in")


ROW = "img/9.png,dog,train"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (",dog,train", r"line 7: has no path; add it or remove the row"),
        ("img/9.png, ,train", r"line 7: has no label; add it"),
        ("img/9.png", r"line 7: has no label; add it"),
        ("img/9.png,dog,", r"line 7: has no split, and other rows have one; write train or test"),
        (
            "img/9.png,dog,val",
            r"line 7: split must be train or test, got val; .*stream\.validation_fraction",
        ),
        (
            "img/9,a.png,dog,train",
            r"line 7: has 4 cells and the first line names 3 columns; put a value with a comma",
        ),
        (
            'img/9.png,"dog,train',
            r'the quotes \("\) in a row after line 6 do not match \(unexpected end '
            r"of data\); close",
        ),
        ('img/9.png,"dog" x,train', r"the quotes .* after line 6 do not match"),
        ('img/9.png,"d\nog",train', r"line 7: its label has a line break"),
        (
            "img/9.png,d\x00og,train",
            r"line 7: its label has a line break or another unprintable sign",
        ),
        (
            "../secret.png,dog,train",
            r"line 7: path \.\./secret\.png leads out of .*photos; move the file there, or give",
        ),
        ("img/../../secret.png,dog,train", r"line 7: path .* leads out of"),
        ("..\\secret.png,dog,train", r"line 7: path .* leads out of"),
        ("/etc/passwd,dog,train", r"line 7: path /etc/passwd leads out of"),
        ("../photos2/0.png,dog,train", r"line 7: path .* leads out of"),
        (
            "img/99.png,dog,train",
            r"line 7: there is no file img/99\.png in .*photos \(1 of 5 rows name files that are",
        ),
        ("img,dog,train", r"line 7: there is no file img in"),
        (".,dog,train", r"line 7: there is no file \. in"),
        (
            "img/0.png,cat,train",
            r"line 7: img/0\.png stands in two rows \(dog train in line 3, cat train in line 7\); "
            r"keep",
        ),
        (
            "img/0.png,dog,test",
            r"two rows \(dog train in line 3, dog test in line 7\); keep one of them",
        ),
        ("./img//0.png,dog,train", r"two rows \(dog train in line 3, dog train in line 7\)"),
        (
            "img/9.png,dgo,train",
            r"line 7: class dgo is in no row with split test; correct its name, add images, or",
        ),
        ("img/9.png,fox,test", r"line 7: class fox is in no row with split train"),
    ],
)
def test_wrong_rows_are_named_by_line(root, row, message, write_image):
    write_image(root.parent / "photos2" / "0.png")
    header, *rows = PLAIN.splitlines()
    refused(write(root, "\n".join([header, "", *rows, row, ""])), message)


def test_paths_of_a_table_from_elsewhere_stay_in_root(root, tmp_path, write_image):
    """The path that is checked is the one that is opened, also where a folder is a link."""
    write_image(tmp_path / "outside" / "deep" / "0.png", 50, 8, 8)
    os.symlink(tmp_path / "outside" / "deep", root / "link")
    write_image(root / "0.png", 51, 8, 8)
    source = table.load(write(root, PLAIN.replace("img/0.png", "link/../0.png")))
    assert source.train.images[0] == root / "0.png"
    source = table.load(write(root, PLAIN.replace("img/0.png", "link/0.png")))
    assert root / "link" / "0.png" in source.train.images


def test_missing_files_and_a_better_root(root, tmp_path):
    path = write(tmp_path, PLAIN)
    refused(
        path,
        rf"line 2: .* \(4 of 4 rows name files.*; .* as stream\.root; stream\.root={root} looks "
        rf"right$",
    )
    refused(write(root / "img", PLAIN), rf"stream\.root={root} looks right$")
    rows = [row.replace(".png,a", ".jpg,a") for row in lines_of()]
    refused(
        write(root, "\n".join(rows)), r"line 2: there is no file img/0\.jpg in .* \(10 of 20 rows"
    )


def test_a_class_that_cannot_be_divided(root):
    rows = [*lines_of(19), "img/19.png,c"]
    refused(
        write(root, "\n".join(rows)),
        r"line 21: class c has a single image, so that none can be drawn for testing",
    )
    rows = ["path,label,task", "img/0.png,a,1", "img/1.png,a,2", "img/2.png,b,1", "img/3.png,b,1"]
    refused(
        write(root, "\n".join(rows)), r"line 2: class a has a single image in each task, so that"
    )


@pytest.mark.parametrize(("split", "other"), [("train", "test"), ("test", "train")])
def test_a_table_of_one_split(root, split, other):
    text = PLAIN.replace(f",{other}\n", f",{split}\n")
    refused(
        write(root, text),
        rf"no row has split {other}; name some, or leave the column out and a part of each class",
    )


def tasks_of(*tasks: str) -> str:
    rows = PLAIN.splitlines()
    return "\n".join(f"{row},{task}" for row, task in zip(rows, ("task", *tasks), strict=True))


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (
            ("1", "", "1", "1"),
            r"line 3: a train row without a task, where other rows have one; every row needs a "
            r"task, or",
        ),
        (("1", "2", "1", ""), r"line 5: a test row without a task, where other rows have one"),
        (("", "", "1", "2"), r"line 2: a train row without a task"),
        (
            ("2", "1", "1", "1"),
            r"line 4: tests class dog in task 1, but its first training image comes "
            r"in task 2; give",
        ),
    ],
)
def test_tasks_are_said_of_all_rows_or_of_training_rows(root, tasks, message):
    refused(write(root, tasks_of(*tasks)), message)


def test_drawn_splits_need_all_tasks(root):
    rows = lines_of(columns="path,label,task", tasks=True)
    rows[7] = rows[7][:-1]
    refused(write(root, "\n".join(rows)), r"line 8: a (train|test) row without a task")


def test_tasks_without_images_are_refused(root):
    with pytest.raises(
        UserError, match=r"every task needs at least one training image, task 2 \(3\) has none"
    ):
        build_stream(
            table.load(write(root, tasks_of("1", "1", "1", "3"))),
            image_size=16,
            seed=0,
            num_tasks=None,
        )
    with pytest.raises(
        UserError, match=r"stream\.num_tasks=3, but stream table comes in 2 tasks of its own"
    ):
        build_stream(
            table.load(write(root, tasks_of("1", "2", "", ""))), image_size=16, seed=0, num_tasks=3
        )


def test_broken_images_are_named(root):
    (root / "img" / "3.png").write_bytes(b"no image")
    source = table.load(write(root, PLAIN))
    with pytest.raises(UserError, match=r"stream table: cannot read image .*/img/3\.png"):
        preload_images(source)
