"""What torchrun tells a process in its environment, and which process of a broken run tells of it.

Imports no torch.
"""

from __future__ import annotations

import functools
import os
from datetime import timedelta

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
ANSWER = timedelta(seconds=5)


def world_size() -> int:
    """How many processes train together; 1 where nothing of the kind launched this one."""
    return int(os.environ["WORLD_SIZE"]) if all(os.environ.get(name) for name in NEEDED) else 1


def rank() -> int:
    """The number of this process among them; process 0 writes and prints."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def local_rank() -> int:
    """The number of this process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", rank())) if world_size() > 1 else 0


@functools.cache
def first_to_fail() -> bool:
    """Whether no other process has asked this before: the first one that fails says why, and those
    that fail because it is gone say nothing. True where the others cannot be asked: an error said
    twice is better than one never said.
    """
    if world_size() == 1:
        return True
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, timeout=ANSWER)
        return store.add(f"smope/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", 1) == 1
    except (RuntimeError, ValueError):
        return True
