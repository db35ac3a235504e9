"""Which devices this machine cannot have, without importing torch: a wrong device is answered at
once. What is not excluded here may still be missing; `device.resolve_device` knows it for certain.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
import sys
from pathlib import Path

from smope.errors import UserError

CUDA_DRIVERS = {"win32": "nvcuda.dll"}  # elsewhere libcuda.so.1


def refuse_absent_device(name: str, key: str = "trainer.device") -> None:
    """Refuse a device that this machine cannot have.

    Args:
        name: auto, cpu, cuda, cuda:N or mps.
        key: the setting that the error names.

    Raises:
        UserError: there is no such device.
    """
    kind = name.partition(":")[0]
    if (kind == "cuda" and _has_no_cuda()) or (kind == "mps" and sys.platform != "darwin"):
        raise UserError(absent_device(name, key))


def absent_device(name: str, key: str) -> str:
    """The message about a device that is not here.

    Args:
        name: of the device.
        key: the setting that asks for it.

    Returns:
        One line.
    """
    return f"{key}={name}: this machine has no such device; use {key}=auto or cpu"


def _has_no_cuda() -> bool:
    """Whether torch was built without CUDA, or its driver is not installed."""
    built_for = _torch_build()
    if not any(built_for.values()):
        return "cuda" in built_for
    if built_for.get("hip"):
        return False  # AMD's devices are called cuda as well and have another driver
    try:
        ctypes.CDLL(CUDA_DRIVERS.get(sys.platform, "libcuda.so.1"))
    except OSError:
        return True
    return False


def _torch_build() -> dict[str, bool]:
    """Whether torch was built for cuda and for hip, from its file version.py; empty if unknown."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return {}
    version = Path(spec.origin).with_name("version.py")
    text = version.read_text(encoding="utf-8") if version.is_file() else ""
    entries = re.findall(r"^(cuda|hip)\b[^=\n]*= *(\S+)", text, re.MULTILINE)
    return {name: value != "None" for name, value in entries}
