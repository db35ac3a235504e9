"""What every router takes and returns.

Shapes: B batch, H heads, E experts of a head, K chosen experts, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Noise:
    """What a router added to its logits before it chose; only losses read it.

    Attributes:
        noisy: (B, H, E), the logits with noise, with gradient.
        std: (B, H, E), or a number for all, the standard deviation of the noise.
        available: As in ExpertState.
    """

    noisy: Tensor
    std: Tensor | float
    available: Tensor | None = None

    def chance(self, logits: Tensor, threshold: Tensor) -> Tensor:
        """The probability (B, H, E) that an expert exceeds the threshold if its noise is drawn
        again; 0 for one that is not available. Logits (B, H, E) without noise.
        """
        chance = torch.special.ndtr((logits - threshold) / self.std)
        return chance if self.available is None else chance * self.available


@dataclass(frozen=True)
class Routing:
    """The decision of one prompted block for one batch.

    Where each token chooses for itself, B is the number of all images' tokens.

    Attributes:
        scores: (B, H, E), proxy scores of all experts, not scaled by 1/sqrt(D), with gradient.
        expert_ids: (B, H, K) int64, the chosen experts, best first.
        weights: (B, H, K), with which the chosen experts enter the softmax: their scores, unless
            the router has plain_weights = False. Minus infinity: not chosen after all.
        logits: (B, H, E), of the router's own gate, before noise and bias, with gradient; None if
            keys are the gate: then they are the scores, scaled as in attention.
        noise: In training, if the router has noise.
        tokens: N, where each token chooses for itself: the rows of an image follow one another.
        average: How many experts a row chooses on average, where rows differ; None: all K.
    """

    scores: Tensor
    expert_ids: Tensor
    weights: Tensor
    logits: Tensor | None = None
    noise: Noise | None = None
    tokens: int | None = None
    average: int | None = None

    def detach(self) -> Routing:
        """The same decision without its autograd graph, and without what only losses read."""
        scores, weights = self.scores.detach(), self.weights.detach()
        return replace(self, scores=scores, weights=weights, logits=None, noise=None)

    @property
    def num_chosen(self) -> int:
        """How many experts a row chooses, at least on average."""
        return self.average or self.expert_ids.shape[-1]

    @property
    def by_images(self) -> bool:
        """Whether each image as a whole chooses some of the experts."""
        return self.tokens is None and self.num_chosen < self.scores.shape[-1]

    @property
    def chosen(self) -> Tensor:
        """Whether each row chose each expert, (B, H, E) bool."""
        none = torch.zeros_like(self.scores, dtype=torch.bool)
        return none.scatter_(-1, self.expert_ids, self.weights > -torch.inf)

    def gate_logits(self, scale: float) -> Tensor:
        """The logits (B, H, E) of the gate, whichever it is; `scale` is 1/sqrt(D)."""
        return self.scores * scale if self.logits is None else self.logits


@dataclass(frozen=True)
class ExpertState:
    """What a router may know about the past use of its experts.

    Attributes:
        counts: (H, E) int64, for how many images so far each expert was among the best K.
        frequent: (H, E) bool, the experts that earlier tasks rely on.
        available: (H, E) bool, the experts that may be chosen in this training step; None: all.
    """

    counts: Tensor
    frequent: Tensor
    available: Tensor | None = None


def proxy_scores(query: Tensor, keys: Tensor) -> Tensor:
    """Score of each expert for each image: the inner product of key and mean query.

    The "prompt-attention score aggregation" of Le et al. 2026. It is computed in the precision of
    the keys, outside autocast, because rounding to half precision can change the choice.

    Args:
        query: (B, H, D), the mean query over an image's tokens.
        keys: (H, E, D).

    Returns:
        (B, H, E), not scaled by 1/sqrt(D).
    """
    with torch.autocast(query.device.type, enabled=False):
        return torch.einsum("bhd,hed->bhe", query.to(keys.dtype), keys).contiguous()


def score_range(scores: Tensor) -> Tensor:
    """Largest minus smallest score per image and head, (..., E) -> (..., 1), without gradient."""
    smallest, largest = scores.detach().aminmax(dim=-1, keepdim=True)
    return largest - smallest


def choose(scores: Tensor, ranking: Tensor, top_k: int, available: Tensor | None = None) -> Routing:
    """Choose the experts that rank highest.

    Args:
        scores: (B, H, E), which become the weights of the chosen experts.
        ranking: (B, H, E), the scores after penalties, by which experts are chosen.
        top_k: K.
        available: As in ExpertState.
    """
    expert_ids = best(ranking.detach(), top_k, available)
    return Routing(scores, expert_ids, scores.gather(-1, expert_ids))


def of_available(logits: Tensor, available: Tensor | None) -> Tensor:
    """Logits or ranks (..., H, E), minus infinity for experts that are not `available`, which is as
    in ExpertState.
    """
    return logits if available is None else logits.masked_fill(~available, -torch.inf)


def best(ranking: Tensor, top_k: int, available: Tensor | None) -> Tensor:
    """The available experts that rank highest, best first.

    Args:
        ranking: (B, H, E).
        top_k: K.
        available: As in ExpertState.

    Returns:
        (B, H, K).
    """
    ranking = of_available(ranking, available)
    return ranking.topk(top_k, dim=-1).indices


def all_experts(scores: Tensor) -> Routing:
    """The choice of every expert by its score; `expert_ids` are 0 to E - 1 in order."""
    expert_ids = torch.arange(scores.shape[-1], device=scores.device).expand_as(scores)
    return Routing(scores, expert_ids, scores)


def rows_of_tokens(query: Tensor) -> Tensor:
    """The queries of all tokens as rows, image by image, (B, H, N, D) -> (B·N, H, D)."""
    return query.transpose(1, 2).flatten(0, 1)


class Router(nn.Module):
    """Chooses experts for each image and head. A router with `sparse = False` uses all of them.

    Each prompted block has a copy of the router. What a router learns or remembers is a Parameter
    or a buffer that `build` makes: parameters are trained with the experts, both are saved with
    them. In training, `forward` only collects what the images say (step_sum.py); memory changes in
    `end_step`, once an optimizer step, so that parts of a batch and several processes do the same
    as one batch in one process.

    A router repeats itself, and routes an image by itself, unless it declares otherwise below. In
    evaluation every router does both. Noise is drawn by noise.py, so that a resumed run and several
    processes draw the same.

    Args:
        top_k: K, how many experts are chosen, counted as used, and targets of the prototype loss.
        epsilon: Margin of the router loss between chosen and other experts, in units of the score
            range; 0 for none.

    Attributes:
        plain_weights: The weights are the scores of the chosen experts. False: a function of gates
            and scores.
        random_in_training: In training the choice is drawn; a batch cannot be taken in parts then.
        couples_batch: In training the choice for an image depends on the others of its batch, which
            must stay whole and in one process then.
        balance_losses: The losses of declare/balance.py that the router can serve. Literals, since
            the configuration reads them from the source.
        counts_choice: The chosen experts count as used. False: the best K by score, penalties
            aside, as the authors' code counts.
        cv_correction: In the importance and load losses: 0 for the variance over E experts, 1 for
            the unbiased one.
        fixed_number: Each row chooses exactly K experts. False: weights of minus infinity leave
            some out.
        exports: An exporter can record it in a graph; otherwise it is refused by name.
        reads_tokens: `forward` and `dense` get the queries of all tokens, (B, H, N, D), not their
            mean.
    """

    sparse: bool = True
    fixed_number: bool = True
    exports: bool = True
    reads_tokens: bool = False
    plain_weights: bool = True
    random_in_training: bool = False
    couples_batch: bool = False
    balance_losses: tuple[str, ...] = ("importance", "balance", "router_z")
    counts_choice: bool = False
    cv_correction: int = 0

    def __init__(self, top_k: int, epsilon: float = 0.0) -> None:
        super().__init__()
        self.top_k = top_k
        self.epsilon = epsilon

    @property
    def name(self) -> str:
        """By which the configuration chooses it: that of its file."""
        return type(self).__module__.rpartition(".")[2]

    def forward(self, query: Tensor, keys: Tensor, state: ExpertState) -> Routing:
        """Choose experts; `self.training` is true in training and false in evaluation.

        Args:
            query: (B, H, D), the mean query over an image's tokens; (B, H, N, D) for a router that
                reads_tokens.
            keys: (H, E, D), one key for each expert.
            state: The past use of the experts.
        """
        raise TypeError(
            f"{type(self).__name__} does not define forward(query, keys, state) -> Routing"
        )

    def compared(self, query: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Query and keys in the form of which the scores are inner products.

        Args:
            query: (..., D), also of old keys, which stand for queries in the prototype loss.
            keys: (H, E, D).
        """
        return query, keys

    def dense(self, query: Tensor, keys: Tensor) -> Routing:
        """The choice of all experts, as in a warm-up.

        Args:
            query: As in `forward`.
            keys: (H, E, D).
        """
        return all_experts(proxy_scores(*self.compared(query, keys)))

    def build(self, num_heads: int, num_experts: int, head_dim: int) -> None:
        """Make parameters and buffers; called once, when a copy of the router joins its block.

        Args:
            num_heads: H.
            num_experts: E.
            head_dim: D.
        """

    def begin_task(self) -> None:
        """Called before the first step of every task but the first."""

    def end_step(self) -> None:
        """Called after each optimizer step, in all processes: here, what is remembered changes."""

    def used(self, routing: Routing) -> Tensor:
        """The K experts that count as used by each image, (B, H, K)."""
        if self.counts_choice:
            return routing.expert_ids
        return routing.scores.topk(self.top_k, dim=-1).indices

    def uses(self, routing: Routing) -> Tensor:
        """How many images use each expert, (H, E) int64: those of `used`."""
        expert_ids = self.used(routing).transpose(0, 1).flatten(1)
        none = expert_ids.new_zeros(routing.scores.shape[1:])
        return none.scatter_add_(1, expert_ids, torch.ones_like(expert_ids))

    def importance(self, routing: Routing, logits: Tensor) -> Tensor:
        """By how much each image uses each expert, for the importance loss: the softmax over all
        experts, before noise (Riquelme et al. 2021, arXiv 2106.05974, appendix A).

        Args:
            routing: The decision.
            logits: (B, H, E), those of its gate.

        Returns:
            (B, H, E).
        """
        return logits.softmax(-1)

    def load(self, routing: Routing) -> Tensor:
        """The probability (B, H, E) that an expert is among the chosen ones if its noise is drawn
        again, for the load loss; in training, where "load" is in balance_losses.
        """
        raise TypeError(f"{type(self).__name__} does not define load(routing) -> Tensor")
