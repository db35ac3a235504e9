"""The tutorials on real photographs and digits, for a photographer and for a researcher: what they
promise comes out.

Images are small, so that this takes minutes and not hours; nothing else is changed.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from smope.cli.main import main
from smope.storage.run_directory import RunDirectory
from smope.storage.run_search import finished_run
from tests.documents.fences import fences

DATA = Path(os.environ.get("SMOPE_DATA", "no such folder"))
WEIGHTS = DATA / "weights" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors"
WITH_WEIGHTS = [f"backbone.weights={WEIGHTS}"]
SMALL_PHOTOS = [*WITH_WEIGHTS, "backbone.image_size=96"]
SMALL_DIGITS = ["experiment=smoke", "name=digits", "backbone.image_size=8", "trainer.record=all"]

pytestmark = pytest.mark.slow


def commands(tutorial: str) -> list[list[str]]:
    """The commands of a tutorial's first block of commands, without their comments."""
    page = fences(f"docs/tutorials/{tutorial}.md")
    block = next(fence for fence in page if fence.language == "bash" and fence.runs)
    return [shlex.split(line, comments=True) for line in block.commands()]


def run(command: list[str], folder: Path, added: list[str]) -> str:
    """Run one command of smope in this process; what it printed."""
    program, name, *rest = command
    assert program == "smope"
    rest += added if name == "train" else []
    printed = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        code = main([name, *rest])
    assert code == 0, printed.getvalue()
    return printed.getvalue()


def exported_answers(graph: Path, folder: Path, paths: list[str]) -> dict[str, str]:
    """The class of each image by the guide's lines for onnxruntime, which know no smope."""
    onnxruntime = pytest.importorskip("onnxruntime")
    page = fences("docs/how-to/predict.md")
    [example] = [fence.text for fence in page if "InferenceSession" in fence.text]
    load, answer = example.split("picture = ")
    names: dict[str, Any] = {}
    exec(load.replace('"model.onnx"', repr(str(graph))), names)
    assert isinstance(names["session"], onnxruntime.InferenceSession)
    answers = {}
    for path in paths:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec("picture = " + answer.replace('"photo.jpg"', repr(str(folder / path))), names)
        answers[path] = printed.getvalue().strip()
    return answers


def served_answers(command: list[str], folder: Path, paths: list[str]) -> dict[str, str]:
    """The class of each image by the JSON endpoint, which ends with Ctrl-C."""
    program = [sys.executable, "-m", *command]
    with subprocess.Popen(program, cwd=folder, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[0]
        head = '--x\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n\r\n'
        parts = [head.encode() + (folder / path).read_bytes() + b"\r\n" for path in paths]
        request = urllib.request.Request(
            f"{address}/predict",
            b"".join(parts) + b"--x--\r\n",
            {"Content-Type": "multipart/form-data; boundary=x"},
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            images = json.load(answer)["images"]
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0
    return {path: image["class"] for path, image in zip(paths, images, strict=True)}


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """`photos`, one folder with a folder for each of eight classes, and `new`, unsorted ones."""
    if not WEIGHTS.is_file():
        pytest.skip("needs the photographs and weights of SMOPE_DATA")
    (tmp_path / "new").mkdir()
    names = sorted(path.name for path in (DATA / "caltech100" / "train").iterdir())
    for name in names[3:11]:
        shutil.copytree(DATA / "caltech100" / "train" / name, tmp_path / "photos" / name)
        for image in sorted((DATA / "caltech100" / "test" / name).iterdir())[:3]:
            shutil.copy(image, tmp_path / "new" / f"{name}-{image.name}")
    return tmp_path


def test_a_photographer_teaches_a_model(photographs: Path) -> None:
    check, train, predict, report = commands("photographs")
    assert "8 classes" in run(check, photographs, [])
    run(train, photographs, WITH_WEIGHTS)
    directory = finished_run(photographs / "runs", print)
    record = RunDirectory(directory).read_record()
    assert record["status"] == "finished"
    ours, simple = record["final_average_accuracy"], record["reference"]["final_average_accuracy"]
    assert ours > 0.8, "eight unlike classes"
    assert ours >= simple - 0.07, "two of 32 test images worse than nearest class mean"
    run(predict, photographs, [])
    with (photographs / "classes.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    right = sum(Path(row["path"]).name.startswith(row["class"]) for row in rows)
    assert right >= 19
    run(report, photographs, [])
    assert (directory / "report.html").is_file()


def test_a_model_is_taught_and_forgets(photographs: Path) -> None:
    train, predict, learn, predict_again, forget, export = commands("teach")
    (photographs / "new_classes").mkdir()
    for name in ("beaver", "binocular"):
        taught = shutil.move(photographs / "photos" / name, photographs / "new_classes" / name)
        for image in sorted(Path(taught).iterdir())[5:]:
            image.unlink()
    text = run(train, photographs, SMALL_PHOTOS)
    assert "the model can learn more classes" in text
    assert "beaver" not in run(predict, photographs, []).replace("new/beaver", "")
    text = run(learn, photographs, [])
    assert "new: beaver (5), binocular (5)" in text
    assert "old classes: " in text
    assert "model-v2.safetensors: 8 classes" in text
    lines = run(predict_again, photographs, []).splitlines()
    right = sum(Path(line.split()[0]).name.startswith(line.split()[1]) for line in lines)
    assert right >= 15
    text = run(forget, photographs, [])
    assert "as if it had never seen" in text
    assert "model-v3.safetensors: 7 classes" in text
    run(export, photographs, [])
    expected = run([*predict_again[:2], "pets/model-v3.safetensors", "new"], photographs, [])
    answers = {line.split()[0]: line.split()[1] for line in expected.splitlines()}
    exported = exported_answers(photographs / "pets.onnx", photographs, list(answers))
    agreeing = sum(exported[path] == name for path, name in answers.items())
    assert agreeing >= len(answers) - 1, "the graph resizes without rounding to bytes"
    assert "beaver" not in exported.values()
    serve = ["smope", "serve", "pets/model-v3.safetensors", "--port", "0"]
    served = served_answers(serve, photographs, list(answers))
    assert served == answers


def test_a_researcher_compares_three_methods(tmp_path: Path) -> None:
    train, collect, report = commands("compare")
    run(train, tmp_path, SMALL_DIGITS)
    table = run(collect, tmp_path, [])
    for method in ("smope", "ridge", "ncm"):
        assert re.search(rf"^\W*{method}\b.*\b2\b", table, re.MULTILINE), table
    run(report, tmp_path, [])
    page = (tmp_path / "runs" / "digits" / "report.html").read_text(encoding="utf-8")
    assert "6 runs of 3 configurations" in page
    assert 'section id="unknown"' in page
    assert len(page) < 3_000_000
