"""Versions of the packages that numbers depend on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "smope",
    "torch",
    "torchvision",
    "timm",
    "avalanche-lib",
    "hydra-core",
    "numpy",
    "scikit-learn",
    "safetensors",
)


def installed_versions() -> dict[str, str]:
    """The version of Python, the platform, and the version of each of PACKAGES."""
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions
