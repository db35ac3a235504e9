"""Seeds that depend on what they are for and on nothing else."""

from __future__ import annotations

import hashlib


def stable_seed(*parts: int | str) -> int:
    """A seed in 0..2^63-1 from any mix of numbers and words; the same on every machine and in
    every process.
    """
    digest = hashlib.blake2b(",".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
