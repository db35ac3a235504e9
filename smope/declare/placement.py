"""Which routers and losses go with which place of experts.

Read by the configuration, before torch is imported, and by the methods.
"""

from __future__ import annotations


def placement_obstacle(
    placement: str, router: str, *, reads_tokens: bool, sparse: bool, similarity_loss: bool
) -> str:
    """Why a router or a loss cannot be had with experts in a place, and the way out; "" if it can.

    Args:
        placement: "prefix", in attention, or any other, where experts add to a layer's output.
        router: Its name.
        reads_tokens: As `Router.reads_tokens` declares.
        sparse: Whether it chooses among experts; otherwise it uses all, whatever it reads.
        similarity_loss: Whether method.similarity_loss_weight is above 0.
    """
    if placement == "prefix":
        return ""
    if reads_tokens and sparse:
        return (
            f"router={router} chooses for each token, and experts with "
            f"method.placement={placement} serve a whole image; write method.placement=prefix, or "
            f"choose another router, such as router=topk"
        )
    if similarity_loss:
        return (
            f"method.similarity_loss_weight compares the values of prefixes, and an expert with "
            f"method.placement={placement} has none; write method.similarity_loss_weight=0 or "
            f"method.placement=prefix"
        )
    return ""
