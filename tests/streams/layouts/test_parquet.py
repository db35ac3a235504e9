"""Reading the Hub's parquet files, whatever the data set."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet as arrow

from smope.errors import UserError
from smope.streams.layouts import parquet

LABELS = {"wnid": str, "label": int}


def write(
    path: Path, columns: dict[str, list], names: list[str] | None = None, label: str = "label"
) -> Path:
    table = pyarrow.table(columns)
    if names is not None:
        info = {"info": {"features": {label: {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata(
            {b"huggingface": json.dumps(info).encode(), b"other": b"1"}
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    arrow.write_table(table, path)
    return path


def refused(text: str) -> UserError:
    return UserError(f"refused: {text}")


def read(*files: Path, **options) -> parquet.Rows:
    return parquet.read("here", files, LABELS, refused, **options)


def structs(*contents: bytes | None, path: str | None = None) -> list[dict]:
    return [{"bytes": content, "path": path} for content in contents]


def test_shards_by_split_in_the_first_place_that_has_some(tmp_path):
    assert (
        parquet.shards(tmp_path / "nowhere", ["data"]) == parquet.shards(tmp_path, ["data"]) == {}
    )
    columns = {"image": [b"a"], "label": [0]}
    write(tmp_path / "other" / "train-0.parquet", columns)
    assert parquet.shards(tmp_path, ["data"]) == {}
    late = [write(tmp_path / "data" / f"train-0000{i}-of-00002.parquet", columns) for i in (0, 1)]
    assert parquet.shards(tmp_path, ["data", "other"]) == {"train": late}
    test = write(tmp_path / "data" / "test-00000-of-00001.parquet", columns)
    write(tmp_path / "data" / "validation-00000-of-00001.parquet", columns)
    assert parquet.shards(tmp_path, ["data", "other"]) == {"train": late, "test": [test]}
    here = write(tmp_path / "test-x.parquet", columns)
    assert parquet.shards(tmp_path, ["data", "other"]) == {"test": [here]}


@pytest.mark.parametrize("column", ["img", "image"])
def test_images_as_structs_or_bytes(tmp_path, column):
    with_paths = {column: structs(b"one", b"two", path="there/n1/a.jpg"), "label": [1, 0]}
    first = write(tmp_path / "train-0.parquet", with_paths, ["cat", "dog"])
    second = write(tmp_path / "train-1.parquet", {column: [b"three"], "label": [1]}, ["cat", "dog"])
    rows = read(first, second)
    assert rows.images == [b"one", b"two", b"three"] and rows.labels == [1, 0, 1]
    assert rows.files == ["a.jpg", "a.jpg", None] and rows.class_names == ["cat", "dog"]
    assert rows.names == [f"row 0 of {first}", f"row 1 of {first}", f"row 0 of {second}"]


def test_the_first_label_column_and_texts(tmp_path):
    columns = {"label": [3, 4], "wnid": ["n1", "n2"], "image": [b"one", b"two"]}
    first = write(tmp_path / "train-0.parquet", columns | {"class_name": ["cat", "dog"]})
    rows = read(first, write(tmp_path / "train-1.parquet", columns), texts=["class_name"])
    assert rows.labels == ["n1", "n2", "n1", "n2"] and rows.class_names is None
    assert rows.texts == {"class_name": ["cat", "dog", "", ""]}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"image": [b"a"], "target": [0]},
            r"has columns image, target and not img \(or image\) and wnid \(or label\)",
        ),
        ({"picture": [b"a"], "label": [0]}, r"has columns picture, label and not img"),
        (
            {"image": [b"a", None], "label": [0, 1]},
            r"has rows without image bytes in image or a number in label",
        ),
        ({"image": structs(b"a", None), "label": [0, 1]}, r"has rows without image bytes in image"),
        (
            {"image": ["a.jpg"], "label": [0]},
            r"has rows without image bytes in image or a number in label",
        ),
        ({"image": [b"a"], "label": ["cat"]}, r"or a number in label"),
        ({"image": [b"a"], "label": [0.5]}, r"or a number in label"),
        ({"image": [b"a"], "wnid": [7]}, r"or a text in wnid"),
        ({"image": [b"a", b"b"], "wnid": ["n1", None]}, r"or a text in wnid"),
    ],
)
def test_files_with_other_columns(tmp_path, columns, message):
    path = write(tmp_path / "train-0.parquet", columns)
    with pytest.raises(
        UserError, match=rf"^refused: {path} {message}|^refused: {path} .*{message}"
    ):
        read(path)


def test_damaged_files(tmp_path):
    path = write(tmp_path / "train-0.parquet", {"image": [b"a" * 5000], "label": [0]})
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=rf"^refused: cannot read {path} \(.+\)$") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_files_that_name_their_classes_differently(tmp_path):
    columns = {"image": [b"a"], "label": [0]}
    paths = [
        write(tmp_path / f"train-{i}.parquet", columns, names)
        for i, names in enumerate((["a", "b"], ["b", "a"]))
    ]
    with pytest.raises(
        UserError, match=rf"{paths[1]} and train-0\.parquet name their classes differently"
    ):
        read(*paths)


@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"],
        ["train-00001-of-00002.parquet"],
        ["train-00000-of-00001-aa.parquet", "train-00000-of-00001-bb.parquet"],
        [
            "train-00000-of-00001.parquet",
            "train-00000-of-00002.parquet",
            "train-00001-of-00002.parquet",
        ],
    ],
)
def test_some_of_a_set_of_files(tmp_path, names):
    paths = [write(tmp_path / name, {"image": [b"a"], "label": [0]}) for name in names]
    with pytest.raises(
        UserError,
        match=rf"{tmp_path} has {names[0]}.*, which is not each of \d files once; get the",
    ):
        read(*paths)


def test_without_pyarrow(tmp_path, monkeypatch):
    path = write(tmp_path / "train-0.parquet", {"image": [b"a"], "label": [0]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        UserError,
        match=r"^stream\.root=here holds parquet files, which need pyarrow; install it with",
    ):
        read(path)
