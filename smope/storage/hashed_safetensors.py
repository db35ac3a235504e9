"""A safetensors file with a record, in JSON, and a hash over both: what checkpoints and artefacts
are kept in.

No pickle: reading one runs no code. The hash tells a damaged file; it says nothing about who wrote
it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from smope.errors import UserError


class OtherFormat(UserError):
    """A file that another version of this program wrote."""


class Contents(NamedTuple):
    """What a file holds."""

    record: dict[str, Any]
    tensors: dict[str, Tensor]


def seal(
    record: Mapping[str, Any], tensors: Mapping[str, Tensor], version: int, kind: str | None = None
) -> bytes:
    """The bytes of a file of this format version, and of this `kind` where there are others with
    such a number.
    """
    own = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    text = json.dumps(record, sort_keys=True)  # equal contents have equal hashes
    metadata = {"format_version": str(version), "facts": text, "sha256": _digest(text, own)}
    return save(own, metadata | ({"kind": kind} if kind else {}))


def unseal(
    name: str, path: Path, version: int, fields: Mapping[str, type], kind: str | None = None
) -> Contents:
    """The contents of such a file, which errors call `name`; fields: what its record has to hold,
    by type.

    OtherFormat where it is of another version, UserError where it is of another kind, damaged, or
    no such file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except MemoryError:
        raise
    except Exception as error:  # damaged files are met with nearly every class of exception
        raise UserError(
            f"{name} {path}: cannot be read ({type(error).__name__}: {error})"
        ) from error
    if metadata.get("kind") != kind:
        raise UserError(f"{name} {path}: is no {name} of a run, but another safetensors file")
    if metadata.get("format_version") != str(version):
        raise OtherFormat(
            f"{name} {path}: has format version {metadata.get('format_version')}, this smope "
            f"reads {version}; "
            "use the version of smope in run.json"
        )
    text = metadata.get("facts", "")
    if metadata.get("sha256") != _digest(text, tensors):
        raise UserError(f"{name} {path}: is damaged: its content does not match its sha256")
    return Contents(_record(name, path, text, fields), tensors)


def _record(name: str, path: Path, text: str, fields: Mapping[str, type]) -> dict[str, Any]:
    """The record of a file, whose hash says only that it is as it was written.

    UserError where it is none.
    """
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        record = None
    record = record if isinstance(record, dict) else {}
    odd = [key for key, kind in fields.items() if not _is(record.get(key), kind)]
    if odd:
        raise UserError(
            f"{name} {path}: is no {name} of a run: its record makes no sense ({', '.join(odd)})"
        )
    return record


def _is(value: Any, kind: type) -> bool:
    """Whether a value of a record is of a type; whole numbers are counts here, and True is none."""
    return type(value) is kind and (not isinstance(value, int) or value >= 0)


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def unlike(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that only one side has, or that are of another type or size there,
    sorted.
    """
    kinds = [
        {key: (value.dtype, value.shape) for key, value in side.items()} for side in (own, found)
    ]
    return sorted(
        key for key in own.keys() | found.keys() if kinds[0].get(key) != kinds[1].get(key)
    )
