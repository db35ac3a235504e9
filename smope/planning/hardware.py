"""Peak rates of processors as their vendors state them, and the share of it that a run may reach.

Rates are dense matrix products in 10^12 operations a second: float32 on the general units (which
torch uses unless TF32 is allowed), bfloat16 and float16 on tensor cores, without sparsity,
accumulated in float32. Imports no torch.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from smope.console.markup import aligned
from smope.errors import UserError

# An assumption, not a measurement. Large models in training reach 0.3 to 0.5 of a GPU's tensor-core
# peak at best. A small ViT reaches far less, because its kernels end before the next are launched.
UTILISATION = 0.3


@dataclass(frozen=True)
class Hardware:
    """A processor.

    Attributes:
        teraflops: peak rate by trainer.precision, for those that the vendor states.
        memory_gb: 10^9 bytes; None: unknown.
        source: of the numbers.
    """

    teraflops: dict[str, float]
    memory_gb: float | None
    source: str


HARDWARE = {
    "h100": Hardware(
        {"float32": 67, "bfloat16": 989, "float16": 989, "float64": 34},
        80,
        "NVIDIA H100 datasheet, SXM5",
    ),
    "a100": Hardware(
        {"float32": 19.5, "bfloat16": 312, "float16": 312, "float64": 9.7},
        80,
        "NVIDIA A100 datasheet, SXM4 80 GB",
    ),
    "v100": Hardware(
        {"float32": 15.7, "float16": 125, "float64": 7.8}, 32, "NVIDIA V100 datasheet, SXM2 32 GB"
    ),
    "l4": Hardware({"float32": 30.3, "bfloat16": 121, "float16": 121}, 24, "NVIDIA L4 datasheet"),
    "t4": Hardware({"float32": 8.1, "float16": 65}, 16, "NVIDIA T4 datasheet"),
    "rtx4090": Hardware(
        {"float32": 82.6, "bfloat16": 165.2, "float16": 165.2},
        24,
        "NVIDIA Ada GPU architecture whitepaper",
    ),
    "laptop_cpu": Hardware(
        {"float32": 0.768, "float64": 0.384},
        None,
        "no datasheet: 8 cores x 3 GHz x 32 operations a cycle (two AVX2 multiply-adds of 8 "
        "numbers)",
    ),
}


def choose(name: str) -> Hardware:
    """The hardware of a name; UserError if it is not in the table."""
    if name not in HARDWARE:
        near = difflib.get_close_matches(name.lower(), HARDWARE, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(HARDWARE)}"
        raise UserError(f"--hardware {name}: not in the table; {hint}")
    return HARDWARE[name]


def peak(name: str, precision: str) -> float:
    """The peak rate of hardware.

    Args:
        name: in the table.
        precision: trainer.precision.

    Returns:
        Operations in a second.

    Raises:
        UserError: the name is unknown, or has no rate in that precision.
    """
    teraflops = choose(name).teraflops.get(precision)
    if teraflops is None:
        known = ", ".join(choose(name).teraflops)
        raise UserError(
            f"--hardware {name}: states no peak for trainer.precision={precision}; it has "
            f"{known}: choose one of them"
        )
    return teraflops * 1e12


def listing() -> str:
    """The table, for the terminal."""
    rows = [
        ["hardware", "float32", "bfloat16", "float16", "float64", "memory", "peak TFLOP/s from"]
    ]
    for name, item in HARDWARE.items():
        rates = [
            f"{item.teraflops[precision]:g}" if precision in item.teraflops else "-"
            for precision in rows[0][1:5]
        ]
        memory = f"{item.memory_gb} GB" if item.memory_gb else "-"
        rows.append([name, *rates, memory, item.source])
    return aligned(rows)
