"""Which means against a collapse of experts make sense with a router.

Read by the configuration, before torch is imported, and by the methods.
"""

from __future__ import annotations

# Keys of a method.
SETTINGS = ("similarity_loss_weight", "expert_dropout")


def no_effect(setting: str, router: str, sparse: bool, top_k: int) -> str:
    """Why a means against collapse would be without effect; "" if it has one.

    Args:
        setting: One of SETTINGS.
        router: Its name.
        sparse: Whether it chooses among experts; otherwise it uses all.
        top_k: K.
    """
    if not sparse:
        reason = f"router={router} uses all experts"
    elif setting == "similarity_loss_weight" and top_k < 2:
        reason = "it compares experts that an image chooses together, and router.top_k=1"
    else:
        return ""
    return f"it has no effect: {reason}; choose others, or write method.{setting}=0"
