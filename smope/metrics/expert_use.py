"""How a mixture uses its experts: how many do the work, whether tasks share them, and how clearly
they are chosen.

All but the margin is computed from counts: for how many images each expert was among the K chosen
ones.

Shapes: T tasks, L prompted blocks, H heads, E experts of a head, K chosen experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy
from numpy.typing import NDArray

# Below this share of the possible range a block's experts are used as if there were only K.
COLLAPSED_BELOW = 0.1


def effective_experts(counts: NDArray) -> NDArray[numpy.float64]:
    """exp of the entropy of use: how many equally used experts would be as even, (..., E) ->
    (...); NaN where nothing was counted.
    """
    share = _shares(counts)
    powers = share * numpy.log(numpy.where(share > 0, share, 1))
    return numpy.exp(-powers.sum(-1))


def unused_share(counts: NDArray) -> NDArray[numpy.float64]:
    """Share of the experts that no image chose, (..., E) -> (...)."""
    return (counts == 0).mean(-1)


def max_violation(counts: NDArray) -> NDArray[numpy.float64]:
    """MaxVio of Wang et al. 2024 (arXiv 2408.15664): the largest load over the mean load, minus 1;
    0 if all experts are used alike. (..., E) -> (...).
    """
    return _shares(counts).max(-1) * counts.shape[-1] - 1


def overlap(counts: NDArray) -> NDArray[numpy.float64]:
    """What the uses of two tasks have in common: the sum over experts of min(p_i(e), p_j(e)).

    Args:
        counts: (T, ..., E), of each task.

    Returns:
        (T, T, ...), 0 for disjoint use and 1 for equal use.
    """
    share = _shares(counts)
    return numpy.minimum(share[:, None], share[None]).sum(-1)


def spread(effective: Any, chosen: int, experts: int) -> Any:
    """Where the effective number lies between collapse (0: only K work) and even use (1: all E).

    Args:
        effective: effective experts, a number or an array.
        chosen: K.
        experts: E, more than K.
    """
    return (effective - chosen) / (experts - chosen)


def summarise_use(
    counts: NDArray[numpy.int64], chosen: int, margins: Sequence[float]
) -> dict[str, Any]:
    """What run.json says about the use of experts after a task.

    Args:
        counts: (T, L, H, E), the test images of each task seen so far that chose each expert.
        chosen: K.
        margins: (L), the mean top-k margin, see training.expert_counts.top_k_margin.

    Returns:
        after_task (T), chosen (K), experts (E), and a list with a number for each block, the mean
        over its heads: `effective`, `dead` (share never chosen), `max_violation` and `margin` over
        the images of all tasks, and `overlap`, the mean over pairs of tasks (None after one task).
    """
    tasks, _, _, experts = counts.shape
    total = counts.sum(0)
    pairs = numpy.triu_indices(tasks, 1)
    common = overlap(counts)[pairs].mean((0, -1)).tolist() if tasks > 1 else None
    return {
        "after_task": tasks,
        "chosen": chosen,
        "experts": experts,
        "effective": effective_experts(total).mean(-1).tolist(),
        "dead": unused_share(total).mean(-1).tolist(),
        "max_violation": max_violation(total).mean(-1).tolist(),
        "margin": list(margins),
        "overlap": common,
    }


def tracked_use(use: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of `summarise_use` for a tracker: means over blocks, and the effective experts of
    each prompted block, which are counted from 1.
    """
    names = ("effective", "dead", "max_violation", "margin", "overlap")
    means = {name: float(numpy.mean(use[name])) for name in names if use[name] is not None}
    blocks = {
        f"effective_block_{number}": value for number, value in enumerate(use["effective"], start=1)
    }
    return {**means, **blocks}


def block_numbers(config: Mapping[str, Any], count: int) -> list[int]:
    """The numbers of the prompted blocks in the backbone, from 0.

    Args:
        config: A run's configuration; without method.blocks, the first blocks are prompted.
        count: How many blocks are prompted.
    """
    return list(config["method"].get("blocks") or range(count))


def collapse_sentence(use: Mapping[str, Any], blocks: list[int]) -> str | None:
    """One sentence if experts of some blocks are used as if there were only K of them.

    Args:
        use: what `summarise_use` returned.
        blocks: numbers of the prompted blocks in the backbone.

    Returns:
        The sentence; None if no block has collapsed.
    """
    collapsed = [
        (block, effective)
        for block, effective in zip(blocks, use["effective"], strict=True)
        if spread(effective, use["chosen"], use["experts"]) < COLLAPSED_BELOW
    ]
    if not collapsed:
        return None
    mean = sum(effective for _, effective in collapsed) / len(collapsed)
    return (
        f"The mixture has collapsed: {mean:.1f} of {use['experts']} experts do the work in "
        f"{_named([block for block, _ in collapsed])} (each image chooses {use['chosen']})."
    )


def _named(blocks: list[int]) -> str:
    """`block 3`, `blocks 0-2` or `blocks 0, 2, 3`."""
    if len(blocks) == 1:
        return f"block {blocks[0]}"
    if blocks == [*range(blocks[0], blocks[-1] + 1)]:
        return f"blocks {blocks[0]}-{blocks[-1]}"
    return f"blocks {', '.join(map(str, blocks))}"


def _shares(counts: NDArray) -> NDArray[numpy.float64]:
    with numpy.errstate(invalid="ignore"):
        return counts / counts.sum(-1, keepdims=True)
