"""`smope export`: what it writes and prints, and that its example runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import smope
from smope.cli.main import main

GUIDE = Path(__file__).parents[2] / "docs" / "how-to" / "predict.md"
pytest.importorskip("onnxruntime")


def exported(
    run_dir: Path, folder: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[Path, str]:
    """The file, and the example that was printed with it."""
    file = folder / ("model.pt2" if "torch" in options else "model.onnx")
    capsys.readouterr()
    assert main(["export", str(run_dir), "--out", str(file), *options]) == 0
    printed = capsys.readouterr().out
    assert re.search(
        r"its logits differ from the model's by \d\.\de-0[5-9] of the largest", printed
    )
    return file, printed.partition("without smope:\n\n")[2]


def answer(code: str, folder: Path) -> str:
    """What a program prints in a process that can import neither smope nor timm."""
    blocked = "import sys; sys.modules['smope'] = sys.modules['timm'] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", blocked + code], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--with-preprocessing",),
        pytest.param(("--format", "torch"), marks=pytest.mark.slow),
    ],
)
def test_the_printed_example_classifies(
    options: tuple[str, ...],
    run_dir: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, code = exported(run_dir, tmp_path, capsys, *options)
    image = pictures / "blue" / "2.png"
    shutil.copy(image, tmp_path / "photo.jpg")
    assert len([line for line in code.splitlines() if line.strip()]) <= 14
    [prediction] = smope.load(run_dir).predict(image)
    assert answer(code, tmp_path) == prediction.class_name
    facts = json.loads(file.with_name(f"{file.name}.json").read_text())
    assert facts["classes"] == json.loads((run_dir / "run.json").read_text())["class_names"]
    shape = ["batch", "height", "width", 3] if "--with-preprocessing" in options else None
    assert facts["input"]["shape"] == (shape or ["batch", 3, 16, 16])


def test_the_example_of_the_guide_is_the_printed_one(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, code = exported(run_dir, tmp_path, capsys, "--with-preprocessing")
    assert f"```python\n{code.replace(str(file), 'model.onnx')}```" in GUIDE.read_text("utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], r"MODEL=nowhere: no such file or directory; give a run directory or its mo"),
        ([".", "--out", "a.pt2"], r"--out=a\.pt2: must be a file that ends in \.onnx for --format"),
        ([".", "--format", "torch", "--out", "."], r"--out=\.: must be a file that ends in \.pt2"),
        ([".", "--out", "no/a.onnx"], r"--out=no/a\.onnx: there is no folder no; make it, or na"),
        ([".", "--format", "tf"], r"--format: invalid choice: 'tf' \(choose from"),
        ([], r"required: MODEL; see `smope export --help`"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], message: str, mistake: Any) -> None:
    assert re.search(message, mistake("export", *words))


def test_a_missing_library_is_one_line(mistake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "--format=onnx: needs onnx and onnxscript; run pip install 'smope[onnx]'" in mistake(
        "export", "."
    )
