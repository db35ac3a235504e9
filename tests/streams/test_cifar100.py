from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import pickle
import shutil
import sys
import tarfile
from pathlib import Path

import numpy
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from smope.errors import UserError
from smope.streams import cifar100
from smope.streams.pixels.preload import preload_images

NAMES = cifar100.CLASS_NAMES
SEEDS = {"train": 0, "test": 1000}


def labels(split: str) -> list[int]:
    """One image a class, two of class 3 in training, in an order of no meaning."""
    ids = [i * 37 % 100 for i in range(100)]
    return [*ids, 3] if split == "train" else ids


def picture(split: str, row: int) -> numpy.ndarray:
    return numpy.random.default_rng(SEEDS[split] + row).integers(
        0, 256, (32, 32, 3), dtype=numpy.uint8
    )


def png(array: numpy.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def write_python(place: Path, protocol: int = 2) -> Path:
    place = place / "cifar-100-python"
    place.mkdir(parents=True)
    for split in ("train", "test"):
        rows = [picture(split, row).transpose(2, 0, 1).ravel() for row in range(len(labels(split)))]
        table = {
            "data": numpy.stack(rows),
            "fine_labels": labels(split),
            "filenames": ["x"] * len(rows),
        }
        (place / split).write_bytes(pickle.dumps(table, protocol=protocol))
    (place / "meta").write_bytes(pickle.dumps({"fine_label_names": list(NAMES)}, protocol=protocol))
    return place


def write_folders(place: Path) -> Path:
    for split in ("train", "test"):
        for row, label in enumerate(labels(split)):
            path = place / split / NAMES[label] / f"{row:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(picture(split, row)))
    return place


def write_parquet(
    place: Path, names: list[str] | None, column: str = "img", shards: int = 2
) -> Path:
    place.mkdir(parents=True)
    features = {"fine_label": {"names": names, "_type": "ClassLabel"}}
    metadata = (
        {b"huggingface": json.dumps({"info": {"features": features}}).encode()} if names else None
    )
    for split in ("train", "test"):
        ids = [(names or list(NAMES)).index(NAMES[label]) for label in labels(split)]
        images = [{"bytes": png(picture(split, row)), "path": None} for row in range(len(ids))]
        table = pyarrow.table({column: images, "fine_label": ids}).replace_schema_metadata(metadata)
        step = -(-len(ids) // shards)
        for shard in range(shards):
            part = table.slice(shard * step, step)
            parquet.write_table(part, place / f"{split}-{shard:05d}-of-{shards:05d}.parquet")
    return place


def check(source) -> None:
    assert source.name == "cifar100" and source.class_names == NAMES
    for split, images in (("train", source.train), ("test", source.test)):
        expected = sorted(
            (label, picture(split, row).tobytes()) for row, label in enumerate(labels(split))
        )
        found = [(label, images.pixels(i).tobytes()) for i, label in enumerate(images.targets)]
        assert sorted(found) == expected
        assert all(type(label) is int for label in images.targets)


@pytest.mark.parametrize("protocol", [2, 5])
def test_torchvisions_layout(tmp_path, protocol):
    place = write_python(tmp_path, protocol)
    check(cifar100.load(str(tmp_path)))
    check(cifar100.load(str(place)))
    renamed = place.rename(tmp_path / "other")
    check(cifar100.load(str(renamed)))


def test_class_folders(tmp_path):
    check(cifar100.load(str(write_folders(tmp_path))))


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    write_parquet(tmp_path / "data", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(
        tmp_path, r"holds parquet files, which need pyarrow; install it with pip install pyarrow"
    )


@pytest.mark.parametrize("names", [None, list(NAMES), sorted(NAMES, key=lambda name: name[::-1])])
def test_parquet(tmp_path, names):
    write_parquet(tmp_path / "data", names, "img" if names else "image")
    check(cifar100.load(str(tmp_path)))
    check(cifar100.load(str(tmp_path / "data")))
    shutil.move(tmp_path / "data", tmp_path / "cifar100")
    check(cifar100.load(str(tmp_path)))


def test_hash_is_independent_of_path_and_order(tmp_path):
    def content_hash(place: Path) -> str:
        return preload_images(cifar100.load(str(place))).content_hash

    digests = {content_hash(write_python(tmp_path / name)) for name in ("a", "b")}
    names = list(NAMES)
    for directory, order, shards in (("c", names, 1), ("d", names[::-1], 3)):
        digests.add(content_hash(write_parquet(tmp_path / directory, order, shards=shards)))
    assert len(digests) == 2


def refused(place: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        cifar100.load(str(place))
    assert str(caught.value).startswith(f"stream.root={place} ") and "\n" not in str(caught.value)


def test_wrong_directories_are_refused(tmp_path):
    refused(
        tmp_path / "nowhere",
        r"does not exist .*; stream\.download=true fetches https://.* \(169 MB\)",
    )
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"is empty; .*stream\.download=true fetches")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"is a file, not a directory"):
        cifar100.load(str(tmp_path / "file"), download=True)
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "notes.txt").write_text("")
    refused(
        tmp_path / "wrong",
        r"is no complete CIFAR-100: it holds notes\.txt; accepted are torchvision's "
        r"cifar-100-python/ "
        r"\(files train, test, meta\), class folders train/<class>/ and test/<class>/, or parquet "
        r"files",
    )
    (tmp_path / "wrong" / "cifar-100-python.tar.gz").write_bytes(b"")
    refused(tmp_path / "wrong", r"unpack cifar-100-python\.tar\.gz")


def test_wrong_levels_name_the_right_one(tmp_path):
    python, folders = write_python(tmp_path / "a" / "b").parent, write_folders(tmp_path / "a" / "c")
    tables = write_parquet(tmp_path / "d" / "data", None).parent
    refused(tmp_path / "a", rf"stream\.root={python} or {folders} looks right")
    refused(folders / "train" / "apple", rf"stream\.root={folders} looks right")
    refused(tmp_path, rf"stream\.root={tables} looks right")


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_partial_torchvision_layout(tmp_path, name):
    (write_python(tmp_path) / name).unlink()
    refused(tmp_path, rf"cifar-100-python holds .* but no file {name}; accepted are")


def test_damaged_torchvision_layout(tmp_path):
    place = write_python(tmp_path)
    whole = (place / "train").read_bytes()
    (place / "train").write_bytes(whole[:1000])
    refused(tmp_path, r"cannot read .*train \(")
    (place / "train").write_bytes(pickle.dumps([1]))
    refused(tmp_path, r"train holds no dictionary")
    (place / "train").write_bytes(
        pickle.dumps({"data": numpy.zeros((2, 5), numpy.uint8), "fine_labels": [0, 1]})
    )
    refused(tmp_path, r"train has no uint8 array `data` of 3,072 columns")
    (place / "train").write_bytes(
        pickle.dumps({"data": numpy.zeros((2, 3072), numpy.uint8), "fine_labels": [0]})
    )
    refused(tmp_path, r"train has no list `fine_labels` with a label a row")
    (place / "train").write_bytes(
        pickle.dumps({"data": numpy.zeros((2, 3072), numpy.uint8), "fine_labels": [0, 1]})
    )
    refused(tmp_path, r"train has 2 different class ids instead of each of 0 to 99")
    (place / "train").write_bytes(whole)
    (place / "meta").write_bytes(pickle.dumps({"fine_label_names": ["a", "b"]}))
    refused(tmp_path, r"it names 2 classes instead of 100")


class _Harm:
    def __reduce__(self):
        return print, ("harm done",)


def test_pickles_run_no_code(tmp_path, capsys):
    place = write_python(tmp_path)
    (place / "meta").write_bytes(pickle.dumps(_Harm()))
    refused(tmp_path, r"cannot read .*meta \(it asks for builtins\.print, which is no data\)")
    assert "harm done" not in capsys.readouterr().out


def test_partial_class_folders(tmp_path):
    write_folders(tmp_path)
    shutil.rmtree(tmp_path / "test" / "apple")
    refused(
        tmp_path,
        r"it holds 99 class folders in test, without apple \(stream=folder takes any classes\); "
        r"accepted",
    )
    (tmp_path / "train" / "apple").rename(tmp_path / "train" / "Apfel")
    refused(tmp_path, r"100 class folders in train, without apple, with unknown Apfel")


def test_partial_parquet(tmp_path):
    place = write_parquet(tmp_path / "data", None, shards=1)
    path = next(place.glob("test-*"))
    table = parquet.read_table(path)
    path.unlink()
    refused(tmp_path, r"data holds train-00000-of-00001\.parquet but no test-\*\.parquet; accepted")
    path.write_bytes(b"no parquet")
    refused(tmp_path, r"cannot read .*test-00000-of-00001\.parquet \(")
    parquet.write_table(table.rename_columns(["img", "label"]), path)
    refused(tmp_path, r"has columns img, label and not img \(or image\) and fine_label")
    parquet.write_table(table.slice(0, 60), path)
    refused(tmp_path, r"test has 60 different class ids instead of each of 0 to 99")
    parquet.write_table(table.set_column(0, "img", pyarrow.array([None] * 100)), path)
    refused(tmp_path, r"has rows without image bytes in img or a number in fine_label")
    parquet.write_table(
        table.set_column(0, "img", pyarrow.array([{"bytes": b"no image"}] * 100)), path
    )
    with pytest.raises(
        UserError, match=r"cannot read image row 0 of .*test-00000-of-00001\.parquet"
    ):
        preload_images(cifar100.load(str(tmp_path)))


def test_half_a_set_of_shards(tmp_path):
    place = write_parquet(tmp_path / "data", None)
    (place / "train-00001-of-00002.parquet").unlink()
    refused(
        tmp_path,
        r"data has train-00000-of-00002\.parquet, which is not each of 2 files once; get the "
        r"missing",
    )


def write_archive(root: Path) -> Path:
    """The archive as it is downloaded."""
    python = write_python(root / "aside")
    path = root / "cifar-100-python.tar.gz"
    with tarfile.open(path, "w:gz") as whole:
        whole.add(python, python.name)
    shutil.rmtree(root / "aside")
    return path


def test_the_archive_is_unpacked_only_when_asked(tmp_path, monkeypatch):
    path = write_archive(tmp_path)
    content = path.read_bytes()
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    archive = dataclasses.replace(cifar100.DATASET.archive, md5=md5, size=len(content))
    monkeypatch.setattr(cifar100, "DATASET", dataclasses.replace(cifar100.DATASET, archive=archive))
    refused(
        tmp_path,
        r"stream\.download=true fetches https://www\.cs\.toronto\.edu/.*python\.tar\.gz \(\d+ "
        r"MB\) into",
    )
    assert not (tmp_path / "cifar-100-python").exists()
    check(cifar100.load(str(tmp_path), download=True))
    path.write_bytes(b"not looked at any more")
    check(cifar100.load(str(tmp_path), download=True))


def test_a_wrong_archive_is_refused(tmp_path):
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(b"half")
    with pytest.raises(
        UserError, match=r"cifar-100-python\.tar\.gz has 4 bytes instead of 169,001,437"
    ):
        cifar100.load(str(tmp_path), download=True)
