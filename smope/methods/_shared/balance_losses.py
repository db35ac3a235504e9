"""The losses against an uneven use of experts, as a method with routers adds them to its others.

Shapes: L prompted blocks, B batch, H heads, E experts of a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from smope.declare.balance import RouterFacts, obstacle
from smope.distributed import collectives
from smope.errors import UserError
from smope.losses.balance import router_z_loss, switch_balance_loss, variation_loss
from smope.methods.base import BatchDependence
from smope.routers.base import Router, Routing

# These compare the images of a batch, so that the loss of a batch is not a mean over its parts.
OVER_THE_BATCH = ("importance", "load", "balance")


class BalanceLosses:
    """Those losses of losses/balance.py whose weight is above 0.

    Args:
        router: The router of every block.
        num_experts: E.
        weights: The weight of each loss of declare/balance.LOSSES by its name.

    Raises:
        UserError: the router has nothing that a loss could be computed from.
    """

    def __init__(self, router: Router, num_experts: int, weights: Mapping[str, float]) -> None:
        self._weights = {name: weight for name, weight in weights.items() if weight > 0}
        facts = RouterFacts(
            router.name, router.balance_losses, router.top_k, getattr(router, "noise", None)
        )
        for name, weight in self._weights.items():
            problem = obstacle(name, facts, num_experts)
            if problem:
                key = f"method.{name}_loss_weight"
                raise UserError(f"{key}={weight:g}: {problem}; or write {key}=0")

    def __call__(
        self,
        routers: Sequence[Router],
        routings: Sequence[Routing],
        scale: float,
        available: Sequence[Tensor] = (),
    ) -> dict[str, Tensor]:
        """The weighted losses by name; each is in every process that of the whole batch, but for
        router_z, which is a mean over images.

        Args:
            routers: One for each of L blocks.
            routings: Their decisions for one batch, with gradient.
            scale: Attention's, by which proxy scores become logits.
            available: (H, E) bool in each block, the experts that may be chosen in this step. The
                others count in none of the losses but router_z. Empty: all may be.
        """
        if not self._weights:
            return {}
        device = routings[0].scores.device.type
        with torch.autocast(device, enabled=False):  # float32, as the choice itself
            logits = torch.stack([routing.gate_logits(scale) for routing in routings], dim=1)
            mask = torch.stack([*available]) if available else None
            return {
                name: weight * self._loss(name, routers, routings, logits, mask)
                for name, weight in self._weights.items()
            }

    def _loss(
        self,
        name: str,
        routers: Sequence[Router],
        routings: Sequence[Routing],
        logits: Tensor,
        available: Tensor | None,
    ) -> Tensor:
        """One loss without its weight; logits (B, L, H, E), available (L, H, E)."""
        if name == "router_z":
            return router_z_loss(logits)
        if available is not None:
            logits = logits.masked_fill(~available, -torch.inf)
        if name == "balance":
            expert_ids = torch.stack([routing.expert_ids for routing in routings], dim=1)
            probabilities = collectives.whole_batch(logits.softmax(-1))
            return switch_balance_loss(probabilities, collectives.gathered(expert_ids), available)
        amounts = [
            router.load(routing) if name == "load" else router.importance(routing, logits[:, block])
            for block, (router, routing) in enumerate(zip(routers, routings, strict=True))
        ]
        whole = collectives.whole_batch(torch.stack(amounts, dim=1))
        return variation_loss(whole, routers[0].cv_correction, available)

    def batch_dependence(self) -> BatchDependence | None:
        """Why a batch cannot be taken in parts; None if no loss compares its images."""
        for name in OVER_THE_BATCH:
            if name in self._weights:
                key = f"method.{name}_loss_weight"
                return BatchDependence(f"{key}={self._weights[name]:g}", f"{key}=0")
        return None
