"""Requests from other web pages are refused, and answers carry what keeps a browser strict."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from smope.server.application import web_application
from smope.server.session import Session

from .conftest import ADDRESS, Serve, png, upload


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:8000",
        "localhost:8000",
        "LOCALHOST",
        "[::1]:8000",
        "192.168.0.7:8000",
        "localhost",
    ],
)
def test_addresses_of_this_machine_are_served(host: str, serve: Serve) -> None:
    assert serve().get("/model", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil.example",
        "",
        "[::1",
        "a b",
        "localhost, evil.example",
    ],
)
def test_other_names_are_not(host: str, serve: Serve) -> None:
    """A page whose name was made to point here (DNS rebinding) has such a name."""
    client = serve(teaches=True)
    for method, path in (("GET", "/model"), ("GET", "/"), ("POST", "/undo")):
        answer = client.request(method, path, headers={"host": host})
        assert answer.status_code == 403
        assert answer.json()["error"].startswith("Host: ")


def test_a_name_that_the_server_was_given_is(session_of: Callable[..., Session]) -> None:
    client = TestClient(web_application(session_of(), ("Lab-7",)), ADDRESS)
    assert client.get("/model", headers={"host": "lab-7:8000"}).status_code == 200
    assert client.get("/model", headers={"host": "lab-8:8000"}).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:9000"},
        {"origin": "http://localhost:8000"},
        {"origin": "null"},
        {"origin": ""},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "cross-site"},
    ],
)
def test_other_pages_change_nothing(headers: dict[str, str], serve: Serve) -> None:
    client = serve(teaches=True)
    for path in ("/predict", "/learn", "/undo"):
        answer = client.post(path, headers=headers, **upload("a.png", png()))
        assert answer.status_code == 403, path
        assert "other web pages" in answer.json()["error"]


def test_the_page_itself_and_programs_may(serve: Serve) -> None:
    client = serve()
    own = {"origin": ADDRESS, "sec-fetch-site": "same-origin"}
    for headers in (own, {}):
        assert client.post("/predict", headers=headers, **upload("a.png", png())).is_success


@pytest.mark.parametrize("path", ["/learn", "/undo"])
def test_nothing_is_learned_unless_it_was_asked_for(path: str, serve: Serve) -> None:
    answer = serve().post(path, data={"class_name": "otter"}, **upload("a.png", png()))
    assert answer.status_code == 403
    assert answer.json()["error"].endswith("start the server with `smope serve MODEL --learn`")


@pytest.mark.parametrize(
    "path",
    ["/docs", "/redoc", "/page.py", "/../conftest.py", "/%2e%2e/session.py", "//etc/passwd", "/x"],
)
def test_there_is_nothing_else(path: str, serve: Serve) -> None:
    answer = serve().get(path)
    assert (answer.status_code, answer.json()) == (404, {"error": "Not Found"})


def test_every_answer_is_strict(session_of: Callable[..., Session]) -> None:
    session = session_of()
    client = TestClient(web_application(session), ADDRESS, raise_server_exceptions=False)
    session.predict = lambda *_: 1 // 0  # pyright: ignore[reportAttributeAccessIssue]
    answers = {
        200: client.get("/"),
        404: client.get("/nothing"),
        405: client.get("/predict"),
        403: client.get("/model", headers={"host": "evil.example"}),
        413: client.post("/predict", **upload("a.png", bytes(3_000_000))),
        415: client.post("/predict"),
        500: client.post("/predict", **upload("a.png", png())),
    }
    for status, answer in answers.items():
        assert answer.status_code == status
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in answer.headers
    assert answers[500].json() == {"error": "the server has a fault; its terminal says more"}


def test_the_page_loads_nothing_from_elsewhere(serve: Serve) -> None:
    client = serve(teaches=True)
    page = client.get("/").text
    for attribute in ("src=", "href=", "action="):
        targets = [part.split('"')[1] for part in page.split(f" {attribute}")[1:] if part[0] == '"']
        assert all(not target.startswith(("http", "//")) for target in targets), targets
    assert "<script>" not in page, "scripts in a page are refused by its own policy"
    assert "style=" not in page
    for name in ("page.css", "page.js"):
        text = client.get(f"/{name}").text
        assert "innerHTML" not in text
        assert "@import" not in text
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_the_commands_of_the_page_can_be_pasted_into_a_shell(serve: Serve) -> None:
    page = serve(teaches=True).get("/").text
    examples = page.partition("<pre")[2].partition("</pre>")[0]
    lines = [re.sub(r'<[^>]*>|"[^"]*"', "", line) for line in examples.splitlines()]
    assert sum("curl " in line for line in lines) == 3
    assert not [line for line in lines if re.search(r"[?*&\[]", line)]
