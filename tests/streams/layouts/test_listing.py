"""What lies among a user's images and is none of them is left out, and counted."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from smope.cli.main import main
from smope.errors import UserError
from smope.serving.files import find_images
from smope.streams import domains, folder
from smope.streams.layouts.listing import Listing
from smope.streams.layouts.service_names import service_name
from smope.streams.pixels import formats
from smope.streams.stream import build_stream

FOLDERS = (
    "@eaDir", "#recycle", "@Recycle", "#snapshot", "__MACOSX", ".ipynb_checkpoints", ".thumbnails",
    "$RECYCLE.BIN", "$Recycle.Bin", "System Volume Information", ".stfolder", ".dropbox.cache",
    "lost+found", ".@__thumb", "Catalog Previews.lrdata", "__pycache__",
)  # fmt: skip
FILES = ("._0.png", "._0.jpg", ".hidden.png", "~$0.png")
Write = Callable[..., Path]


@pytest.fixture
def root(tmp_path: Path, write_image: Write) -> Path:
    for number, name in enumerate(("cat", "dog")):
        for i in range(3):
            write_image(tmp_path / "photos" / "train" / name / f"{i}.png", 10 * number + i)
        write_image(tmp_path / "photos" / "test" / name / "9.png", 10 * number + 9)
    return tmp_path / "photos"


@pytest.fixture
def without_heif(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if pillow-heif were not installed."""
    for name in [name for name in sys.modules if name.startswith("pillow_heif")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    readable = {end: name for end, name in Image.EXTENSION.items() if name != "HEIF"}
    monkeypatch.setattr(Image, "EXTENSION", readable)
    formats.formats.cache_clear()
    formats.suffixes.cache_clear()
    yield
    formats.formats.cache_clear()
    formats.suffixes.cache_clear()


def litter(directory: Path, write_image: Write) -> int:
    """Put service files and folders with pictures in them into a folder; how many."""
    for name in FOLDERS:
        write_image(directory / name / "x.png", 77)
        write_image(directory / name / "cat" / "x.png", 77)
    for name in FILES:
        write_image(directory / name, 78)
    (directory / "Thumbs.db").write_bytes(b"x")
    (directory / "desktop.ini").write_bytes(b"x")
    return len(FOLDERS) + len(FILES) + 2


@pytest.mark.parametrize("level", [".", "train", "test", "train/cat", "test/dog", "train/cat/more"])
def test_service_files_are_skipped_at_every_level(
    root: Path, level: str, write_image: Write
) -> None:
    write_image(root / "train" / "cat" / "more" / "1.png", 50)
    clean = folder.load(str(root))
    assert clean.left_out.facts() == {}
    number = litter(root / level, write_image)
    source = folder.load(str(root))
    assert source.class_names == clean.class_names
    assert source.train.images == clean.train.images and source.test.images == clean.test.images
    assert len(source.left_out.service) == number
    assert source.left_out.service_counts["@eaDir"] == 1
    assert source.left_out.service_counts["._*"] == 2


def test_service_folders_are_no_domains(root: Path, write_image: Write) -> None:
    place = root.parent / "pacs"
    for name in ("photo", "sketch"):
        shutil.copytree(root, place / name)
    clean = domains.load(str(place))
    litter(place, write_image)
    litter(place / "photo" / "train", write_image)
    source = domains.load(str(place))
    assert source.task_names == ("photo", "sketch") and source.class_names == ("cat", "dog")
    assert source.train.images == clean.train.images
    assert source.left_out.service_counts["__MACOSX"] == 2


@pytest.mark.parametrize("name", ["recycled", "thumbs", "cat", "@home", "#1", "thumbnails", "lost"])
def test_words_of_users_are_no_service_names(name: str) -> None:
    assert service_name(name) == ""


def test_predict_skips_the_same(root: Path, write_image: Write) -> None:
    clean = list(find_images([root]))
    litter(root / "train" / "cat", write_image)
    litter(root, write_image)
    assert list(find_images([root])) == clean


def test_patterns_of_the_user(root: Path, write_image: Write) -> None:
    write_image(root / "train" / "cat" / "1_mask.png")
    write_image(root / "train" / "cat" / "old" / "0.png")
    write_image(root / "train" / "dog" / "old" / "0.png")
    write_image(root / "test" / "fox" / "0.png")
    source = folder.load(str(root), exclude=["*_mask.png", "train/dog/old", "fox", "nothing*"])
    names = [path.relative_to(root).as_posix() for path in source.train.images]
    assert "train/cat/old/0.png" in names and len(names) == 7
    assert source.left_out.facts() == {"left_out": {"excluded": 3}}
    (warning,) = source.left_out.warnings()
    assert warning.startswith("stream.exclude: nothing is called nothing*; a pattern is")


def test_excluded_files_are_part_of_the_identity(root: Path) -> None:
    from smope.config.config import validate
    from smope.config.hydra import compose_values
    from smope.config.overrides import read_overrides

    def config_hash(*words: str) -> str:
        overrides = read_overrides(
            ["stream=folder", f"stream.root={root}", "stream.num_tasks=2", *words]
        )
        return validate(compose_values(overrides), overrides.given).config_hash

    assert config_hash() == config_hash("stream.exclude=[]")
    assert config_hash() != config_hash("stream.exclude=[old]")


def forbid(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """A folder that may not be read, whoever runs the tests."""
    scan = os.scandir

    def refuse(path: Any = ".") -> Any:
        if Path(path) == directory:
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)


@pytest.mark.parametrize("level", ["train", "train/cat", "test/dog/more/deep"])
def test_a_folder_that_cannot_be_read_is_named(
    root: Path, level: str, monkeypatch: pytest.MonkeyPatch, write_image: Write
) -> None:
    write_image(root / "test" / "dog" / "more" / "deep" / "1.png", 50)
    forbid(monkeypatch, root / level)
    message = rf"stream\.root={root}: folder {root / level} cannot be read \(Permission denied\); "
    with pytest.raises(UserError, match=message + r".*stream\.exclude=\["):
        folder.load(str(root))
    if "more" in level:
        assert len(folder.load(str(root), exclude=["more"]).test) == 2
    with pytest.raises(UserError, match=rf"IMAGE={root}: folder {root / level} cannot be read"):
        list(find_images([root]))


def test_data_check_names_a_folder_that_cannot_be_read(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forbid(monkeypatch, root / "train" / "cat")
    assert main(["data", "check", str(root)]) == 1
    assert "cannot be read (Permission denied)" in capsys.readouterr().out


def test_links_to_folders_are_counted(root: Path) -> None:
    (root / "train" / "cat" / "more").symlink_to(root / "train" / "dog")
    source = folder.load(str(root))
    assert len(source.train) == 6 and source.left_out.facts() == {"left_out": {"links": 1}}
    assert "1 link to folders within classes not followed" in next(source.left_out.warnings())


def writable_suffixes() -> list[str]:
    """Suffixes of formats that Pillow can write here, which the tests can try."""
    Image.init()
    return sorted(
        suffix
        for suffix in formats.suffixes()
        if Image.registered_extensions()[suffix] in Image.SAVE
    )


@pytest.mark.parametrize("suffix", writable_suffixes())
@pytest.mark.parametrize("upper", [False, True])
def test_files_and_folders_agree_on_what_is_read(
    tmp_path: Path, suffix: str, upper: bool, pixels: Callable[..., Any]
) -> None:
    from smope.streams.pixels.decode import decode

    path = tmp_path / f"picture{suffix.upper() if upper else suffix}"
    mode = {".pbm": "1", ".pgm": "L", ".pfm": "F"}.get(suffix, "RGB")
    kind = Image.registered_extensions()[suffix]
    picture = Image.fromarray(pixels(0)).convert("L" if mode == "F" else "RGB").convert(mode)
    picture.save(path, format=kind)
    assert list(find_images([tmp_path])) == [path]
    if mode != "F":
        assert decode(path).size == (32, 32)


def test_the_usual_suffixes_are_read() -> None:
    usual = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".tif", ".tiff", ".ppm"}
    assert usual | {".mpo", ".webp", ".jp2", ".pgm", ".psd", ".tga"} <= formats.suffixes()
    assert formats.suffixes().isdisjoint({".pdf", ".eps", ".svg", ".mpg", ".ico", ".h5", ".dng"})


def test_pictures_that_are_not_read_are_counted(
    root: Path, without_heif: None, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.heic", "b.HEIC", "c.NEF", "d.svg", "e.txt"):
        shutil.copy(root / "train" / "cat" / "0.png", root / "train" / "cat" / name)
    source = folder.load(str(root))
    assert len(source.train) == 6
    assert source.left_out.suffix_counts == {".heic": 2, ".nef": 1, ".svg": 1}
    with caplog.at_level(logging.WARNING):
        stream = build_stream(source, image_size=16, seed=0, num_tasks=2)
    (record,) = caplog.records
    assert record.getMessage() == (
        "stream folder: 4 pictures are not read: .heic 2, .nef 1, .svg 1 (pip install pillow-heif; "
        "export camera raw files as JPEG or TIFF; export drawings as PNG)"
    )
    assert stream.facts["left_out"] == {"unreadable": {".heic": 2, ".nef": 1, ".svg": 1}}


def test_a_class_of_pictures_that_are_not_read(root: Path, without_heif: None) -> None:
    for path in (root / "test" / "dog").iterdir():
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(UserError, match=r"has no image files .*1 picture is not read: .heic 1 \("):
        folder.load(str(root))
    with pytest.raises(UserError, match=r"no image file in this folder .* .heic 1 \(pip install"):
        list(find_images([root / "test" / "dog"]))


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("a.heic", "pip install pillow-heif"),
        ("a.CR2", "export camera raw files as JPEG or TIFF"),
        ("a.svg", "export drawings as PNG"),
    ],
)
def test_a_file_that_is_not_read_says_what_to_do(
    tmp_path: Path, without_heif: None, name: str, way_out: str
) -> None:
    from smope.streams.pixels.decode import decode

    (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    suffix = Path(name).suffix.lower()
    with pytest.raises(UserError, match=rf"cannot read image .*: {suffix} is not read .*{way_out}"):
        decode(tmp_path / name)


def test_the_preview_of_a_camera_raw_file_is_not_the_picture(tmp_path: Path) -> None:
    """They are TIFF files, which Pillow opens."""
    from smope.streams.pixels.decode import decode

    Image.new("RGB", (4, 4)).save(tmp_path / "a.tiff")
    (tmp_path / "a.tiff").rename(tmp_path / "a.dng")
    with pytest.raises(UserError, match=r"a\.dng: \.dng is not read here \(export camera raw"):
        decode(tmp_path / "a.dng")


def test_heif_is_read_with_its_plugin(tmp_path: Path, pixels: Callable[..., Any]) -> None:
    pytest.importorskip("pillow_heif")
    from smope.streams.pixels.decode import decode

    assert ".heic" in formats.suffixes()
    Image.fromarray(pixels(0)).save(tmp_path / "a.HEIC", quality=90)
    assert list(find_images([tmp_path])) == [tmp_path / "a.HEIC"]
    assert decode(tmp_path / "a.HEIC").size == (32, 32)


def test_data_check_says_what_is_left_out(
    root: Path, without_heif: None, capsys: pytest.CaptureFixture[str], write_image: Write
) -> None:
    number = litter(root / "train" / "cat", write_image)
    shutil.copy(root / "train" / "cat" / "0.png", root / "train" / "cat" / "a.heic")
    assert main(["data", "check", str(root), "--json", "stream.exclude=[old]"]) == 0
    report = json.loads(capsys.readouterr().out)
    unmatched = [item for item in report["findings"] if "nothing is called" in item["text"]]
    assert len(unmatched) == 1 and unmatched[0]["items"] == []
    report["findings"].remove(unmatched[0])
    findings = {finding["kind"]: finding for finding in report["findings"]}
    assert findings["service_files"]["text"].startswith(
        f"{number} files and folders of other programs skipped by name: ._* 2, "
    )
    assert len(findings["service_files"]["items"]) == number
    assert findings["left_out"]["level"] == "warning"
    assert "1 picture is not read: .heic 1" in findings["left_out"]["text"]
    assert "unused_file" not in findings
    assert report["facts"]["left_out"]["unreadable"] == {".heic": 1}


def test_listing_needs_no_root_to_match_names(tmp_path: Path, write_image: Write) -> None:
    write_image(tmp_path / "a" / "b.png")
    write_image(tmp_path / "a" / "c.png")
    listing = Listing(tmp_path, ["a/c*"])
    assert listing.image_files(tmp_path) == [tmp_path / "a" / "b.png"]
    assert listing.left_out.excluded == (tmp_path / "a" / "c.png",)


def test_other_folders_that_cannot_be_read_are_no_empty_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from smope.analysis.loading import find_runs
    from smope.storage.run_directory import RunDirectory
    from smope.streams.layouts import parquet
    from smope.training.checkpoint import list_checkpoints

    for name in ("data", "checkpoints", "runs"):
        (tmp_path / name).mkdir()

    def refuse(path: Any = ".") -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError):
        parquet.shards(tmp_path / "data", ())
    with pytest.raises(PermissionError):
        list_checkpoints(RunDirectory(tmp_path))
    with pytest.raises(UserError, match=rf"folder {tmp_path}/runs cannot be read .*permissions"):
        find_runs([str(tmp_path / "runs")])


def test_a_neighbour_that_cannot_be_read_hides_no_error(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("secret", "other"):
        (root.parent / name / "train").mkdir(parents=True)
    shutil.rmtree(root / "test")
    forbid(monkeypatch, root.parent / "secret")
    with pytest.raises(UserError, match="but no test folder; add one"):
        folder.load(str(root))
