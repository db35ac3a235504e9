"""Measure what the pictures show, and store it as measured.json.

    smope train -m method=smope,finetune,ncm,ridge seed=0 name=pictures
    python docs/pictures/measure.py runs/pictures
    python docs/pictures/draw.py

The runs are those of the embedded demo: scanned digits, five tasks of two digits each.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import smope
from smope.streams.digits import load, read_table

FILE = Path(__file__).with_name("measured.json")
BLOCK, HEAD = 5, 0  # whose experts are shown, counted from 0


def measured(folder: Path) -> dict[str, Any]:
    """The accuracies of all runs, and the experts that each digit's first test image uses."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*/run.json"))]
    by_method = {record["method"]: record for record in records}
    run = next(folder.glob("smope-*"))
    first = by_method["smope"]
    return {
        "version": first["versions"]["smope"],
        "block": BLOCK,
        "head": HEAD,
        "class_order": [int(name) for name in first["class_names"]],
        "accuracy_matrix": {
            method: [[round(value, 4) for value in row if value is not None] for row in matrix]
            for method, record in sorted(by_method.items())
            for matrix in [record["accuracy_matrix"]]
        },
        "digits": digits(run),
    }


def digits(run: Path) -> list[dict[str, Any]]:
    """Of each digit one test image: its pixels, and scores and chosen experts of one head."""
    classifier = smope.load(run, device="cpu")
    test, scans = load().test, read_table()
    entries = []
    for digit in range(10):
        index = test.targets.index(digit)
        (prediction,) = classifier.predict(test.images[index])
        routing = classifier.method.routings[BLOCK]
        entries.append(
            {
                "digit": digit,
                "predicted": int(prediction.class_name),
                "pixels": _scan(scans, digit),
                "scores": [round(float(value), 3) for value in routing.scores[0, HEAD]],
                "experts": routing.expert_ids[0, HEAD].tolist(),
            }
        )
    return entries


def _scan(scans: Any, digit: int) -> list[int]:
    """The pixels of the digit's fifth scan, the first one that is a test image."""
    return scans[scans[:, -1] == digit][4, :-1].tolist()


if __name__ == "__main__":
    FILE.write_text(json.dumps(measured(Path(sys.argv[1])), indent=None) + "\n", encoding="utf-8")
    print(FILE)
