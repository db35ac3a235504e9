"""Several clients at a time: each gets the answer that it would get alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from .conftest import Serve, files_of

CLIENTS = 6


def one_by_one(colours: Path) -> list[dict[str, Any]]:
    """Requests of one image each."""
    return [{"files": [file]} for file in files_of(colours / "test")]


def answers(client: TestClient, requests: list[dict[str, Any]]) -> list[Any]:
    return [client.post("/predict", **request).json()["images"] for request in requests]


def test_experts_of_one_image_are_not_those_of_another(serve: Serve, colours: Path) -> None:
    client, requests = serve("smope"), one_by_one(colours)
    alone = answers(client, requests)
    assert len({str(images[0]["experts"]) for images in alone}) > CLIENTS
    with ThreadPoolExecutor(CLIENTS) as pool:
        together = list(
            pool.map(lambda request: client.post("/predict", **request).json(), requests)
        )
    assert [answer["images"] for answer in together] == alone


def test_an_answer_is_that_of_the_version_that_it_names(serve: Serve, colours: Path) -> None:
    """While the model learns and takes lessons back."""
    client, requests = serve(teaches=True), one_by_one(colours)
    lesson = {"files": files_of(colours / "train" / "emerald"), "data": {"class_name": "emerald"}}
    untaught = answers(client, requests)
    assert client.post("/learn", **lesson).is_success
    taught = answers(client, requests)
    with ThreadPoolExecutor(CLIENTS) as pool:
        many = [pool.submit(client.post, "/predict", **request) for request in 3 * requests]
        for _ in range(2):
            assert client.post("/undo").is_success
            assert client.post("/learn", **lesson).is_success
        replies = [future.result().json() for future in many]
    versions = client.get("/model").json()["versions"]
    knows = {version["file"]: version["classes"] for version in versions}
    for number, reply in enumerate(replies):
        expected = taught if knows[reply["version"]] == 5 else untaught
        assert reply["images"] == expected[number % len(requests)]
