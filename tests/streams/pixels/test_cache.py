"""Decoded images on disk: the same numbers with and without, nothing stale, nothing half-written,
nothing endless.
"""

from __future__ import annotations

import errno
import logging
import os
import pickle
import threading
import time
from pathlib import Path

import numpy
import pytest
import torch

from smope.errors import UserError
from smope.streams.pixels import cache as caching
from smope.streams.pixels import preload
from smope.streams.pixels.cache import CachedImage, PixelCache, cache_folder
from smope.streams.pixels.preload import PreloadedSource, preload_images
from smope.streams.source import ImageSet, Source
from smope.streams.stream import build_stream
from smope.training.loading import choose_workers
from smope.training.trainer import Trainer
from tests.contracts.conftest import make_method
from tests.tiny import tiny_backbone, tiny_settings

LIMIT = 10**6


@pytest.fixture
def source(tmp_path: Path, write_image) -> Source:
    """Two classes, of unequal sizes: eight paths to train on, six images in bytes to test."""
    paths = [write_image(tmp_path / "photos" / f"{i}.png", i, 20 + i, 30 - i) for i in range(8)]
    contents = [
        write_image(tmp_path / "photos" / f"t{i}.jpg", 10 + i, 25, 19).read_bytes()
        for i in range(6)
    ]
    return Source(
        "photos", ("cat", "dog"), ImageSet([0, 1] * 4, paths), ImageSet([0, 1] * 3, contents)
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PixelCache:
    """Nothing stays in memory."""
    monkeypatch.setattr(preload, "MEMORY_LIMIT_BYTES", 0)
    return PixelCache(tmp_path / "cache", LIMIT)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what is decoded, wherever it is."""
    names: list[str] = []

    def watched(module) -> None:
        decode = module.decode

        def note(image, name=None):
            names.append(name)
            return decode(image, name)

        monkeypatch.setattr(module, "decode", note)

    watched(preload)
    watched(caching.decode)
    return names


def files(cache: PixelCache) -> list[Path]:
    return sorted(cache.folder.iterdir())


def assert_same(found: PreloadedSource, source: Source) -> None:
    plain = preload_images(source)
    assert found.content_hash == plain.content_hash
    for split in ("train", "test"):
        ours, theirs = getattr(found.source, split), getattr(source, split)
        assert list(ours.targets) == list(theirs.targets)
        assert all(numpy.array_equal(ours.pixels(i), theirs.pixels(i)) for i in range(len(theirs)))


def kinds(found: PreloadedSource) -> set[type]:
    return {
        type(image) for split in (found.source.train, found.source.test) for image in split.images
    }


def test_the_second_time_nothing_is_decoded(source, cache, decoded) -> None:
    first = preload_images(source, cache=cache)
    assert len(decoded) == 14 and kinds(first) == {CachedImage}
    decoded.clear()
    second = preload_images(source, cache=cache)
    pixels = [second.source.train.pixels(i) for i in range(8)]
    assert decoded == [] and kinds(second) == {CachedImage} and len(pixels) == 8
    assert_same(first, source)
    assert_same(second, source)
    assert [path.suffix for path in files(cache)] == [".pixels"]
    assert second.source.train.name(3) == str(source.train.images[3])


def test_small_sets_are_in_memory_as_ever(source, cache, decoded, monkeypatch) -> None:
    preload_images(source, cache=cache)
    decoded.clear()
    monkeypatch.setattr(preload, "MEMORY_LIMIT_BYTES", 2**20)
    found = preload_images(source, cache=cache)
    assert decoded == [] and kinds(found) == {numpy.ndarray}
    assert_same(found, source)


@pytest.mark.parametrize("change", ["content", "decoder"])
def test_a_stale_file_is_never_used(source, cache, write_image, monkeypatch, change) -> None:
    preload_images(source, cache=cache)
    if change == "content":
        write_image(source.train.images[2], 99, 22, 28)  # the same name, place and shape
    else:
        monkeypatch.setattr(caching.Image, "__version__", "0.1")
        cache = PixelCache(cache.folder, LIMIT)
    found = preload_images(source, cache=cache)
    assert len(files(cache)) == 2
    assert_same(found, source)


def test_training_gets_the_same_numbers(source, cache) -> None:
    """Bit for bit, matrix, weights and statistics: decoded each time, written to the cache, and
    read from it.
    """

    def trained(**options) -> tuple[list, dict]:
        torch.manual_seed(0)
        stream = build_stream(source, image_size=32, seed=0, num_tasks=2, **options)
        settings = tiny_settings(batch_size=2, epochs=2)
        trainer = Trainer(
            make_method("smope", tiny_backbone(), 2),
            stream,
            settings,
            seed=0,
            device=torch.device("cpu"),
        )
        trainer.fit()
        return trainer.history.accuracy_matrix, trainer.method.trained_state()

    matrix, state = trained()
    for _ in range(2):
        again, cached = trained(cache_gb=1.0, cache_dir=str(cache.folder))
        assert again == matrix
        assert all(torch.equal(cached[key], state[key]) for key in state)
    assert len(files(cache)) == 1


@pytest.mark.parametrize("damage", ["cut", "index", "head", "empty"])
def test_a_damaged_file_is_written_again(source, cache, caplog, damage) -> None:
    preload_images(source, cache=cache)
    (path,) = files(cache)
    whole = path.read_bytes()
    path.write_bytes(
        {
            "cut": whole[:-100],
            "index": whole[:-1] + bytes([whole[-1] ^ 1]),
            "head": b"x" + whole[1:],
            "empty": b"",
        }[damage]
    )
    with caplog.at_level(logging.WARNING):
        found = preload_images(source, cache=cache)
    assert "is damaged" in caplog.text
    assert_same(found, source)
    assert path.read_bytes() == whole


def test_a_damaged_pixel_is_found_when_it_is_read(source, cache, caplog) -> None:
    preload_images(source, cache=cache)
    (path,) = files(cache)
    content = bytearray(path.read_bytes())
    content[caching.HEAD.size + 5] ^= 1  # of the first image
    path.write_bytes(content)
    found = preload_images(source, cache=cache)
    with caplog.at_level(logging.WARNING):
        assert_same(found, source)
        assert_same(found, source)
    assert caplog.text.count("was damaged and has been removed") == 1
    assert files(cache) == []
    assert_same(preload_images(source, cache=cache), source)
    assert len(files(cache)) == 1


@pytest.mark.parametrize("call", ["write", "truncate"])
def test_a_full_disk_costs_the_cache_and_nothing_else(
    call, source, cache, caplog, monkeypatch
) -> None:
    """Also where what is buffered has to be written because the limit is passed."""
    if call == "truncate":
        monkeypatch.setattr(cache, "limit", 4000)
        monkeypatch.setattr(
            cache, "writer", lambda path, _: caching.PixelWriter(cache, path, with_pixels=True)
        )

    class Full:
        def __init__(self, file) -> None:
            self.file = file

        def write(self, content) -> None:
            if call == "write" and self.file.tell() > 2000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.file.write(content)

        def truncate(self) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def __getattr__(self, name):
            return getattr(self.file, name)

    opened = Path.open

    def open_full(path: Path, mode: str = "r", **keys):
        file = opened(path, mode, **keys)
        return Full(file) if mode == "wb" else file

    monkeypatch.setattr(Path, "open", open_full)
    with caplog.at_level(logging.WARNING):
        found = preload_images(source, cache=cache)
    assert (
        caplog.text.count(
            "cannot be written (No space left on device); training continues without it"
        )
        == 1
    )
    assert files(cache) == []
    assert CachedImage not in kinds(found)
    assert_same(found, source)


def test_a_folder_that_cannot_be_made_is_said_once(source, tmp_path, caplog, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        found = preload_images(source, cache=PixelCache(tmp_path / "file" / "cache", LIMIT))
    assert caplog.text.count("training continues without it") == 1
    assert_same(found, source)


def test_the_least_recently_used_goes_first(source, cache) -> None:
    parts = [
        Source("part", source.class_names, source.train.choose([i, i + 1]), ImageSet([], []))
        for i in range(0, 6, 2)
    ]
    preload_images(parts[0], cache=cache)
    size = files(cache)[0].stat().st_size
    cache.limit = 2 * size + 500
    preload_images(parts[1], cache=cache)
    first, second = (
        cache.path(split for split in preload._hash_encoded(part)["train"]) for part in parts[:2]
    )
    for age, path in ((200, first), (100, second)):
        os.utime(path, (time.time() - age,) * 2)
    preload_images(parts[0], cache=cache)  # used: now the younger one
    found = preload_images(parts[2], cache=cache)
    assert first.exists() and not second.exists() and len(files(cache)) == 2
    assert_same(found, parts[2])


def test_what_does_not_fit_leaves_an_index(source, cache, decoded, caplog) -> None:
    """Then images are decoded when they are used, but not at the start."""
    cache.limit = 5000
    with caplog.at_level(logging.WARNING):
        found = preload_images(source, cache=cache)
    assert "more than stream.cache_gb=5e-06: they are not cached" in caplog.text
    assert (
        kinds(found) == {type(source.train.images[0]), bytes}
        and files(cache)[0].stat().st_size < 2000
    )
    decoded.clear()
    found = preload_images(source, cache=cache)
    assert decoded == []
    assert_same(found, source)
    cache.limit = LIMIT
    assert kinds(preload_images(source, cache=cache)) == {CachedImage}, "the limit was raised"


def test_sizes_that_were_guessed_too_small_leave_an_index_too(source, cache, monkeypatch) -> None:
    monkeypatch.setattr(preload, "_expected_bytes", lambda source: 0)
    cache.limit = 5000
    found = preload_images(source, cache=cache)
    assert CachedImage not in kinds(found) and files(cache)[0].stat().st_size < 2000
    assert_same(found, source)


def test_half_of_what_is_free_stays_free(source, cache, caplog, monkeypatch) -> None:
    monkeypatch.setattr(caching, "_free_bytes", lambda folder: 10_000.0)
    with caplog.at_level(logging.WARNING):
        assert CachedImage not in kinds(preload_images(source, cache=cache))
    assert "more than half of what is free in" in caplog.text


def test_two_at_once_are_fine(source, cache) -> None:
    found: list[PreloadedSource] = []
    threads = [
        threading.Thread(target=lambda: found.append(preload_images(source, cache=cache)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and len(files(cache)) == 1
    for contents in found:
        assert_same(contents, source)


def test_an_interrupted_start_leaves_nothing(source, cache, monkeypatch) -> None:
    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(caching.PixelWriter, "add", interrupt)
    with pytest.raises(KeyboardInterrupt):
        preload_images(source, cache=cache)
    assert files(cache) == []


def test_what_a_killed_process_left_is_removed_after_a_day(source, cache) -> None:
    cache.folder.mkdir()
    old, young = cache.folder / ".a.pixels.1.tmp", cache.folder / ".b.pixels.2.tmp"
    for path in (old, young):
        path.write_text("half")
    os.utime(old, (time.time() - 2 * 24 * 3600,) * 2)
    preload_images(source, cache=cache)
    assert not old.exists() and young.exists()


def test_broken_images_are_still_named_and_skipped(source, cache) -> None:
    preload_images(source, cache=cache)
    source.train.images[1].write_text("no image")
    for _ in range(2):  # without and with a file of its own
        with pytest.raises(UserError, match=r"cannot read image .*/1\.png: not a known image"):
            preload_images(source, cache=cache)
        found = preload_images(source, "skip", cache)
        assert found.skipped == (str(source.train.images[1]),)
        assert_same(
            found,
            Source(
                "photos", source.class_names, source.train.choose([0, *range(2, 8)]), source.test
            ),
        )
    os.unlink(source.train.images[1])
    with pytest.raises(UserError, match=r"cannot read image .*/1\.png: .*No such file"):
        preload_images(source, cache=cache)


def test_other_processes_map_it_themselves(source, cache) -> None:
    kept = preload_images(source, cache=cache).source.train
    kept.pixels(0)
    sent = pickle.dumps(kept)
    assert len(sent) < 10_000, "no pixels are sent"
    assert numpy.array_equal(pickle.loads(sent).pixels(0), source.train.pixels(0))


def test_mapped_images_have_workers_on_an_accelerator_alone(source, cache) -> None:
    stream = build_stream(
        source,
        image_size=8,
        seed=0,
        num_tasks=2,
        cache_gb=1.0,
        cache_dir=str(cache.folder),
        class_order="sorted",
    )
    images = stream.tasks[0].train
    assert choose_workers(None, images, torch.device("cpu")) == 0
    assert choose_workers(None, images, torch.device("cuda")) > 0


def test_pixels_need_no_cache(cache) -> None:
    arrays = ImageSet(
        [0, 1], [numpy.zeros((4, 4, 3), numpy.uint8), numpy.ones((4, 4, 3), numpy.uint8)]
    )
    preload_images(Source("arrays", ("a", "b"), arrays, arrays), cache=cache)
    assert not cache.folder.exists()


def test_where_it_is(tmp_path, monkeypatch) -> None:
    assert cache_folder("~/kept") == Path.home() / "kept"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / "smope" / "images"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder(None) == Path.home() / ".cache" / "smope" / "images"


def test_an_index_alone_is_kept_where_the_disk_has_no_room_for_pixels(
    source, cache, decoded, monkeypatch
) -> None:
    monkeypatch.setattr(caching, "_free_bytes", lambda folder: 10)
    preload_images(source, cache=cache)
    decoded.clear()
    preload_images(source, cache=cache)
    assert decoded == []
    monkeypatch.setattr(caching, "_free_bytes", lambda folder: 10**9)
    assert CachedImage in kinds(preload_images(source, cache=cache)), "there is room now"
