"""`smope serve` from a shell: the line that it prints, mistakes, and how it ends."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from smope.cli.main import main
from smope.errors import UserError
from smope.run.artefact import write_artefact
from smope.server import listen
from smope.serving.packing import for_inference
from tests.serving.colours import Run

from .conftest import png, upload

LINE = r"(http://127\.0\.0\.1:\d+) serves model\.safetensors \(NearestClassMean, 4 classes, "


@pytest.fixture
def model(trained: Callable[..., Run], tmp_path: Path) -> Path:
    return write_artefact(trained("ncm").artefacts[-1], tmp_path / "model.safetensors").file.path  # pyright: ignore


@pytest.mark.parametrize("start", [None, lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)])
def test_it_says_its_address_and_ends_with_a_line(model: Path, start: Any) -> None:
    """Also where a script has started it in the background, with Ctrl-C ignored."""
    command = [sys.executable, "-m", "smope", "serve", str(model), "--learn", "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=start
    ) as server:
        assert server.stdout is not None
        assert server.stderr is not None
        line = server.stdout.readline()
        match = re.fullmatch(LINE + r"learning on\); Ctrl-C stops it\n", line)
        assert match, line + server.stderr.read()
        with urllib.request.urlopen(f"{match[1]}/model") as answer:
            assert json.load(answer)["learning"] is True
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0
        assert (server.stdout.read(), server.stderr.read()) == ("stopped\n", "")


def test_another_port_where_the_default_one_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        monkeypatch.setattr(listen, "DEFAULT_PORT", taken)
        with listen.open_socket("127.0.0.1", None) as listening:
            assert listening.getsockname()[1] != taken
        message = rf"--port={taken}: is in use; choose another, or leave --port out for a free one"
        with pytest.raises(UserError, match=message):
            listen.open_socket("127.0.0.1", taken)


def test_a_page_behind_a_proxy(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the proxy's name, which --name gives."""
    served = []
    monkeypatch.setattr(listen, "serve", lambda application, *_: served.append(application))
    assert main(["serve", str(model), "--port", "0", "--name", "Models.lab"]) == 0
    for name, status in (("models.lab", 200), ("evil.example", 403)):
        client = TestClient(served[0], f"https://{name}", raise_server_exceptions=False)
        headers = {"origin": f"https://{name}", "sec-fetch-site": "same-origin"}
        answer = client.post("/predict", headers=headers, **upload("a.png", png()))
        assert answer.status_code == status


def test_what_is_unusual_is_said(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another port, and other machines."""
    monkeypatch.setattr(listen, "serve", lambda *_: None)
    with socket.create_server(("0.0.0.0", 0)) as other:
        monkeypatch.setattr(listen, "DEFAULT_PORT", other.getsockname()[1])
        capsys.readouterr()
        assert main(["serve", str(model), "--host", "0.0.0.0"]) == 0
        port = other.getsockname()[1]
    assert capsys.readouterr().err.splitlines() == [
        f"port {port} is in use; another one is taken",
        "--host=0.0.0.0: other machines can use the model; there is no password",
    ]


@pytest.mark.parametrize("host", ["nowhere.invalid", "203.0.113.7", "a" * 300, "\udcff"])
def test_hosts_that_are_not_here(host: str) -> None:
    with pytest.raises(UserError, match=r"--host=.*leave it out for this machine"):
        listen.open_socket(host, 0)


def test_which_hosts_are_this_machine_alone() -> None:
    loopback = ("127.0.0.1", "127.3.4.5", "::1", "localhost")
    assert all(map(listen.is_loopback, loopback))
    assert not any(map(listen.is_loopback, ("0.0.0.0", "::", "10.0.0.1", "lab-7", "")))
    assert listen.names_of("lab-7")[0] == "lab-7"
    assert listen.names_of("localhost") == ()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], r"RUN=nowhere|MODEL=nowhere: no such file or directory"),
        ([], r"required: MODEL; see `smope serve --help`"),
        ([".", "--port", "70000"], r"--port=70000: must be in 0\.\.65535"),
        ([".", "--min-probability", "80"], r"--min-probability=80: must be in 0\.\.1"),
        ([".", "--max-upload", "0"], r"--max-upload=0: must be above 0"),
        ([".", "--max-upload", "nan"], r"--max-upload=nan: must be above 0"),
        ([".", "--name", "https://models.lab"], r"--name=https://models\.lab: must be a host name"),
        ([".", "--out", "."], r"--out is for what --learn writes; leave it out, or add --learn"),
        ([".", "--learn", "--out", "no"], r"--out=no: is not a folder; make it, or name another"),
        (["hf://me/birds", "--learn"], r"MODEL=hf://me/birds: new versions .*; add --out DIR"),
        ([".", "--lern"], r"did you mean --learn\?"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str, mistake: Any) -> None:
    assert re.search(message, mistake("serve", *words))


def test_the_extra_that_is_missing(mistake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name)
    )
    line = mistake("serve", "nowhere")
    assert line.endswith(
        'smope serve needs uvicorn, which is not installed; pip install "smope[serve]"'
    )


def test_a_model_that_cannot_learn(
    trained: Callable[..., Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = write_artefact(for_inference(trained("ncm").artefacts[-1]), tmp_path / "small.st")
    capsys.readouterr()
    assert main(["serve", str(tmp_path / "small.st"), "--learn", "--port", "0"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert small.learning is None
    assert "make a learnable one of its run with `smope pack RUN --learnable --out FILE`" in line
