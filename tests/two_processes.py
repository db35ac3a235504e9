"""Two processes on this machine that train together, for tests: no torchrun, which would be a third
one.

`in_two_processes("tests.module:function", folder)` calls function(folder) in each, joined.
"""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]


def in_two_processes(function: str, folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, function, str(folder)],
            cwd=ROOT,
            env={**os.environ, **common, "RANK": str(rank), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)


def main(function: str, folder: str) -> None:
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
        called(Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
