"""The best K experts by the cosine of key and mean query, with a learned temperature.

Chi et al. 2022 (arXiv 2204.09179) found that experts collapse less where scores lie on a sphere: no
key is ahead because it is long.

Shapes: B batch, H heads, E experts of a head, K chosen experts, D head width.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smope.declare.ranges import AtLeast, Positive
from smope.routers.base import ExpertState, Router, Routing, choose, proxy_scores

SHARPEST = 0.01  # lowest temperature, as CLIP bounds its own


class Cosine(Router):
    """An expert's logit in attention is cos(query, key) / temperature. Each head has its own
    temperature.

    Args:
        top_k: K, how many experts are chosen.
        temperature: The initial value. It learns, as its logarithm, and stays above 0.01.
    """

    def __init__(
        self,
        top_k: Annotated[int, AtLeast(1)] = 5,
        temperature: Annotated[float, Positive()] = 0.1,
    ) -> None:
        super().__init__(top_k)
        self.temperature = temperature

    def build(self, num_heads: int, num_experts: int, head_dim: int) -> None:
        """As in `Router.build`: the logarithm of the temperature (H)."""
        start = max(self.temperature, SHARPEST)
        self.log_temperature = nn.Parameter(torch.full((num_heads,), math.log(start)))

    def compared(self, query: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Both of length 1, and keys then of length sqrt(D) / temperature, since attention divides
        by sqrt(D).
        """
        with torch.autocast(query.device.type, enabled=False):
            factor = keys.shape[-1] ** 0.5 * (-self.log_temperature.to(keys.dtype)).exp()
            unit = F.normalize(keys, dim=-1)
            return F.normalize(query.to(keys.dtype), dim=-1), unit * factor[:, None, None]

    def forward(self, query: Tensor, keys: Tensor, state: ExpertState) -> Routing:
        """As in `Router.forward`."""
        scores = proxy_scores(*self.compared(query, keys))
        return choose(scores, scores, self.top_k, state.available)

    @torch.no_grad()
    def end_step(self) -> None:
        self.log_temperature.clamp_(min=math.log(SHARPEST))
