"""`smope verify FILE`: recompute the authors' numbers and compare."""

from __future__ import annotations

import math
from pathlib import Path

from smope.cli.parser import Parser
from smope.errors import UserError

DEFAULT_TOLERANCE = {"float64": 1e-6, "float32": 1e-4}


def run(argv: list[str]) -> int:
    """Exit code 0 only if every quantity is within tolerance, else 1."""
    parser = Parser(
        prog="smope verify",
        description="Recompute every quantity of a reference file with this installation and "
        "compare.",
        epilog="Error: max|a - b| / max|b|, absolute where b is all zero; integers and booleans "
        "must be equal. "
        "Example: smope verify smope_vectors.safetensors --dtype float32 --tolerance 1e-4",
    )
    parser.add_argument("file", type=Path, help="a reference file (.safetensors)")
    parser.add_argument(
        "--dtype",
        choices=sorted(DEFAULT_TOLERANCE),
        default="float64",
        help="compute in (default: float64)",
    )
    parser.add_argument("--tolerance", type=float, help="default: 1e-6 in float64, 1e-4 in float32")
    args = parser.parse_args(argv)
    tolerance = DEFAULT_TOLERANCE[args.dtype] if args.tolerance is None else args.tolerance
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise UserError(f"--tolerance must be a finite number >= 0, got {args.tolerance}")

    import torch

    from smope.reproduction.reference_numbers import verify

    rows = verify(args.file, getattr(torch, args.dtype))
    width = max(len(row.name) for row in rows)
    print(f"{'quantity':<{width}}  {'shape':<16}  max relative error")
    for row in rows:
        verdict = "" if row.passes(tolerance) else "  FAILED"
        error = (
            ("equal" if row.error == 0 else f"{row.error:.0f} differ")
            if row.exact
            else f"{row.error:.1e}"
        )
        print(f"{row.name:<{width}}  {'x'.join(map(str, row.shape)):<16}  {error}{verdict}")
    failed = sum(not row.passes(tolerance) for row in rows)
    print(f"{len(rows) - failed} of {len(rows)} quantities within {tolerance:g} in {args.dtype}")
    return 1 if failed else 0
