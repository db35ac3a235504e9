"""Two processes on this machine that train together, for tests: no torchrun, which would be a third
one.

`in_two_processes("tests.module:function", folder)` calls function(folder) in each, joined. They are
forked from the server of sweeps, which imports torch once for all tests of a session.
"""

from __future__ import annotations

import importlib
import os
import runpy
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
PATIENCE = 300  # seconds
RUN_NAME = "one of two processes"


def in_two_processes(function: str, folder: Path) -> None:
    from smope.sweeps.process import process_context

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environments = [{**os.environ, **common, "RANK": str(rank)} for rank in range(2)]
    outputs = [folder / f"output-{rank}.txt" for rank in range(2)]
    processes = [
        process_context().Process(
            # by its path: over there another package may be called tests
            target=runpy.run_path,
            args=(__file__, {"arguments": (function, folder, *own)}, RUN_NAME),
        )
        for own in zip(environments, outputs, strict=True)
    ]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(PATIENCE)
    finally:
        for process in processes:
            process.kill()
    printed = "\n".join(output.read_text() for output in outputs if output.exists())
    assert [process.exitcode for process in processes] == [0, 0], printed


def main(function: str, folder: Path, environment: Mapping[str, str], output: Path) -> None:
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    # a folder without __init__.py: another package of that name would come before it
    tests = ModuleType("tests")
    tests.__path__ = [str(ROOT / "tests")]
    sys.modules["tests"] = tests

    import torch

    from smope.distributed import collectives
    from smope.streams.stream import import_avalanche

    module, _, name = function.partition(":")
    import_avalanche()
    called = getattr(importlib.import_module(module), name)
    with collectives.joined(torch.device("cpu")):
        called(folder)


if __name__ == RUN_NAME:
    main(*globals()["arguments"])
