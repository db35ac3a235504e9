"""Tries each input of broken_inputs.py through the command line in this process, for chaos.py."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))
from broken_inputs import BOMB, INPUTS, RUN, Skipped, Workspace


@dataclass(frozen=True)
class Outcome:
    """How an input was answered.

    Attributes:
        name: The input.
        verdict: clear: with the expected answer in one line, and nothing lost; unclear: in another
            way; crash: an exception left the command line; skipped: this machine cannot try it.
        message: What was printed.
    """

    name: str
    verdict: Literal["clear", "unclear", "crash", "skipped"]
    message: str


def try_inputs(folder: Path, wanted: str = "") -> list[Outcome]:
    """The outcomes of all inputs, each printed as soon as it is known.

    Args:
        folder: A new folder for runs and images.
        wanted: Only inputs whose name contains this text are tried.
    """
    folder.mkdir(parents=True)
    run, images = folder / "run", folder / "images"
    _stopped_run(run)
    shutil.copytree(run, folder / "whole")
    assert call([f"resume={folder / 'whole'}"])[0] == 0
    _pictures(images)
    results = []
    for number, name in enumerate(INPUTS):
        if wanted not in name:
            continue
        workspace = Workspace(
            folder / str(number) / "run", folder / str(number) / "images", folder / str(number)
        )
        shutil.copytree(run, workspace.run)
        shutil.copytree(images, workspace.images)
        results.append(_tried(name, workspace))
        print(f"{results[-1].verdict:<8} {name}: {results[-1].message}", flush=True)
    return results


def _tried(name: str, workspace: Workspace) -> Outcome:
    ends, pattern, prepare = INPUTS[name]
    try:
        prepared = prepare(workspace)
        with (
            contextlib.nullcontext(prepared)
            if isinstance(prepared, list)
            else prepared as arguments
        ):
            before = contents(workspace.run)
            code, out, err = call(arguments)
    except Skipped as why:
        return Outcome(name, "skipped", str(why))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return Outcome(name, "crash", f"{type(error).__name__}: {error}")
    lines = [line for line in err.splitlines() if line.startswith("smope: error: ")]
    answer = next((line for line in [*lines, *out.splitlines()] if re.search(pattern, line)), None)
    if BOMB.exists():
        return Outcome(name, "unclear", "code was run")
    lost = "" if code else _other_numbers(workspace)
    if code and contents(workspace.run) != before:
        lost = "files of the run have changed"
    if lost:
        return Outcome(name, "unclear", lost)
    good = answer is not None and "Traceback" not in err
    good = good and ((code == 0) if ends == "continues" else (code in (1, 2) and len(lines) == 1))
    return Outcome(
        name, "clear" if good else "unclear", answer or f"exit code {code}: {(err or out)[-300:]!r}"
    )


def contents(folder: Path) -> dict[Path, bytes]:
    """The content of every file below a folder, lock files left out."""
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def _other_numbers(workspace: Workspace) -> str:
    """How the accuracy matrix of a resumed run differs from the undamaged one; "" if not at all."""
    record = json.loads((workspace.run / "run.json").read_text())
    whole = json.loads((workspace.scratch.parent / "whole" / "run.json").read_text())
    if record["status"] == "interrupted" or record["accuracy_matrix"] == whole["accuracy_matrix"]:
        return ""
    return f"the matrix is {record['accuracy_matrix']} instead of {whole['accuracy_matrix']}"


def call(arguments: list[str]) -> tuple[int, str, str]:
    """Run `smope train` in this process; returns its exit code, output and error output."""
    from smope.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["train", *arguments])
    return code, out.getvalue(), err.getvalue()


def _stopped_run(path: Path) -> None:
    """A run of two tasks, stopped in the second."""
    from smope.training.phase import RunningPhase

    step = RunningPhase.step

    def stop(self: RunningPhase, *batch: Any) -> None:
        if self.span.index == 1 and self.done == 8:
            raise KeyboardInterrupt
        step(self, *batch)

    with mock.patch.object(RunningPhase, "step", stop):
        code, out, err = call([*RUN, f"run_dir={path}"])
    assert code == 130, out + err
    assert json.loads((path / "run.json").read_text())["status"] == "interrupted"


def _pictures(path: Path) -> None:
    """Write four classes with 8 training and 3 test images each, of 16 by 16 pixels."""
    import numpy
    from PIL import Image

    draw = numpy.random.default_rng(0)
    for split, count in (("train", 8), ("test", 3)):
        for name in "abcd":
            folder = path / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=numpy.uint8)).save(
                    folder / f"{number}.png"
                )
