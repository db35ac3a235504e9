"""Damages models at random and gives them to the commands that read them.

    python benchmarks/broken_models.py --count 10000            # twenty minutes on one core
    python benchmarks/broken_models.py --count 60 --only learn  # one command, minutes

Models: a small run of each method in METHODS on pictures of four colours, learnable, and the same
for classifying alone. Of each copy one thing is changed: bytes of the file, as by a crash, a bad
disk or a wrong copy; or a value of the record or a tensor, signed with the right hash, as a
stranger could.

Each command runs in a process of its own, in which it gets its share of the files one after the
other. clear: exit code 1 or 2 and one line. works: exit code 0, since what was changed does not
matter to the command, or is nobody's business, such as a name. crash: anything else: an exception,
several lines, a file left behind or changed, code that was run, more than LIMIT_SECONDS.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

METHODS = {
    "smope": ["method.blocks=[0]"],
    "smope_plus": ["method.width=64", "method.blocks=[0]"],
    "ridge": ["method.width=64"],
    "ncm": [],
    "slda": [],
    "coda": ["method.pool_size=6", "method.blocks=[0]"],
}
# Commands and their shares of the files: learning and exporting take seconds where they succeed.
COMMANDS = {"load": 25, "predict": 25, "learn": 10, "forget": 15, "pack": 20, "export": 5}
COLOURS = {"amber": (220, 160, 40), "blue": (60, 60, 200), "coral": (230, 110, 90)}
COLOURS |= {"dark": (30, 30, 30), "emerald": (40, 180, 90), "fuchsia": (200, 40, 180)}
TRAIN = [
    "experiment=smoke",
    "stream=folder",
    "stream.class_order=sorted",
    "stream.num_tasks=2",
    "backbone.image_size=8",
    "trainer.batch_size=8",
    "trainer.frozen_steps=0",
    "trainer.keep=learnable",
    "trainer.device=cpu",
]
LIMIT_SECONDS = 60
MEMORY_LIMIT_BYTES = 8 << 30
FLAG = "code-was-run"  # a folder that appears if code of a file is run
VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2, 7, 10**6, 10**12, 2**63, -(2**70), 0.5, 1e300,
    float("nan"), float("inf"), "", "x", "a\nb", "\x00", "../../x", "os.mkdir", "smope.load",
    [], {}, [0], [[]], ["x"], [None], {"x": 1}, {"_target_": "os.mkdir", "name": FLAG}, "9" * 5000,
]  # fmt: skip


class Pickled:
    def __reduce__(self) -> Any:
        return os.mkdir, (FLAG,)


def damaged_bytes(content: bytes, draw: random.Random) -> bytes:
    """A file as it may come out of a crash, a bad disk or a wrong copy."""
    start, header = draw.randrange(len(content)), struct.unpack("<Q", content[:8])[0]
    end = draw.randrange(start, len(content))
    sizes = [0, 1, header - 1, header + 1, 2**31, 2**63, 2**64 - 1]
    flipped = bytearray(content)
    for _ in range(draw.randrange(1, 20)):
        flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return draw.choice(
        [
            content[:start],
            content[:start] + draw.randbytes(draw.randrange(1, 9)) + content[start:],
            struct.pack("<Q", draw.choice(sizes)) + content[8:],
            content[:start] + bytes(min(512, len(content) - start)) + content[start + 512 :],
            content[:start] + content[end:] + content[start:end],
            content + b"\0" * draw.randrange(1, 99),
            bytes(flipped),
            draw.randbytes(draw.randrange(2000)),
            pickle.dumps(Pickled()),
        ]
    )


def damaged_record(record: Any, draw: random.Random) -> str:
    """Replace, remove or add one value somewhere in a record; returns what was changed."""
    places = list(_places(record, ""))
    holder, key, name = draw.choice(places)
    kind = draw.random()
    if kind < 0.15:
        del holder[key]
        return f"{name} removed"
    value = draw.choice(VALUES)
    if kind < 0.25 and isinstance(holder, list):
        holder.insert(key, holder[key] if draw.random() < 0.5 else value)
        return f"{name} once more"
    if kind < 0.3 and isinstance(holder, dict):
        holder[draw.choice(["x", "_target_", "weights", "_args_"])] = value
        return f"beside {name}: {str(value)[:40]!r}"
    holder[key] = value
    return f"{name} = {str(value)[:40]!r}"


def _places(value: Any, name: str) -> Iterator[tuple[Any, Any, str]]:
    """Every dictionary or list in a record, with each of its keys."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in list(keys):
        inner = f"{name}.{key}".strip(".")
        yield value, key, inner
        if isinstance(value[key], dict | list):
            yield from _places(value[key], inner)


def damaged_tensors(tensors: dict[str, Any], draw: random.Random) -> str:
    """Change one tensor; returns what was changed."""
    import torch

    key = draw.choice(sorted(tensors))
    value = tensors[key]
    changes: dict[str, Callable[[], Any]] = {
        "removed": lambda: None,
        "cut": lambda: value[:-1] if value.ndim else None,
        "longer": lambda: torch.cat([value, value]) if value.ndim else value[None],
        "empty": lambda: value.new_zeros(0),
        "nan": lambda: torch.full_like(value, torch.nan) if value.is_floating_point() else ~value,
        "huge": lambda: torch.full_like(value, 1e30 if value.is_floating_point() else 100),
        "float16": lambda: value.half(),
        "int64": lambda: value.long(),
        "transposed": lambda: value.mT if value.ndim > 1 else value[None],
        "scalar": lambda: torch.tensor(0),
        "renamed": lambda: value,
    }
    name = draw.choice(sorted(changes))
    del tensors[key]
    changed = changes[name]()
    if changed is not None:
        tensors[key + "x" if name == "renamed" else key] = changed
    return f"tensor {key} {name}"


def damaged(model: Path, draw: random.Random) -> tuple[bytes, str]:
    """The content of a model's file with one thing changed, and what that is."""
    from smope.run.artefact import KIND, MODEL_FORMAT_VERSION, read_model, to_bytes
    from smope.storage.hashed_safetensors import pack

    content = model.read_bytes()
    kind = draw.random()
    if kind < 0.5:
        return damaged_bytes(content, draw), "bytes"
    artefact = read_model(model)
    if kind < 0.6:
        what = damaged_tensors(artefact.state, draw)
        return to_bytes(artefact), what
    facts = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])["__metadata__"]
    record = json.loads(facts["facts"])
    what = damaged_record(record, draw)
    return pack(record, artefact.state, MODEL_FORMAT_VERSION, KIND), what


@dataclass(frozen=True)
class Workspace:
    """Models and images, and the words of each command.

    Attributes:
        models: Undamaged ones.
        folder: Where the damaged one lies, alone.
        images: Class folders of pictures.
    """

    models: list[Path]
    folder: Path
    images: Path

    @property
    def model(self) -> Path:
        return self.folder / "model.safetensors"

    def words(self, command: str, draw: random.Random) -> list[str]:
        """A command line for the damaged model."""
        model, new = str(self.model), str(self.images / "test")
        out = ["--out", str(self.folder / "out")]
        emerald = str(self.images / "train" / "emerald")
        return {
            "load": ["predict", model, f"{new}/blue/0.png", "--json", "--device", "cpu"],
            "predict": [
                *("predict", model, f"{new}/blue/0.png", "--device", "cpu", "--top", "2"),
                *("--min-probability", "0.5"),
            ],
            "learn": ["learn", model, emerald, *out, "--device", "cpu"],
            "forget": draw.choice(
                [
                    ["forget", model, "blue", *out, "--device", "cpu"],
                    ["forget", model, "blue", *out, "--images", str(self.images / "train")],
                    ["forget", model, "--undo", *out],
                ]
            ),
            "pack": ["pack", model, *draw.choice([[], ["--learnable"]]), *out],
            "export": ["export", model, "--format", "torch", "--out", f"{out[1]}.pt2"],
        }[command]


def trained_models(folder: Path) -> Workspace:
    """Train a small run of each method; each gives two models."""
    import numpy
    from PIL import Image

    from smope.cli.main import main

    draw, images = numpy.random.default_rng(0), folder / "images"
    for name, colour in COLOURS.items():
        for split, number in (("train", 10), ("test", 3)):
            (images / split / name).mkdir(parents=True)
            for index in range(number):
                pixels = draw.normal(0, 50, (12, 12, 3)) + numpy.array(colour)
                picture = Image.fromarray(pixels.clip(0, 255).astype(numpy.uint8))
                picture.save(images / split / name / f"{index}.png")
    first = folder / "first"
    for name in list(COLOURS)[:4]:
        for split in ("train", "test"):
            shutil.copytree(images / split / name, first / split / name)
    models = []
    for method, settings in METHODS.items():
        run = folder / method
        words = [f"method={method}", *settings, f"stream.root={first}", f"run_dir={run}"]
        with contextlib.redirect_stdout(io.StringIO()):
            assert main(["train", *TRAIN, *words]) == 0
            small = folder / f"{method}.safetensors"
            assert main(["pack", str(run / "model.safetensors"), "--out", str(small)]) == 0
        models += [run / "model.safetensors", small]
    (folder / "damaged").mkdir()
    return Workspace(models, folder / "damaged", images)


def answer(words: Sequence[str]) -> tuple[str, str]:
    """How a command ends: clear, works or crash, and what it says."""
    from smope.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    signal.alarm(LIMIT_SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(list(words))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = next(
            (
                f
                for f in reversed(traceback.extract_tb(error.__traceback__))
                if "/smope/" in f.filename
            ),
            last,
        )
        text = f"{type(error).__name__}: {str(error)[:150]!r} in {where.filename}:{where.lineno}"
        return "crash", text
    finally:
        signal.alarm(0)
    lines = [line for line in err.getvalue().splitlines() if line.startswith("smope: error: ")]
    if code == 0:
        return "works", ""
    if code in (1, 2) and len(lines) == 1 and "Traceback" not in err.getvalue():
        return "clear", lines[0]
    return "crash", f"exit code {code}: {err.getvalue()[-200:]!r}"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def try_command(
    command: str, workspace: Workspace, count: int, seed: int
) -> Iterator[tuple[str, str]]:
    """The verdict on each of `count` damaged models, and what was changed and answered."""
    draw = random.Random(f"{command} {seed}")
    for number in range(count):
        for path in workspace.folder.iterdir():
            path.unlink()
        source = draw.choice(workspace.models)
        content, what = damaged(source, draw)
        workspace.model.write_bytes(content)
        before = contents(workspace.folder)
        verdict, text = answer(workspace.words(command, draw))
        after = contents(workspace.folder)
        if Path(FLAG).exists():
            os.rmdir(FLAG)
            verdict, text = "crash", "code was run"
        elif verdict == "clear" and after != before:
            verdict, text = "crash", f"files were left or changed: {sorted(after)}"
        elif after["model.safetensors"] != content:
            verdict, text = "crash", "the model was changed"
        yield verdict, f"{command} {number} {source.parent.name}/{source.name}, {what}: {text}"


def one_process(folder: Path, command: str, count: int, seed: int) -> None:
    """Try a command, and print a line of JSON for each damaged model."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))

    def late(*_: Any) -> None:
        raise TimeoutError(f"takes longer than {LIMIT_SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    models = [path for method in METHODS for path in _models_of(folder, method)]
    workspace = Workspace(models, folder / f"damaged-{command}", folder / "images")
    workspace.folder.mkdir()
    os.chdir(folder)
    for row in try_command(command, workspace, count, seed):
        print(json.dumps(row), flush=True)


def _models_of(folder: Path, method: str) -> list[Path]:
    return [folder / method / "model.safetensors", folder / f"{method}.safetensors"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 1 if a command crashed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10_000, help="damaged files, of all commands")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=COMMANDS, help="these commands alone")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.folder:
        one_process(options.folder, options.only[0], options.count, options.seed)
        return 0
    commands = options.only or list(COMMANDS)
    shares = sum(COMMANDS[command] for command in commands)
    totals: dict[str, Counter[str]] = {}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        trained_models(Path(name))
        for command in commands:
            count = options.count * COMMANDS[command] // shares
            words = ["--count", str(count), "--seed", str(options.seed), "--only", command]
            totals[command] = _counted([*words, "--folder", name], count)
    print(f"{time.monotonic() - start:.0f} s")
    print("| command | damaged files | clear | works | crash |\n|---|---|---|---|---|")
    for command, counts in totals.items():
        columns = [counts.total(), *(counts[verdict] for verdict in ("clear", "works", "crash"))]
        print(f"| {command} | {' | '.join(f'{column:,}' for column in columns)} |")
    return 1 if any(counts["crash"] for counts in totals.values()) else 0


def _counted(words: Sequence[str], count: int) -> Counter[str]:
    """Start the process of a command, and count its verdicts; crashes are printed."""
    process = subprocess.Popen(
        [sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    counts: Counter[str] = Counter()
    for line in process.stdout:
        verdict, text = json.loads(line)
        counts[verdict] += 1
        if verdict == "crash":
            print(text, flush=True)
    if process.wait() != 0:
        print(f"the process of {words} ended with exit code {process.returncode}", flush=True)
        counts["crash"] += count - counts.total()
    return counts


if __name__ == "__main__":
    sys.exit(main())
