"""The example of CONTRIBUTING.md is true: its code, as it is written there, works."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from smope.cli.main import main
from smope.config.config import load_config
from smope.routers.base import ExpertState, Router

from . import test_routers as contract

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
SMALL = ["experiment=smoke", "backbone.image_size=8", "trainer.batch_size=32"]
CONTRACT = [
    function
    for name, function in vars(contract).items()
    if name.startswith("test_") and "name" in inspect.signature(function).parameters
]


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, without the indentation of the list that they stand in."""
    found = re.findall(
        rf"^ *```{language}(?: \{{[^\n]*\}})?\n(.*?)^ *```", TEXT, re.MULTILINE | re.DOTALL
    )
    return [textwrap.dedent(block) for block in found]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example as a module of its own and a file in a folder like conf/."""
    (source,), (choice,) = blocks("python"), blocks("yaml")
    (tmp_path / "least_used.py").write_text(source, encoding="utf-8")
    (tmp_path / "mine" / "router").mkdir(parents=True)
    (tmp_path / "mine" / "router" / "least_used.yaml").write_text(
        choice.replace("smope.routers.least_used", "least_used"), encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("few_digits")
def test_it_trains(folder: Path) -> None:
    options = ["--config-dir", str(folder / "mine"), f"run_dir={folder / 'run'}"]
    texts = ["router=least_used", "router.closeness=0.2"]
    assert main(["train", *SMALL, *texts, *options]) == 0
    assert load_config(folder / "run").router["closeness"] == 0.2


@pytest.mark.parametrize("function", CONTRACT, ids=lambda function: function.__name__)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_it_keeps_the_contract_of_routers(
    function: Any, training: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = importlib.import_module("least_used").LeastUsed
    assert issubclass(made, Router)
    monkeypatch.setattr(contract, "make_router", lambda name, **changes: made(**changes))
    generator = torch.Generator().manual_seed(0)
    heads, experts, width = contract.HEADS, contract.EXPERTS, contract.WIDTH
    counts = torch.randint(0, 9, (heads, experts), generator=generator)
    given = {
        "name": "least_used",
        "training": training,
        "query": torch.randn(contract.BATCH, heads, width, generator=generator),
        "keys": torch.rand(heads, experts, width, generator=generator),
        "state": ExpertState(counts, counts > 4),
    }
    function(**{name: given[name] for name in inspect.signature(function).parameters})


def test_the_rules_of_routers_are_listed() -> None:
    missing = [rule for rule in contract.RULES if f"- {rule}\n" not in TEXT]
    assert not missing, "CONTRIBUTING.md lists every rule of tests/contracts/test_routers.py"


def test_in_the_package_it_passes_the_tests_that_it_is_sent_to(tmp_path: Path) -> None:
    """Exactly as written, in a copy of the checkout, but for the line of hashes, which is named."""
    root = Path(__file__).parents[2]
    for name in ("smope", "conf", "tests"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "pyproject.toml", tmp_path)
    for language, path in (("python", "smope/routers/%s.py"), ("yaml", "conf/router/%s.yaml")):
        [text] = blocks(language)
        (tmp_path / (path % "least_used")).write_text(text, encoding="utf-8")
    first = check_copy(tmp_path)
    line = re.search(r"config_hashes.json: (\"router=least_used.*\])$", first, re.MULTILINE)
    assert line and "1 failed" in first, first
    hashes = tmp_path / "tests/contracts/config_hashes.json"
    text = hashes.read_text(encoding="utf-8").replace("{", "{" + line[1] + ",", 1)
    hashes.write_text(text, encoding="utf-8")
    second = check_copy(tmp_path)
    assert "failed" not in second and "passed" in second, second


def check_copy(root: Path) -> str:
    """What pytest prints about the new router in a copy of the checkout."""
    tests = ["tests/contracts/test_routers.py", "tests/contracts/test_conf.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *tests, "-k", "least_used"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    return done.stdout
