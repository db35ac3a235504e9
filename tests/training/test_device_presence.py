"""A device that cannot be here is refused without torch, and never one that may be here."""

from __future__ import annotations

import sys

import pytest
import torch

from smope.errors import UserError
from smope.training import device_presence
from smope.training.device_presence import refuse_absent_device


def no_library(name: str) -> None:
    raise OSError(f"{name}: cannot open shared object file")


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_these_are_always_here(name: str) -> None:
    refuse_absent_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
@pytest.mark.parametrize(
    ("build", "driver", "refused"),
    [
        ({"cuda": True, "hip": False}, True, False),
        ({"cuda": True, "hip": False}, False, True),
        ({"cuda": False, "hip": False}, True, True),
        ({"cuda": False, "hip": True}, False, False),  # AMD's driver has another name
        ({}, True, False),
    ],
)
def test_cuda(
    name: str, build: dict[str, bool], driver: bool, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_presence, "_torch_build", lambda: build)
    monkeypatch.setattr("ctypes.CDLL", (lambda _: None) if driver else no_library)
    if not refused:
        refuse_absent_device(name)
        return
    with pytest.raises(UserError, match=f"^device={name}: this machine has no such device; use"):
        refuse_absent_device(name, "device")


def test_the_build_is_read_from_the_installed_torch() -> None:
    version = torch.version
    assert device_presence._torch_build() == {
        "cuda": version.cuda is not None,
        "hip": version.hip is not None,
    }
    if torch.cuda.is_available():
        refuse_absent_device("cuda")


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_apple_alone_has_mps(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    if platform == "darwin":
        refuse_absent_device("mps")
        return
    with pytest.raises(UserError, match="device=mps"):
        refuse_absent_device("mps")
