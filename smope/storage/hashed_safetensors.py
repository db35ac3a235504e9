"""A safetensors file with a JSON record and a sha256 over both: checkpoints and artefacts.

There is no pickle in it, so reading a file runs no code. The hash finds damaged files; it says
nothing about who wrote them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from smope.errors import UserError

WRITER = re.compile(r'"smope_version": "(\d[\w.+-]{0,40})"')


class OtherFormat(UserError):
    """A file of another format version."""


class Contents(NamedTuple):
    """The record and the tensors of a file, and the hash over both."""

    record: dict[str, Any]
    tensors: dict[str, Tensor]
    sha256: str


def pack(
    record: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    version: int,
    kind: str | None = None,
    sha256: str | None = None,
) -> bytes:
    """The bytes of a file.

    Args:
        record: Plain values, kept as JSON.
        tensors: Tensors by name.
        version: The format version.
        kind: Tells files apart that count their versions separately.
        sha256: Their `content_hash`, where it is known already.
    """
    text, stored = _stored(record, tensors)
    digest = sha256 or _digest(text, stored)
    metadata = {"format_version": str(version), "facts": text, "sha256": digest}
    return save(stored, metadata | ({"kind": kind} if kind else {}))


def content_hash(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """The sha256 (hex) that a file with this record and these tensors has."""
    return _digest(*_stored(record, tensors))


def _stored(
    record: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[str, dict[str, Tensor]]:
    """The record as text and the tensors as they are written: equal contents have equal hashes."""
    stored = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    return json.dumps(record, sort_keys=True), stored


def unpack(
    name: str,
    path: Path,
    version: int,
    fields: Mapping[str, type],
    kind: str | None = None,
    optional: Mapping[str, type] | None = None,
) -> Contents:
    """Read and check a file that `pack` made.

    Args:
        name: What errors call the file, such as "checkpoint".
        path: The file.
        version: The format version that it must have.
        fields: What its record must hold: the type of each value by name.
        kind: The kind that it must have.
        optional: Types of what its record may hold.

    Raises:
        OtherFormat: if it has another version.
        UserError: if it cannot be read, is damaged or is of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # copies: a tensor that is mapped from the file would change, or crash, with the file
            names = file.keys()
            tensors = {key: file.get_tensor(key).clone() for key in names}
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can raise nearly any exception
        raise UserError(
            f"{name} {path}: cannot be read ({type(error).__name__}: {error})"
        ) from error
    if metadata.get("kind") != kind:
        raise UserError(f"{name} {path}: is no {name} of a run, but another safetensors file")
    text = metadata.get("facts", "")
    if metadata.get("format_version") != str(version):
        raise OtherFormat(
            f"{name} {path}: has format version {metadata.get('format_version')}, this smope "
            f"reads {version}; use {_writer(text)}"
        )
    if metadata.get("sha256") != _digest(text, tensors):
        raise UserError(f"{name} {path}: is damaged: its content does not match its sha256")
    record = _record(name, path, text, fields, optional or {})
    return Contents(record, tensors, metadata["sha256"])


def _writer(text: str) -> str:
    """Which smope wrote a file of another format, as far as its record can be read."""
    versions = WRITER.findall(text)  # those of its lessons come before its own
    return (
        f"smope {versions[-1]}, which wrote it" if versions else "the version of smope in run.json"
    )


def _record(
    name: str, path: Path, text: str, fields: Mapping[str, type], optional: Mapping[str, type]
) -> dict[str, Any]:
    """The record of an undamaged file. UserError if it lacks a field or has one of another type."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        record = None
    record = record if isinstance(record, dict) else {}
    wrong = [key for key, kind in fields.items() if not _is(record.get(key), kind)]
    wrong += [key for key, kind in optional.items() if key in record and not _is(record[key], kind)]
    if wrong:
        raise UserError(
            f"{name} {path}: is no {name} of a run: its record makes no sense ({', '.join(wrong)})"
        )
    return record


def _is(value: Any, kind: type) -> bool:
    """Whether a value has exactly a type. Whole numbers are counts: negative ones are wrong."""
    return type(value) is kind and (not isinstance(value, int) or value >= 0)


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def unlike(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that only one side has, or that differ in type or shape, sorted."""
    kinds = [
        {key: (value.dtype, value.shape) for key, value in side.items()} for side in (first, second)
    ]
    return sorted(
        key for key in first.keys() | second.keys() if kinds[0].get(key) != kinds[1].get(key)
    )
