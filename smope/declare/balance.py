"""Which losses against an uneven use of experts a router can serve.

Read by the configuration, before torch is imported, and by the methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Weights are keys of a method: importance_loss_weight, ...
LOSSES = ("importance", "load", "balance", "router_z")


@dataclass(frozen=True)
class RouterFacts:
    """What decides which losses a router can serve.

    Attributes:
        name: Of its file in conf/router.
        balance_losses: As `Router.balance_losses` declares.
        top_k: K.
        noise: Its key of that name; None if it has none.
    """

    name: str
    balance_losses: Sequence[str]
    top_k: int
    noise: float | None = None


def obstacle(loss: str, router: RouterFacts, num_experts: int) -> str:
    """Why a loss would be without effect, and the way out; "" if it works.

    Args:
        loss: One of LOSSES.
        router: The router.
        num_experts: E, in each head.
    """
    if loss not in router.balance_losses:
        needs = "noise in its choice" if loss == "load" else "a gate that chooses"
        return f"the {loss} loss needs {needs}, which router={router.name} does not have"
    if loss != "load":
        return ""
    if router.noise == 0:
        return "the load loss needs noise in the choice, and router.noise=0; raise it"
    if router.top_k >= num_experts:
        return (
            f"the load loss has no effect where all experts are chosen, and "
            f"router.top_k=method.num_experts={num_experts}; lower router.top_k"
        )
    return ""
