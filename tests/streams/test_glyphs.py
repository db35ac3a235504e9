from __future__ import annotations

import hashlib
import time
import unicodedata
from pathlib import Path

import numpy
import pytest

from smope.config.hydra import compose
from smope.config.overrides import read_overrides
from smope.run.build import make_stream
from smope.streams import glyphs
from smope.streams.pixels.glyph_rendering import (
    DIGITS,
    FACES,
    STREAM_CHARACTERS,
    bitmap,
    bitmap_key,
    code_points,
    is_candidate,
    pretraining_characters,
    shows_digit,
)
from smope.streams.pixels.preload import preload_images

EMBEDDED = Path(glyphs.__file__).resolve().parents[1] / "backbones" / "embedded"


@pytest.fixture(scope="module")
def source():
    return glyphs.load()


@pytest.fixture(scope="module")
def pretraining():
    return pretraining_characters()


def drawings(characters: str) -> set[bytes]:
    return {
        bitmap_key(bitmap(face, character))
        for face in FACES
        for character in characters
        if ord(character) in code_points(face)
    }


def test_sizes_and_images(source):
    assert source.class_names == tuple(STREAM_CHARACTERS) and len(set(source.class_names)) == 100
    for images, count in ((source.train, 40), (source.test, 20)):
        assert numpy.bincount(images.targets).tolist() == [count] * 100
        pixels = [numpy.asarray(images.pixels(i)) for i in range(0, len(images.targets), 7)]
        assert {p.shape for p in pixels} == {(32, 32, 3)} and {p.dtype for p in pixels} == {
            numpy.dtype("uint8")
        }
        # bright ink, dark ground
        assert all(p.max() > 128 and numpy.median(p) < 64 for p in pixels)


def test_no_two_images_are_the_same(source):
    images = [
        images.pixels(i).tobytes()
        for images in (source.train, source.test)
        for i in range(len(images.targets))
    ]
    assert len(set(images)) == len(images)


def test_same_images_every_time_and_soon(source):
    started = time.process_time()
    again = glyphs.load()
    # about one second alone; the rest is for a busy machine
    assert time.process_time() - started < 6
    assert preload_images(again).content_hash == preload_images(source).content_hash
    assert again.train.pixels(123).tobytes() == source.train.pixels(123).tobytes()


def test_train_and_test_faces_differ():
    assert not set(glyphs.TRAIN_FACES) & set(glyphs.TEST_FACES)
    assert {*glyphs.TRAIN_FACES, *glyphs.TEST_FACES} <= set(FACES)
    train = {bitmap_key(bitmap(face, c)) for face in glyphs.TRAIN_FACES for c in STREAM_CHARACTERS}
    test = {
        bitmap_key(bitmap(face, c))
        for face in glyphs.TEST_FACES
        for c in STREAM_CHARACTERS
        if ord(c) in code_points(face)
    }
    assert not train & test


def test_stream_characters_are_drawn_apart():
    for face in FACES:
        drawn = [
            bitmap_key(bitmap(face, c)) for c in STREAM_CHARACTERS if ord(c) in code_points(face)
        ]
        assert len(set(drawn)) == len(drawn) >= 96


def test_no_digits_in_the_stream():
    assert not any(map(shows_digit, STREAM_CHARACTERS))
    assert not drawings(STREAM_CHARACTERS) & drawings(DIGITS)


@pytest.mark.parametrize("character", "7²½Ⅳ⑨٣㏠₁𝟗⒈")
def test_numbers_are_recognised(character):
    assert shows_digit(character) and not is_candidate(character)


@pytest.mark.parametrize("character", "ΩжɣА→")
def test_letters_and_symbols_are_no_numbers(character):
    assert not shows_digit(character) and is_candidate(character)


@pytest.mark.parametrize("character", ["♳", "Å", "Ⓐ", "⠿", "═", "\u0301", "\ue000", " "])
def test_other_characters_that_are_not_used(character):
    assert not is_candidate(character)


def test_pretraining_never_saw_digits_or_the_stream(pretraining):
    used = [(face, character) for group in pretraining for face, character in group]
    assert len(pretraining) >= 500
    characters = {character for _, character in used}
    assert not characters & set(STREAM_CHARACTERS)
    for character in characters:
        assert unicodedata.numeric(character, None) is None
        assert not any(part.isdigit() for part in unicodedata.normalize("NFKD", character))
    seen = {bitmap_key(bitmap(face, character)) for face, character in used}
    assert len(seen) == len(used)  # no drawing twice, neither in a class nor in two
    assert not seen & drawings(DIGITS)
    assert not seen & drawings(STREAM_CHARACTERS)


def test_pretraining_drawings_are_real(pretraining):
    missing = {bitmap_key(bitmap(face, "\uffff")) for face in FACES}
    for group in pretraining[::20]:
        for face, character in group:
            image = bitmap(face, character)
            assert ord(character) in code_points(face) and max(image.shape) >= 16
            assert bitmap_key(image) not in missing


def test_configured_stream(source):
    stream = make_stream(compose(read_overrides(["stream=glyphs"])), image_size=32)
    assert stream.name == source.name
    assert [len(task.classes) for task in stream.tasks] == [10] * 10
    assert [len(task.train) for task in stream.tasks] == [400] * 10
    assert [len(task.test) for task in stream.tasks] == [200] * 10
    image, label = stream.tasks[3].train[0]
    assert tuple(image.shape) == (3, 32, 32) and label in stream.tasks[3].classes


def test_card_describes_the_weights():
    weights = (EMBEDDED / "glyph_vit.safetensors").read_bytes()
    assert len(weights) < 8 * 10**6
    assert hashlib.sha256(weights).hexdigest() in (EMBEDDED / "README.md").read_text(
        encoding="utf-8"
    )


def test_card_counts_the_classes(pretraining):
    drawings_used = sum(len(group) for group in pretraining)
    card = (EMBEDDED / "README.md").read_text(encoding="utf-8")
    if f"{drawings_used:,} drawings of {len(pretraining)} classes" not in card:
        pytest.skip(
            "this matplotlib, Pillow or Python draws or knows other characters than the ones of "
            "the card"
        )
