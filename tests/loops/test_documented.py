"""What the README and the site show of Python is what there is, and it runs."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import smope

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = README.partition("\n## Python")[2].partition("\n## ")[0]
PAGE = (ROOT / "docs" / "reference" / "api" / "loops.md").read_text(encoding="utf-8")
TABLE = PAGE.partition("\n| ")[2].partition("\n:::")[0]


def test_all_that_is_public_is_documented() -> None:
    assert set(smope.__all__) - set(re.findall(r"\w+", PAGE)) == {"__version__"}
    assert set(re.findall(r"`(?:smope\.)?([A-Z]\w+)`", TABLE)) <= set(smope.__all__)


def test_the_loop_of_the_readme() -> None:
    """As it is printed, but for a smaller backbone and fewer epochs."""
    [code] = re.findall(r"```python[^\n]*\n(.*?)```", PYTHON, re.DOTALL)
    name, epochs = "vit_base_patch16_224.augreg_in21k", "epochs=20"
    assert name in code and epochs in code
    images, labels = torch.rand(4, 3, 32, 32), torch.tensor([150, 7, 150, 7])
    space = {"tasks": [((150, 7), [(images, labels)]), ((3, 4), [(images, (labels > 9) + 3)])]}
    exec(code.replace(name, "glyph_vit").replace(epochs, "epochs=2"), space)
    assert space["learner"].classes_seen == (3, 4, 7, 150)
    assert set(space["class_ids"].tolist()) <= {3, 4, 7, 150}
