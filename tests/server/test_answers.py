"""What the server answers: what `smope predict` says of the same files, by the documented form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

import smope
from smope.server import application
from smope.server.session import Session

from .conftest import HOSTILE, Serve, client_of, files_of, upload

DOCUMENT = json.loads((application.FOLDER / "openapi.json").read_text(encoding="utf-8"))


def documented(values: Any, name: str) -> Any:
    """The values, which must have the form that openapi.json gives it."""
    jsonschema.validate(values, {**DOCUMENT, "$ref": f"#/components/schemas/{name}"})
    return values


@pytest.mark.parametrize("method", ["ncm", "smope"])
def test_a_prediction_is_that_of_smope_predict(
    method: str, serve: Serve, colours: Path, tmp_path: Path
) -> None:
    client = serve(method)
    answer = client.post("/predict?top=3", files=files_of(colours / "test"))
    assert answer.status_code == 200
    images = documented(answer.json(), "Predictions")["images"]
    paths = sorted((colours / "test").rglob("*.png"))
    assert [image["name"] for image in images] == [path.name for path in paths]
    classifier = smope.load(tmp_path / "model" / "model.safetensors", "cpu")
    for image, prediction in zip(images, classifier.predict(paths, top=3), strict=True):
        assert (image["class"], image["unknown"]) == (prediction.class_name, False)
        assert image["probability"] == pytest.approx(prediction.probability, abs=1e-12)
        assert image["unknown_score"] == pytest.approx(prediction.unknown_score, abs=1e-12)
        assert [guess["class"] for guess in image["top"]] == [name for name, _ in prediction.top]


def test_more_guesses_than_classes_are_all_classes(serve: Serve, colours: Path) -> None:
    answer = serve().post("/predict?top=99", files=files_of(colours / "test", 1)).json()
    shares = [guess["probability"] for guess in answer["images"][0]["top"]]
    assert len(shares) == 4
    assert sum(shares) == pytest.approx(1)


@pytest.mark.parametrize("top", ["0", "-1", "many", "1" * 5000, "²", ""])
def test_a_wrong_number_of_guesses(top: str, serve: Serve, colours: Path) -> None:
    answer = serve().post(f"/predict?top={top}", files=files_of(colours / "test", 1))
    assert answer.status_code == 400
    assert answer.json()["error"].endswith(": must be a whole number from 1")


def test_unknown_images_are_named_so(serve: Serve, colours: Path) -> None:
    client = serve(min_probability=1.0)
    [image] = client.post("/predict", files=files_of(colours / "test", 1)).json()["images"]
    assert (image["class"], image["unknown"]) == ("unknown", True)
    assert image["top"][0]["class"] != "unknown"
    assert client.get("/model").json()["unknown_below"] == 1.0


def test_each_image_has_its_own_answer(serve: Serve, colours: Path) -> None:
    """More than are decoded at a time, and some of them cannot be read."""
    files = files_of(colours / "test")
    for index in (0, 3, 9):
        files.insert(index, ("images", (f"broken{index}", b"no image")))
    client = serve()
    images = client.post("/predict", files=files).json()["images"]
    assert [image["name"] for image in images] == [name for _, (name, _) in files]
    assert [index for index, image in enumerate(images) if "error" in image] == [0, 3, 9]
    for image, (_, (name, content)) in zip(images, files, strict=True):
        if "error" not in image:
            alone = client.post("/predict", **upload(name, content)).json()["images"][0]
            assert alone["class"] == image["class"]
            assert alone["probability"] == pytest.approx(image["probability"], abs=1e-12)


def test_the_model(serve: Serve) -> None:
    model = documented(serve("smope").get("/model").json(), "Model")
    assert (model["method"], model["version"]) == ("SMoPE", "model.safetensors")
    assert set(model["classes"]) == {"amber", "blue", "coral", HOSTILE}
    assert (model["learning"], model["can_undo"]) == (False, False)


def test_numbers_that_are_none_are_null(
    session_of: Callable[..., Session], colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model with damaged weights gives an answer that is JSON."""
    session = session_of()
    nothing = torch.full((1, 4), torch.nan)
    monkeypatch.setattr(session.served.classifier, "_classified", lambda features: nothing)
    answer = client_of(session).post("/predict", files=files_of(colours / "test", 1))
    assert answer.status_code == 200
    assert documented(answer.json(), "Predictions")["images"][0]["probability"] is None


def test_the_description_has_every_endpoint(serve: Serve) -> None:
    client = serve()
    assert client.get("/openapi.json").json() == DOCUMENT
    assert set(DOCUMENT["paths"]) == {"/predict", "/model", "/learn", "/undo"}
    for path, methods in DOCUMENT["paths"].items():
        wrong = "GET" if "post" in methods else "POST"
        assert client.request(wrong, path).status_code == 405


def test_names_are_text_in_the_page(serve: Serve) -> None:
    page = serve(teaches=True).get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert HOSTILE not in page.text
    assert "&lt;img src=x onerror=document.title=&#39;hacked&#39;&gt;" in page.text
    assert 'id="teach"' in page.text


def test_without_learning_the_page_has_no_form(serve: Serve) -> None:
    page = serve().get("/").text
    assert 'id="teach"' not in page
    assert "/learn" not in page
