"""The code of CONTRIBUTING.md, as it is written there, is a router that works."""

from __future__ import annotations

import importlib
import inspect
import re
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
SMALL = ["experiment=smoke", "backbone.image_size=8", "trainer.batch_size=64"]
CONTRACT = [
    function
    for name, function in vars(contract).items()
    if name.startswith("test_") and "name" in inspect.signature(function).parameters
]


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, without the indentation of the list that they stand in."""
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```", TEXT, re.MULTILINE | re.DOTALL)
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
