"""`smope doctor`: versions and devices, and what is missing, with the remedy."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from smope.cli.parser import Parser
from smope.errors import UserError
from smope.version import __version__

REQUIRED = (
    "torch", "torchvision", "timm", "avalanche-lib", "hydra-core", "omegaconf", "pyyaml",
    "huggingface-hub", "wandb", "tensorboard", "scikit-learn", "scipy", "pandas", "safetensors",
    "matplotlib", "jinja2", "pillow", "numpy", "tqdm",
)  # fmt: skip
OPTIONAL = {
    "pyarrow": "reads data sets in parquet files: pip install 'smope[parquet]'",
    "optuna": "searches hyper-parameters: pip install 'smope[tune]'",
    "uvicorn": "serves a model as a web page: pip install 'smope[serve]'",
    "hydra-joblib-launcher": "runs several jobs of a sweep at once: pip install 'smope[joblib]'",
    "hydra-submitit-launcher": "runs sweeps on Slurm: pip install 'smope[slurm]'",
    "hydra-ray-launcher": "runs sweeps on Ray: pip install 'smope[ray]'",
}
PACKAGE = Path(__file__).parents[1]
EMBEDDED = Path("backbones", "embedded", "glyph_vit.safetensors")


def run(argv: Sequence[str]) -> int:
    """Print the report. Exit code 1 if something that `smope train` needs is missing."""
    description = (
        "Show versions and devices, and what is missing. Exits 1 if `smope train` cannot work here."
    )
    Parser("smope doctor", description, "example:\n  smope doctor").parse_args(argv)
    problems: list[str] = []
    for label, text, problem in _report():
        print(f"{label:<20} {text}")
        if problem:
            problems.append(problem)
    print("\n" + ("\n".join(f"missing: {problem}" for problem in problems) or "nothing is missing"))
    return 1 if problems else 0


def _report() -> Iterator[tuple[str, str, str]]:
    """Lines of the report: label, value, and the problem with its remedy, "" if there is none."""
    yield "smope", f"{__version__} in {PACKAGE}", ""
    too_old = (
        ""
        if sys.version_info >= (3, 11)
        else "Python 3.11 or newer: make a new environment with it"
    )
    yield "python", f"{platform.python_version()} on {platform.platform(terse=True)}", too_old
    for name in REQUIRED:
        installed = _version(name)
        problem = "" if installed else f"{name}: pip install {name}"
        yield name, installed or "not installed", problem
    for name, use in OPTIONAL.items():
        yield name, _version(name) or f"not installed (optional; {use})", ""
    yield "configuration", *_configuration()
    weights = PACKAGE / EMBEDDED
    size = f"{weights.stat().st_size / 2**20:.1f} MiB" if weights.is_file() else ""
    yield (
        "embedded backbone",
        size or "not found",
        "" if size else f"{weights}: install smope again",
    )
    yield from _devices()
    yield (
        "model downloads",
        "off (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else "on first use",
        "",
    )
    writable = os.access(Path.cwd(), os.W_OK)
    yield (
        "runs/ goes to",
        str(Path.cwd()),
        "" if writable else "write access to the current folder: set run_dir=DIR",
    )


def _configuration() -> tuple[str, str]:
    from smope.config.conf_files import conf_dir

    try:
        return str(conf_dir()), ""
    except UserError as error:
        return "not found", str(error)


def _devices() -> Iterator[tuple[str, str, str]]:
    """The devices of torch, and whether torch and torchvision are of the same build."""
    if _version("torch") is None:
        return
    import torch

    if _version("torchvision"):
        try:
            importlib.import_module("torchvision")
        except (RuntimeError, ImportError) as error:
            reason = str(error).splitlines()[0]
            problem = f"a torchvision that fits torch ({reason}): install both in one pip command"
            yield "torchvision import", "fails", problem
    yield "cpu", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads", ""
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB", ""
    if not torch.cuda.is_available():
        yield "cuda", "none", ""
    if torch.backends.mps.is_available():
        yield "mps", "available", ""


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
