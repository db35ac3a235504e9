"""What an image is taken for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from smope.serving.explanation import Explanation

UNKNOWN = "unknown"  # the class name of an image whose best guess is not probable enough


class Guess(NamedTuple):
    """A class, and its probability: the softmax over the logits of all classes seen."""

    class_name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What an image is taken for.

    path:          of the image; None for pictures, arrays, tensors and bytes.
    top:           the K most probable classes, best first.
    unknown_score: the largest logit with a minus sign (Hendrycks et al. 2022, arXiv 1911.11132):
                   higher for images that are like no class seen. `smope.analysis.open_set_scores`
                   says how well it and the probability tell such images apart in a run.
    is_unknown:    whether the best probability is below `min_probability` of `predict`.
    explanation:   where `predict` was asked for it.
    """

    path: Path | None
    top: tuple[Guess, ...]
    unknown_score: float
    is_unknown: bool = False
    explanation: Explanation | None = None

    @property
    def class_name(self) -> str:
        """The best class, or "unknown"; `top[0]` is the best guess even then."""
        return UNKNOWN if self.is_unknown else self.top[0].class_name

    @property
    def probability(self) -> float:
        return self.top[0].probability
