"""What every stream of conf/stream must do; a new one is found by its file.

A stream that reads a folder is tried on small copies of the usual layouts. It has to load one of
them, or refuse each of them in one clear line.
"""

from __future__ import annotations

import importlib
import inspect
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml

from smope.config.conf_files import choices, conf_dir
from smope.errors import UserError
from smope.streams.source import Source
from smope.streams.stream import Stream, build_stream
from tests.streams.class_trees import write_classes
from tests.streams.imagenet_trees import wnids

STREAMS = choices("stream", [conf_dir()])
FETCH = "smope.streams.archives.official_dataset.fetch_archive"
BUILDER_KEYS = set(inspect.signature(build_stream).parameters) - {"source", "image_size", "seed"}

every_stream = pytest.mark.parametrize("name", STREAMS)


@cache
def own_file(name: str) -> dict[str, Any]:
    """The keys that a file of conf/stream has itself."""
    values = yaml.safe_load((conf_dir() / "stream" / f"{name}.yaml").read_text(encoding="utf-8"))
    return {key: value for key, value in values.items() if key != "defaults"}


def loader(name: str) -> Callable[..., Source]:
    module, function = own_file(name)["_target_"].rsplit(".", 1)
    return getattr(importlib.import_module(module), function)


def arguments(name: str) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(loader(name)).parameters)


streams_with_root = pytest.mark.parametrize(
    "name", [name for name in STREAMS if own_file(name).get("root") == "???"]
)
streams_with_download = pytest.mark.parametrize(
    "name", [name for name in STREAMS if "download" in own_file(name)]
)


def class_folders(name: str) -> tuple[str, ...]:
    """What a stream's class folders are called: any names where it does not know its classes."""
    module = importlib.import_module(own_file(name)["_target_"].rsplit(".", 1)[0])
    if hasattr(module, "VARIANT"):
        return tuple(wnids(module.VARIANT))
    return getattr(module, "WNIDS", getattr(module, "CLASS_NAMES", ("ant", "bee", "cat", "dog")))


def write_trees(name: str, place: Path) -> dict[str, list[Path]]:
    """Small data sets that a stream may take, by the key that says where they are."""
    names = class_folders(name)
    for root in (place / "folder", place / "domains" / "one", place / "domains" / "two"):
        write_classes(root / "train", names, (0, 1))
        write_classes(root / "test", names, (2,))
    table = place / "folder" / "images.csv"
    rows = [
        f"{path.relative_to(table.parent)},{path.parent.name}"
        for path in sorted(table.parent.glob("*/*/*"))
    ]
    table.write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    return {"root": [place / "folder", place / "domains"], "table": [table]}


def load(name: str, place: Path) -> Source:
    """The source from its own values and the first tree that it takes; skips where it refuses all
    of them.
    """
    values = {key: own_file(name)[key] for key in arguments(name)}
    open_keys = [key for key, value in values.items() if value == "???"]
    if not open_keys:
        return loader(name)(**values)
    [key] = open_keys
    refusals = []
    for tree in write_trees(name, place)[key]:
        try:
            return loader(name)(**values | {key: str(tree)})
        except UserError as error:
            refusals.append(str(error))
    for refusal in refusals:
        assert refusal.startswith(f"stream.{key}=") and "\n" not in refusal
    pytest.skip("; ".join(refusals))


@pytest.fixture(scope="module", params=STREAMS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Each stream's source, loaded once."""
    states = generator_states()
    source = load(request.param, tmp_path_factory.mktemp(request.param))
    assert generator_states() == states, "loading leaves all generators alone"
    return source


def generator_states() -> tuple[object, ...]:
    numpy_state: Any = numpy.random.get_state()
    return random.getstate(), torch.get_rng_state().tolist(), numpy_state[1].tobytes()


def build(source: Source, seed: int) -> Stream:
    num_tasks = None if source.train.tasks else 2
    return build_stream(source, image_size=16, seed=seed, num_tasks=num_tasks)


@every_stream
def test_keys_are_arguments_of_the_loader_or_of_every_stream(name: str) -> None:
    own = set(own_file(name)) - {"_target_", "name"}
    assert own <= set(arguments(name)) | BUILDER_KEYS
    assert set(arguments(name)) <= own, "every argument of the loader is a key that users see"


@every_stream
def test_shared_values_are_not_repeated(name: str) -> None:
    shared = own_file("_shared")
    assert set(shared) <= BUILDER_KEYS
    repeated = [key for key, value in own_file(name).items() if shared.get(key, ...) == value]
    assert not repeated
    missing = BUILDER_KEYS - set(shared) - set(own_file(name))
    assert not missing, "every key of build_stream is in _shared or in the stream's own file"


@every_stream
def test_defaults_are_those_of_the_loader(name: str) -> None:
    for key, parameter in arguments(name).items():
        value = own_file(name)[key]
        if parameter.default is inspect.Parameter.empty:
            assert value == "???"
        else:
            assert value == parameter.default


@every_stream
def test_names(name: str) -> None:
    assert own_file(name)["name"] == name
    assert own_file(name)["_target_"] == f"smope.streams.{name}.load"


def test_labels_are_in_range(loaded: Source) -> None:
    assert len(set(loaded.class_names)) == len(loaded.class_names) > 1
    for images in (loaded.train, loaded.test):
        assert len(images.images) == len(images) > 0
        assert all(type(target) is int for target in images.targets)
        assert set(images.targets) == set(range(len(loaded.class_names)))
        assert images.names is None or len(images.names) == len(images)
    assert loaded.name in STREAMS


def test_equal_seeds_make_equal_streams(loaded: Source) -> None:
    states = generator_states()
    first, again, other = build(loaded, 0), build(loaded, 0), build(loaded, 1)
    assert generator_states() == states, "building leaves all generators alone"
    assert first.identity == again.identity != other.identity
    assert first.content_hash == other.content_hash
    assert first.class_order == again.class_order != other.class_order
    for stream in (first, other):
        labels = {label for task in stream.tasks for label in task.train.targets}
        assert labels == set(range(len(stream.class_names)))
        assert all(set(task.test.targets) <= labels for task in stream.tasks)
        assert sum(len(task.train) for task in stream.tasks) == len(loaded.train)


@streams_with_root
def test_a_missing_root_is_refused_alike(name: str, tmp_path: Path) -> None:
    for root, problem in ((tmp_path / "nowhere", "does not exist"), (tmp_path, "is empty")):
        with pytest.raises(UserError) as caught:
            loader(name)(root=str(root))
        text = str(caught.value)
        assert text.startswith(f"stream.root={root} {problem}") and "\n" not in text
        assert ("stream.download=true fetches http" in text) == ("download" in own_file(name))


@streams_with_root
def test_a_home_directory_in_root_is_expanded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(name, tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    trees = ("~/folder", "~/domains")
    assert any(_takes(name, tree) for tree in trees)


def _takes(name: str, root: str) -> bool:
    try:
        loader(name)(root=root)
    except UserError:
        return False
    return True


@streams_with_download
def test_only_an_empty_root_is_downloaded_to(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[Path] = []
    monkeypatch.setattr(FETCH, lambda archive, root: fetched.append(root))
    write_trees(name, tmp_path)
    loader(name)(root=str(tmp_path / "folder"), download=True)
    assert not fetched
    with pytest.raises(UserError, match="does not exist"):
        loader(name)(root=str(tmp_path / "nowhere"), download=False)
    assert not fetched
    with pytest.raises(UserError, match="does not exist"):
        loader(name)(root=str(tmp_path / "nowhere"), download=True)
    assert fetched == [tmp_path / "nowhere"]
