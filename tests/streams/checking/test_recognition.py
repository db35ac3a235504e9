"""Which stream a folder looks like, from small trees with the marks of each layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from smope.errors import UserError
from smope.streams.checking.recognition import recognise


@pytest.fixture
def tree(tmp_path: Path) -> Callable[..., Path]:
    def make(*files: str) -> Path:
        for file in files:
            path = tmp_path / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("files", "inside", "stream"),
    [
        (["train/cat/1.png", "test/cat/1.png"], "", "folder"),
        (
            ["photo/train/cat/1.png", "photo/test/cat/1.png", "sketch/train/cat/1.png"],
            "",
            "domains",
        ),
        (["labels.csv"], "labels.csv", "table"),
        (["cat/1.png", "dog/1.jpg", "fox/older/1.jpg", "notes.txt"], "", "folder"),
        (["train/1.png", "car/1.png"], "", "folder"),
        (["CUB_200_2011/images.txt"], "", "cub200"),
        (["CUB_200_2011/images.txt"], "CUB_200_2011", "cub200"),
        (["cifar-100-python/train"], "", "cifar100"),
        (["cifar-100-python/train"], "cifar-100-python", "cifar100"),
        (
            ["tiny-imagenet-200/wnids.txt", "tiny-imagenet-200/train/n01443537/1.JPEG"],
            "",
            "tiny_imagenet",
        ),
        (["wnids.txt", "train/n01443537/1.JPEG", "test/images/1.JPEG"], "", "tiny_imagenet"),
        (["imagenet-r/README.txt"], "", "imagenet_r"),
        (["imagenet-a/README.txt"], "", "imagenet_a"),
        (["README.txt", "n01443537/1.jpg", "n01498041/1.jpg"], "", "imagenet_r"),
        (["README.txt", "n01498041/1.jpg", "n01531178/1.jpg"], "", "imagenet_a"),
    ],
)
def test_layouts_are_recognised_by_their_marks(
    files: list[str], inside: str, stream: str, tree: Callable[..., Path]
) -> None:
    found, mark = recognise(tree(*files) / inside)
    assert found == stream
    assert mark


def test_parquet_files_by_their_columns(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    path.parent.mkdir()
    parquet.write_table(arrow.table({"img": [b""], "fine_label": [1]}), path)
    assert recognise(tmp_path) == ("cifar100", "parquet files")
    parquet.write_table(arrow.table({"image": [b""], "label": [1]}), path)
    with pytest.raises(
        UserError, match=r"say which with stream=imagenet_r \(parquet files\) or .*stream=cub200"
    ):
        recognise(tmp_path)
    path.write_bytes(b"torn")
    with pytest.raises(UserError, match="may be several data sets"):
        recognise(tmp_path)


def test_several_data_sets_are_a_question(tree: Callable[..., Path]) -> None:
    root = tree("imagenet-r/README.txt", "CUB_200_2011/images.txt")
    choices = r"stream=cub200 \(CUB_200_2011/images.txt\) or stream=imagenet_r \(imagenet-r/\)"
    with pytest.raises(
        UserError, match=rf"ROOT={root} may be several data sets; say which with {choices}"
    ):
        recognise(root)


def test_other_folders_of_imagenet_are_a_question(tree: Callable[..., Path]) -> None:
    with pytest.raises(
        UserError, match=r"stream=imagenet_r \(folders n########\) or stream=imagenet_a"
    ):
        recognise(tree("n99999999/1.jpg"))
    with pytest.raises(UserError, match=r"imagenet_a .* or stream=folder \(class folders\)$"):
        recognise(tree("n99999999/1.jpg", "n99999998/1.jpg"))


@pytest.mark.parametrize(
    ("files", "inside", "message"),
    [
        (["a/1.png"], "nowhere", r"ROOT=.*nowhere does not exist; check the path"),
        (
            ["photos/.hidden"],
            "photos",
            r"it is empty; recognised are train/<class>/.* say stream=NAME for others",
        ),
        (["a.txt"], "a.txt", r"it is a file; recognised are"),
        (["cat/1.png", "notes/1.txt"], "", r"it holds cat, notes; recognised are"),
        (
            ["photos/cat/1.png", "photos/dog/1.png"],
            "",
            r"it holds photos; ROOT=.*/photos looks right",
        ),
        (["train/cat/1.png", "test/cat/1.png"], "train", r"it holds cat; ROOT=.*looks right"),
        (
            ["x/train/cat/1.png", "x/test/cat/1.png", "other/1.txt"],
            "",
            r"it holds other, x; ROOT=.*/x looks right",
        ),
        (["train/1.png", "val/1.png"], "", r"it holds train, val; recognised are"),
    ],
)
def test_what_is_not_recognised(
    files: list[str], inside: str, message: str, tree: Callable[..., Path]
) -> None:
    with pytest.raises(UserError, match=message):
        recognise(tree(*files) / inside)
