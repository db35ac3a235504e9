"""`smope doctor`: what is installed and what is missing."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import smope
from smope.cli import doctor
from smope.cli.main import main


def test_doctor_reports_and_names_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "timm" else found(name))
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert re.search(r"^timm +not installed$", text, re.MULTILINE)
    assert "missing: timm: pip install timm" in text
    assert re.search(r"^cpu +\d+ cores", text, re.MULTILINE)


def test_doctor_knows_the_dependencies() -> None:
    path = Path(smope.__file__).parent.parent / "pyproject.toml"
    project = tomllib.loads(path.read_text())["project"]
    assert {re.split(r"[<>=\[]", item)[0] for item in project["dependencies"]} == set(
        doctor.REQUIRED
    )
    assert smope.__version__ in (path.parent / "CHANGELOG.md").read_text()
