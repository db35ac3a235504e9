"""A served model learns as `smope learn` does, and takes lessons back."""

from __future__ import annotations

import errno
import inspect
import os
import shutil
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from starlette.testclient import TestClient

import smope
from smope.errors import UserError
from smope.run.artefact import read_model, write_artefact
from smope.server.answers import model_document
from smope.server.limits import Limits, Upload
from smope.server.session import Session
from smope.serving.learning import Pupil
from smope.serving.predict import classifier_of
from tests.serving.colours import Run

from .conftest import Serve, client_of, files_of, png
from .test_answers import documented


def lesson(colours: Path, name: str = "emerald", called: str | None = None) -> dict[str, Any]:
    """The arguments of a request that teaches a class."""
    return {"files": files_of(colours / "train" / name), "data": {"class_name": called or name}}


@pytest.mark.parametrize("method", ["ncm", "smope"])
def test_it_learns_what_smope_learn_learns(
    method: str, serve: Serve, colours: Path, tmp_path: Path
) -> None:
    client = serve(method, teaches=True)
    file = tmp_path / "model" / "model.safetensors"
    before = file.read_bytes()
    answer = client.post("/learn", **lesson(colours))
    assert answer.status_code == 200, answer.text
    values = documented(answer.json(), "Lesson")
    assert values["model"]["version"] == "model-v2.safetensors"
    assert values["model"]["classes"][-1] == "emerald"
    assert 0 <= values["accuracy"]["old_after"] <= 1
    assert file.read_bytes() == before, "the old one stays"
    taught = read_model(tmp_path / "model" / "model-v2.safetensors")
    learned = smope.load(file, "cpu").learn(colours / "train" / "emerald").artefact
    assert all(torch.equal(taught.state[key], learned.state[key]) for key in learned.state)
    for ours, theirs in zip(taught.lineage, learned.lineage, strict=True):
        assert ours | {"time": ""} == theirs | {"time": ""}
    [image] = client.post("/predict", files=files_of(colours / "test" / "emerald", 1)).json()[
        "images"
    ]
    assert "emerald" in [guess["class"] for guess in image["top"]]


def test_undo_gives_the_answers_of_before(serve: Serve, colours: Path, tmp_path: Path) -> None:
    client = serve(teaches=True)
    images = {"files": files_of(colours / "test")}
    start = client.post("/predict", **images).json()["images"]
    assert client.post("/learn", **lesson(colours)).is_success
    once = client.post("/predict", **images).json()["images"]
    assert client.post("/learn", **lesson(colours, "fuchsia")).is_success
    assert client.post("/predict", **images).json()["images"] != once
    values = documented(client.post("/undo").json(), "Undone")
    assert values["undone"] == {"fuchsia": 10}
    assert client.post("/predict", **images).json()["images"] == once
    assert client.post("/undo").is_success
    assert client.post("/predict", **images).json()["images"] == start
    model = client.get("/model").json()
    assert [version["how"] for version in model["versions"]] == [
        "start",
        "learn",
        "learn",
        "undo",
        "undo",
    ]
    assert (model["can_undo"], len(model["classes"])) == (False, 4)
    answer = client.post("/undo")
    assert (answer.status_code, answer.json()["error"]) == (
        409,
        "the last thing that happened was no lesson: this model is as its run left it",
    )
    assert len(list((tmp_path / "model").iterdir())) == 5, "each version is a file of its own"


def test_a_lesson_of_before_is_undone(
    session_of: Callable[..., Session], colours: Path, tmp_path: Path
) -> None:
    """One that `smope learn` taught before the server was started."""
    session_of()
    file = tmp_path / "model" / "model.safetensors"
    second = tmp_path / "model" / "model-v2.safetensors"
    smope.load(file, "cpu").learn(colours / "train" / "emerald").save(second)
    classifier = classifier_of(read_model(second), second, "cpu", remembers=True)
    client = client_of(Session(classifier, second, Limits(10**6), teaches=True))
    assert client.get("/model").json()["can_undo"] is True
    assert client.post("/undo").json()["model"]["version"] == "model-v3.safetensors"
    assert len(read_model(second.with_stem("model-v3")).class_names) == 4


def test_versions_go_into_a_folder(serve: Serve, colours: Path, tmp_path: Path) -> None:
    (tmp_path / "taught").mkdir()
    client = serve(teaches=True, folder=tmp_path / "taught")
    assert client.post("/learn", **lesson(colours)).is_success
    assert client.post("/learn", **lesson(colours, "fuchsia")).is_success
    assert client.post("/undo").is_success
    assert client.post("/undo").is_success
    names = [f"model-v{number}.safetensors" for number in (2, 3, 4, 5)]
    assert sorted(path.name for path in (tmp_path / "taught").iterdir()) == names
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["model.safetensors"]


def taught_twice(file: Path, colours: Path) -> tuple[Path, Path]:
    """The versions 2 and 3 of a model, each with one class more than the version before."""
    second, third = file.with_stem("model-v2"), file.with_stem("model-v3")
    smope.load(file, "cpu").learn(colours / "train" / "emerald").save(second)
    smope.load(second, "cpu").learn(colours / "train" / "fuchsia").save(third)
    return second, third


def test_lessons_of_before_are_undone_into_another_folder(
    session_of: Callable[..., Session], colours: Path, tmp_path: Path
) -> None:
    """As often as the page offers it: earlier versions are beside the model that was named."""
    session_of()
    elsewhere = tmp_path / "taught"
    elsewhere.mkdir()
    _, third = taught_twice(tmp_path / "model" / "model.safetensors", colours)
    shutil.copy(third, elsewhere / "model-v2.safetensors")  # another model of that name

    def client(start: Path, folder: Path) -> TestClient:
        classifier = classifier_of(read_model(start), start, "cpu", remembers=True)
        return client_of(Session(classifier, start, Limits(10**6), teaches=True, folder=folder))

    taught = client(third, elsewhere)
    assert taught.post("/learn", **lesson(colours, called="amber 2")).is_success
    counts = []
    while taught.get("/model").json()["can_undo"]:
        answer = taught.post("/undo")
        assert answer.status_code == 200, answer.text
        counts.append(len(answer.json()["model"]["classes"]))
    assert counts == [6, 5, 4]
    assert taught.post("/undo").status_code == 409


def test_undo_is_offered_where_the_model_before_is_at_hand(
    session_of: Callable[..., Session], colours: Path, tmp_path: Path
) -> None:
    session = session_of(teaches=True)
    client, file = client_of(session), tmp_path / "model" / "model.safetensors"
    assert client.post("/learn", **lesson(colours)).is_success
    second = file.with_stem("model-v2")
    alone = shutil.copy(second, tmp_path / "alone.safetensors")
    classifier = classifier_of(read_model(alone), alone, "cpu", remembers=True)
    other = client_of(Session(classifier, alone, Limits(10**6), teaches=True))
    assert other.get("/model").json()["can_undo"] is False
    assert client.post("/learn", **lesson(colours, "fuchsia")).is_success
    second.unlink()
    answer = client.post("/undo")
    assert answer.status_code == 409
    assert answer.json()["error"].startswith("model-v2.safetensors is not there")
    assert client.get("/model").json()["can_undo"] is False, "the page no longer offers it"


def test_errors_name_files_without_their_folders(
    session_of: Callable[..., Session],
    colours: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Clients learn nothing of the machine; its terminal shows where the file is."""
    session_of()
    elsewhere = tmp_path / "taught"
    elsewhere.mkdir()
    second, third = taught_twice(tmp_path / "model" / "model.safetensors", colours)
    classifier = classifier_of(read_model(third), third, "cpu", remembers=True)
    session = Session(classifier, third, Limits(10**6), teaches=True, folder=elsewhere)
    second.write_bytes(b"damaged")
    answer = client_of(session).post("/undo")
    assert answer.status_code == 409
    assert answer.json()["error"].startswith("model model-v2.safetensors: cannot be read")
    assert str(tmp_path) not in answer.text
    assert str(second) in caplog.text


def test_no_error_shows_a_folder(
    session_of: Callable[..., Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of the model nor any other; words with a slash are no folders."""

    def mistaken(*_: Any) -> NoReturn:
        raise UserError("pets/mine: see /home/jane/a b.pt: is image/png and/or half (1/2) of it")

    monkeypatch.setattr(Session, "predict", mistaken)
    session = session_of()
    session.paths = (Path("pets/mine"), Path("taught/model.safetensors"))
    answer = client_of(session).post("/predict", files=[("images", ("a.png", png()))])
    shown = "mine: see a b.pt: is image/png and/or half (1/2) of it"
    assert (answer.status_code, answer.json()) == (422, {"error": shown})


def at_each_line(of: Any, action: Callable[[], object], call: Callable[[], object]) -> None:
    """Make a call, and act once before each line that runs of the file that `of` is from."""
    path, lines = inspect.getsourcefile(of), set()

    def trace(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != path:
            return None
        if event == "line" and frame.f_lineno not in lines:
            lines.add(frame.f_lineno)
            action()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)


def test_a_model_is_described_as_it_was_at_one_moment(
    session_of: Callable[..., Session], colours: Path
) -> None:
    """While it changes, and if it changes while it is described."""
    session = session_of(teaches=True)
    files = [Upload(name, content) for _, (name, content) in lesson(colours)["files"]]
    models: list[dict[str, Any]] = []

    def describe() -> None:
        models.append(model_document(session))

    def change() -> None:
        if model_document(session)["can_undo"]:
            session.undo()
        else:
            session.learn("emerald", files)

    at_each_line(Session, describe, change)
    at_each_line(model_document, change, describe)
    assert len(models) > 10
    for model in models:
        assert model["version"] == model["versions"][-1]["file"]
        assert len(model["classes"]) == model["versions"][-1]["classes"]


def test_more_images_of_a_class(serve: Serve, colours: Path) -> None:
    client = serve(teaches=True)
    answer = client.post("/learn", **lesson(colours, called="blue"))
    assert answer.status_code == 409
    assert answer.json()["error"].startswith("class_name=blue: the model knows it already; send")
    request = lesson(colours, called="blue")
    request["data"]["more_images"] = "true"
    assert client.post("/learn", **request).json()["model"]["versions"][-1]["lesson"] == {
        "blue": 10
    }
    request["data"]["more_images"] = "yes"
    assert client.post("/learn", **request).status_code == 400


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "is empty"),
        ("   ", "is empty"),
        ("a/b", "has a slash"),
        ("..", "is a name of service files"),
        (".hidden", "is a name of service files"),
        ("Thumbs.db", "is a name of service files"),
        ("a\nb", "a control character"),
        ("a\0b", "a control character"),
        ("ä" * 128, "is longer than 255 bytes"),
    ],
)
def test_names_that_no_folder_has(name: str, words: str, serve: Serve, colours: Path) -> None:
    answer = serve(teaches=True).post("/learn", **lesson(colours) | {"data": {"class_name": name}})
    assert answer.status_code == 422
    line = answer.json()["error"]
    assert line.startswith("class_name=")
    assert words in line
    assert len(line.splitlines()) == 1


def test_few_images_are_remarked(serve: Serve) -> None:
    request = {"files": [("images", ("a.png", png()))], "data": {"class_name": " otter  "}}
    values = serve(teaches=True).post("/learn", **request).json()
    assert values["model"]["classes"][-1] == "otter"
    assert "fewer than 5 images are often too few to recognise a class" in values["remarks"]


def test_a_name_that_differs_only_in_case_is_remarked(serve: Serve, colours: Path) -> None:
    """Most often it is a slip: then the class would be split in two."""
    client = serve(teaches=True)
    remarks = client.post("/learn", **lesson(colours, called="Blue")).json()["remarks"]
    assert any("differ only in their spelling" in text and "'Blue'" in text for text in remarks)
    assert client.post("/learn", **lesson(colours, "fuchsia")).json()["remarks"] == []


def test_it_answers_while_it_learns_one_thing_at_a_time(
    session_of: Callable[..., Session], colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(teaches=True)
    client = client_of(session)
    started, may_end = threading.Event(), threading.Event()
    learn = Pupil.learn

    def slow(pupil: Pupil) -> Any:
        started.set()
        assert may_end.wait(60)
        return learn(pupil)

    monkeypatch.setattr(Pupil, "learn", slow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: client.post("/learn", **lesson(colours)))
        assert started.wait(60)
        answer = client.post("/predict", files=files_of(colours / "test", 1))
        assert answer.json()["version"] == "model.safetensors"
        for path in ("/learn", "/undo"):
            refused = client.post(path, **lesson(colours, "fuchsia"))
            assert refused.status_code == 409
            assert refused.json()["error"].startswith("the model is learning something else")
        may_end.set()
        assert first.result().is_success
    assert client.post("/learn", **lesson(colours, "fuchsia")).is_success


def test_a_stopped_server_ends_a_lesson(
    session_of: Callable[..., Session], colours: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """At the next step: the method trains for many."""
    session = session_of("smope", teaches=True)
    learn = Pupil.learn

    def stopped(pupil: Pupil) -> Any:
        session.stop()
        return learn(pupil)

    monkeypatch.setattr(Pupil, "learn", stopped)
    answer = client_of(session).post("/learn", **lesson(colours))
    assert answer.status_code == 503
    assert answer.json()["error"].endswith("nothing was written")
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["model.safetensors"]


def test_a_full_disk(
    serve: Serve, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    client = serve(teaches=True)
    monkeypatch.setattr("smope.run.artefact.write_new", full)
    answer = client.post("/learn", **lesson(colours))
    assert answer.status_code == 507
    assert "cannot be written (No space left on device); make room" in answer.json()["error"]
    assert str(tmp_path) not in answer.json()["error"], "clients learn no folders of the server"
    assert client.get("/model").json()["version"] == "model.safetensors"
    assert client.post("/predict", files=files_of(colours / "test", 1)).is_success


def test_a_model_of_a_checkpoint_learns_and_undoes(
    trained: Callable[..., Run], colours: Path, tmp_path: Path
) -> None:
    """It is in no file of its own."""
    artefact = trained("ncm").artefacts[-1]
    run = tmp_path / "run"
    run.mkdir()
    client = client_of(
        Session(
            classifier_of(artefact, run, "cpu", remembers=True), run, Limits(10**6), teaches=True
        )
    )
    assert client.get("/model").json()["version"] == "run"
    answer = client.post("/learn", **lesson(colours)).json()
    assert answer["model"]["version"] == "model-v2.safetensors"
    assert client.post("/undo").json()["model"]["version"] == "model-v3.safetensors"
    written = read_model(run / "model-v3.safetensors")
    again = write_artefact(artefact, tmp_path / "again.safetensors")
    assert written.file is not None
    assert again.file is not None
    assert written.file.sha256 == again.file.sha256
