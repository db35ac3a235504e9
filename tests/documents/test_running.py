"""Every block of a document runs, in the document's order and in one folder, as it is written.

Images are made, few and small, and so are the settings of training; nothing else is changed.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from smope.cli.main import main
from tests.documents.fences import COMMANDS, compare, documents, fences

# Lines that set up an environment, or wait for Ctrl-C
LEFT_OUT = (
    "python -m venv", "source ", "pip ", "make ", ".ci/", ".venv/", "eval ", "uv ", "smope serve ",
)  # fmt: skip
# As in the Makefile. It is not made smaller, since its words depend on its numbers.
DEMO = ["train", "--explain"]
SMALL_DIGITS = ["experiment=smoke", "name=digits", "backbone.image_size=8", "trainer.record=all"]
SMALL_SEARCH = ["experiment=smoke", "stream.num_tasks=5", "backbone.image_size=8", "tune.trials=2"]
CLASSES = [
    "accordion", "anchor", "barrel", "bonsai", "camera", "chair",
    "crab", "cup", "dolphin", "ferry", "lamp", "piano",
]  # fmt: skip
NEW_CLASSES = ["beaver", "binocular"]
# What a page takes for granted
BEFORE = {
    "docs/how-to/predict.md": ["smope train experiment=smoke"],
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights of the size that photographs are trained on, random ones."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    path = tmp_path_factory.mktemp("weights") / "vit_tiny.safetensors"
    save_file(vit.state_dict(), path)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with `photos`, `new`, `new_classes` and `photo.jpg`, which pages speak of."""
    random = numpy.random.default_rng(0)
    for root, names, count in (("photos", CLASSES, 8), ("new_classes", NEW_CLASSES, 5)):
        for name in names:
            for number in range(count):
                _make_image(tmp_path / root / name / f"{number}.jpg", random)
    for number in range(3):
        _make_image(tmp_path / "new" / f"{number}.jpg", random)
    _make_image(tmp_path / "photo.jpg", random)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def _make_image(path: Path, random: numpy.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ground = random.integers(0, 255, 3) * numpy.ones((40, 40, 1))
    noise = random.integers(-20, 20, (40, 40, 3))
    Image.fromarray((ground + noise).clip(0, 255).astype(numpy.uint8)).save(path)


@pytest.mark.parametrize("document", documents())
def test_a_document_runs(
    document: str, folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    namespace: dict[str, Any] = {"__name__": "document"}
    printed = ""
    for command in BEFORE.get(document, []):
        run_command(command, weights, capsys)
    for fence in fences(document):
        if not fence.runs:
            printed = ""
        elif fence.language in COMMANDS:
            printed = "".join(run_command(line, weights, capsys) for line in fence.commands())
        elif fence.language == "text" and fence.follows_commands and printed:
            compare(fence, printed)
        elif fence.title:
            path = folder / fence.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(fence.text, encoding="utf-8")
        elif fence.language == "python":
            exec(compile(fence.text, fence.where, "exec"), namespace)


def run_command(command: str, weights: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Run one command line; what it printed."""
    if command == "make demo":
        return run_smope(DEMO, capsys)
    if command.startswith(LEFT_OUT):
        return ""
    words = [word for word in shlex.split(command, comments=True) if word != "PYTHONPATH=."]
    needs_shell = {"-m", "|", "&", "&&", ">"} & set(words) or "*" in command
    if words[0] == "smope" and not needs_shell:
        return run_smope([*words[1:], *small(words, weights)], capsys)
    return _run_in_a_shell(" ".join([command.partition("  #")[0], *small(words, weights)]))


def run_smope(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run `smope` in this process; what it printed."""
    capsys.readouterr()
    code = main(words)
    output = capsys.readouterr()
    assert code == 0, f"smope {shlex.join(words)}: {output.out[-2000:]}{output.err}"
    return output.out


def small(words: list[str], weights: Path) -> list[str]:
    """Overrides that make a training run or a search small."""
    if words[:2] == ["smope", "tune"]:
        return SMALL_SEARCH
    if words[:2] != ["smope", "train"]:
        return []
    if "stream=folder" in words:
        return [f"backbone.weights={weights}", "backbone.image_size=32", "trainer.epochs=1"]
    if re.search(r"\b(experiment|sweep|stream)=", " ".join(words)):
        return ["trainer.epochs=1"] if "stream=shapes" in words else []
    return SMALL_DIGITS


def _run_in_a_shell(command: str) -> str:
    """Run a command line with `smope` on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{command}: {result.stdout[-2000:]}{result.stderr}"
    return result.stdout
