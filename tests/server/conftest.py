"""Trained models that know a class with a hostile name, and clients of servers that serve them."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image
from starlette.testclient import TestClient

from smope.run.artefact import write_artefact
from smope.server.application import web_application
from smope.server.limits import Limits
from smope.server.session import Session
from smope.serving.predict import Classifier, classifier_of
from tests.serving.colours import Run, draw_colours, part, runs_on

HOSTILE = "<img src=x onerror=document.title='hacked'>"
ADDRESS = "http://127.0.0.1:8000"
MEGABYTE = 1_000_000
Serve = Callable[..., TestClient]


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders train and test with six classes, of which a model knows the first four."""
    root = draw_colours(tmp_path_factory.mktemp("colours"))
    for split in ("train", "test"):
        (root / split / "dark").rename(root / split / HOSTILE)
    return root


@pytest.fixture(scope="session")
def trained(colours: Path) -> Callable[..., Run]:
    """(method) -> a run on four classes in two tasks."""
    four = part(colours, colours.parent / "four", "amber", "blue", "coral", HOSTILE)
    train = runs_on(four)
    return cache(lambda method: train(method, 2, four))


@pytest.fixture(scope="session")
def classifier(trained: Callable[..., Run]) -> Callable[..., Classifier]:
    """(method) -> the classifier of its run."""

    @cache
    def make(method: str) -> Classifier:
        return classifier_of(trained(method).artefacts[-1], Path(), "cpu", remembers=True)

    return make


@pytest.fixture
def session_of(classifier: Callable[..., Classifier], tmp_path: Path) -> Callable[..., Session]:
    """(method, max_bytes, options of Session) -> a session; its model is in the folder `model`."""

    def make(method: str = "ncm", max_bytes: int = 2 * MEGABYTE, **options: Any) -> Session:
        file = tmp_path / "model" / "model.safetensors"
        file.parent.mkdir(exist_ok=True)
        served = copy.copy(classifier(method))
        served.artefact = write_artefact(served.artefact, file)
        return Session(served, file, Limits(max_bytes), **options)

    return make


@pytest.fixture
def serve(session_of: Callable[..., Session]) -> Serve:
    """As `session_of`, but a client of a server."""

    def make(*arguments: Any, **options: Any) -> TestClient:
        return client_of(session_of(*arguments, **options))

    return make


def client_of(session: Session) -> TestClient:
    """A client that sees faults of the server as answers, as real clients do."""
    return TestClient(web_application(session), ADDRESS, raise_server_exceptions=False)


def files_of(folder: Path, count: int | None = None) -> list[tuple[str, tuple[str, bytes]]]:
    """The images of a folder as a form sends them."""
    paths = sorted(folder.rglob("*.png"))[:count]
    return [("images", (path.name, path.read_bytes())) for path in paths]


def png(width: int = 12, height: int = 12, mode: str = "RGB") -> bytes:
    """The bytes of an image."""
    file = io.BytesIO()
    Image.fromarray(numpy.full((height, width, 3), 90, numpy.uint8)).convert(mode).save(file, "PNG")
    return file.getvalue()


def upload(name: str, content: bytes) -> dict[str, Any]:
    """The arguments of a request with one image."""
    return {"files": [("images", (name, content))]}
