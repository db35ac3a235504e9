"""What torchrun writes into the environment of a process, and which process reports a failure.

Imports no torch.
"""

from __future__ import annotations

import functools
import os
from datetime import timedelta

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
STORE_TIMEOUT = timedelta(seconds=5)


def world_size() -> int:
    """How many processes train together; 1 if torchrun did not start this one."""
    launched = all(os.environ.get(name) for name in VARIABLES)
    return int(os.environ["WORLD_SIZE"]) if launched else 1


def rank() -> int:
    """The number of this process among them; process 0 writes and prints."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def local_rank() -> int:
    """The number of this process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", rank())) if world_size() > 1 else 0


@functools.cache
def first_to_fail() -> bool:
    """True for the first process that fails, so that only the root cause is printed.

    Also true if the other processes cannot be reached: an error printed twice is better than one
    never printed.
    """
    if world_size() == 1:
        return True
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, timeout=STORE_TIMEOUT)
        return store.add(f"smope/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", 1) == 1
    except (RuntimeError, ValueError):
        return True
