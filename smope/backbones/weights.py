"""Reads pretrained weights from a file, and identifies the file by its sha256."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from smope.backbones.layouts import read_google, unwrap
from smope.backbones.naming import timm_keys
from smope.errors import UserError

EMBEDDED = Path(__file__).parent / "embedded" / "glyph_vit.safetensors"
# What checkpoints often hold beside tensors: settings, and learning rates as numpy's numbers.
HARMLESS = (
    "argparse.Namespace",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)
# A command for the user, which reads only these and tensors, and writes only tensors. {path!r} is
# filled in.
EXTRACTION = (
    'python -c "import argparse, numpy, torch; scalar = numpy.float64().__reduce__()[0]; '
    "torch.serialization.add_safe_globals([argparse.Namespace, numpy.dtype, "
    "type(numpy.dtype(float)), scalar, "
    "(scalar, 'numpy.core.multiarray.scalar')]); found = torch.load({path!r}, map_location='cpu', "
    "weights_only=True); "
    "torch.save({{key: found[key] for key in ('teacher', 'state_dict', 'model') if key in "
    "found}}, 'tensors.pth')\""
)


@dataclass(frozen=True)
class Weights:
    """The parameters of a backbone by timm's keys, without a classification head.

    Attributes:
        tensors: By key.
        source: What the user named.
        sha256: Of the bytes of the file.
        metadata: Text entries of a safetensors header.
    """

    tensors: dict[str, Tensor]
    source: str
    sha256: str
    metadata: Mapping[str, str] = field(default_factory=dict)


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_weights(path: Path, vit: VisionTransformer) -> Weights:
    """Read a .safetensors file, a PyTorch checkpoint of tensors, or one of Google's .npz files.

    No pickled code is run.

    Args:
        path: The file.
        vit: The model that the weights are for, which decides how a .npz file is read; not changed.

    Raises:
        UserError: The file cannot be read, or holds more than tensors.
    """
    metadata: Mapping[str, str] = {}
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        elif path.suffix == ".npz":
            tensors = read_google(path, vit)
        else:
            tensors = unwrap(torch.load(path, map_location="cpu", weights_only=True), path)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"backbone.weights={path}: {_problem(error, path)}") from error
    tensors = timm_keys(tensors, vit.state_dict(), path)
    return Weights(tensors, str(path), file_sha256(path), metadata)


def _problem(error: Exception, path: Path) -> str:
    """Why the file could not be read, and what to do."""
    blocked = (
        re.search(r"GLOBAL ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError)
        else None
    )
    if blocked and blocked[1] in HARMLESS:
        return (
            f"beside tensors it holds {blocked[1]}, and only tensors are read; copy them into a "
            f"file of their own with "
            f"{EXTRACTION.format(path=str(path))} and give that: backbone.weights=tensors.pth"
        )
    if blocked:
        return (
            f"beside tensors it holds {blocked[1]}, which would have to be run, and only tensors "
            f"are read; "
            "get a file of tensors alone, such as .safetensors"
        )
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"not a readable weight file ({reason}); get the file again"


def metadata_numbers(metadata: Mapping[str, str], key: str) -> tuple[float, ...] | None:
    """The list of numbers that a safetensors header stores under `key` as JSON, or None."""
    return tuple(float(value) for value in json.loads(metadata[key])) if key in metadata else None
