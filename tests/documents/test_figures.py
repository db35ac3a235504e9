"""Figures in the README and in docs/ are those of the result files."""

from __future__ import annotations

import re
from decimal import ROUND_HALF_UP, Decimal
from itertools import groupby
from statistics import fmean, pstdev

import pytest

from tests.documents.fences import ROOT, documents

RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.md"))
WITH_SPREAD = re.compile(r"-?\d+\.\d+ ± \d+\.\d+")
NUMBER = re.compile(r"-?\d+\.\d+")


def stated(text: str) -> set[str]:
    """Every mean with its spread that a result file states, or that its rows over seeds give."""
    plain = text.replace("**", "")
    return set(WITH_SPREAD.findall(plain)) | set(_over_seeds(plain))


def _over_seeds(text: str) -> list[str]:
    """Mean ± standard deviation (ddof 0) of each column, over rows that differ in their seed."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    figures = []
    for _, group in groupby(rows, key=_label):
        columns = zip(*group, strict=False)
        for column in columns:
            values = [float(cell) for cell in column if NUMBER.fullmatch(cell)]
            if len(values) > 1:
                figures.append(f"{fmean(values):.2f} ± {pstdev(values):.2f}")
    return figures


def _label(row: list[str]) -> list[str]:
    """What rows over seeds have in common: the first cells that are no numbers."""
    return [cell for cell in row if not re.fullmatch(r"-?[\d., ]*", cell)][:2]


def test_rows_over_seeds_give_their_mean_and_spread() -> None:
    rows = ["| a | seed | FAA |", "|---|---|---|", "| x | 0 | 1.00 |", "| x | 1 | **2.00** |"]
    assert stated("\n".join([*rows, "| y | 0 | 9.0 |"])) == {"1.50 ± 0.50"}


@pytest.mark.parametrize("document", documents())
def test_means_with_spread_are_those_of_the_results(document: str) -> None:
    known = set().union(*(stated(path.read_text(encoding="utf-8")) for path in RESULTS))
    shown = set(WITH_SPREAD.findall((ROOT / document).read_text(encoding="utf-8")))
    assert shown <= known


def test_the_table_of_methods_to_choose_from_rounds_the_results() -> None:
    page = (ROOT / "docs" / "how-to" / "choose.md").read_text(encoding="utf-8")
    cited = re.findall(r"\.\./results/(\w+)\.md", page)
    texts = [(ROOT / f"benchmarks/results/{name}.md").read_text(encoding="utf-8") for name in cited]
    measured = {_one_decimal(figure) for text in texts for figure in NUMBER.findall(text)}
    table = "\n".join(line for line in page.splitlines() if line.startswith("| `"))
    shown = NUMBER.findall(table)
    assert len(shown) > 10
    assert set(shown) <= measured


def _one_decimal(figure: str) -> str:
    return str(Decimal(figure).quantize(Decimal("0.1"), ROUND_HALF_UP))


def test_the_readme_counts_the_methods() -> None:
    count = len([*(ROOT / "conf" / "method").glob("*.yaml")])
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"Beside it are {count - 1} other methods" in page
    assert f"| number of methods | {count} |" in page
