"""The method a second time, as slow and as obvious as it can be written.

Loops over images, blocks, heads, experts and tokens; no batches, no fused kernels, no product code.
Everything follows the formulas below, in the precision of the tensors that it is given (the tests
use float64), and every loop may carry gradients. The tests hold the vectorised product to these
numbers.

One prompted block, for one image and one head with its frozen q, k, v (N, D):
    query    mean of q over all N tokens
    score_e  key_e · query, unscaled
    row i    softmax([chosen scores / sqrt(D), q_i·k_j / sqrt(D)]) · [chosen values; v]
Which K experts are chosen, with range = max score - min score:
    dense    all of them
    train    the best by score - epsilon·range·[flagged frequent]
    eval     the best by score - 2·range·[never used], or by score alone where unused experts are
             not excluded
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Mode = Literal["dense", "train", "eval"]


@dataclass
class SlowExperts:
    """keys, values (H, E, D); how often each expert was used; which are flagged; the keys of the
    task before.
    """

    keys: Tensor
    values: Tensor
    counts: list[list[int]]
    frequent: list[list[bool]]
    old_keys: Tensor | None = None

    @classmethod
    def fresh(cls, keys: Tensor, values: Tensor) -> SlowExperts:
        heads, experts, _ = keys.shape
        nothing = [[0] * experts for _ in range(heads)]
        return cls(keys, values, nothing, [[False] * experts for _ in range(heads)])


@dataclass
class SlowPass:
    """What a forward pass gives: scores[image][block][head] (E,), chosen[image][block][head]
    expert numbers.
    """

    features: list[Tensor] = field(default_factory=list)
    scores: list[list[list[Tensor]]] = field(default_factory=list)
    chosen: list[list[list[list[int]]]] = field(default_factory=list)


@dataclass
class SlowViT:
    """A ViT by its weights (timm's names) with experts in some of its blocks."""

    weights: dict[str, Tensor]
    heads: int
    experts: dict[int, SlowExperts]
    top_k: int
    epsilon: float
    exclude_unused: bool = True
    input_space: bool = False

    @property
    def depth(self) -> int:
        return 1 + max(
            int(name.split(".")[1]) for name in self.weights if name.startswith("blocks.")
        )

    def forward(self, images: Tensor, mode: Mode) -> SlowPass:
        """images (B, 3, S, S), as the patch embedding sees them."""
        result = SlowPass()
        for image in images:
            tokens, scores, chosen = self._tokens(image), [], []
            for block in range(self.depth):
                tokens = self._block(block, tokens, mode, scores, chosen)
            result.features.append(layer_norm(tokens, self.weights, "norm")[0])
            result.scores.append(scores)
            result.chosen.append(chosen)
        return result

    def _tokens(self, image: Tensor) -> Tensor:
        """CLS, registers where there are any, then the patches row by row, with their positions."""
        kernel, bias = (
            self.weights["patch_embed.proj.weight"],
            self.weights["patch_embed.proj.bias"],
        )
        side = kernel.shape[-1]
        patches = []
        for top in range(0, image.shape[1], side):
            for left in range(0, image.shape[2], side):
                pixels = image[:, top : top + side, left : left + side]
                patches.append(torch.stack([(pixels * row).sum() for row in kernel]) + bias)
        prefix = [self.weights["cls_token"][0, 0]]
        prefix += list(self.weights["reg_token"][0]) if "reg_token" in self.weights else []
        positions = self.weights["pos_embed"][0]
        if len(positions) == len(patches):  # positions for the patches alone
            return torch.stack(
                [*prefix, *(patch + place for patch, place in zip(patches, positions, strict=True))]
            )
        return torch.stack(
            [token + place for token, place in zip([*prefix, *patches], positions, strict=True)]
        )

    def _block(self, block: int, x: Tensor, mode: Mode, scores: list, chosen: list) -> Tensor:
        name, w = f"blocks.{block}", self.weights
        attended = self.attention(block, layer_norm(x, w, f"{name}.norm1"), mode, scores, chosen)
        x = x + attended * w.get(f"{name}.ls1.gamma", 1.0)
        hidden = (
            layer_norm(x, w, f"{name}.norm2") @ w[f"{name}.mlp.fc1.weight"].T
            + w[f"{name}.mlp.fc1.bias"]
        )
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        out = hidden @ w[f"{name}.mlp.fc2.weight"].T + w[f"{name}.mlp.fc2.bias"]
        return x + out * w.get(f"{name}.ls2.gamma", 1.0)

    def attention(self, block: int, x: Tensor, mode: Mode, scores: list, chosen: list) -> Tensor:
        """x (N, C) -> (N, C) of one image; appends this block's scores and choices, head by head,
        if it has experts.
        """
        name, w = f"blocks.{block}.attn", self.weights
        qkv = x @ w[f"{name}.qkv.weight"].T + w[f"{name}.qkv.bias"]
        channels = qkv.shape[1] // 3
        width = channels // self.heads
        of_heads, head_scores, head_chosen = [], [], []
        for head in range(self.heads):
            first = head * width
            q, k, v = (
                qkv[:, part * channels + first : part * channels + first + width]
                for part in range(3)
            )
            if f"{name}.q_norm.weight" in w:
                q, k = layer_norm(q, w, f"{name}.q_norm"), layer_norm(k, w, f"{name}.k_norm")
            if block not in self.experts:
                of_heads.append(slow_rows(q, k, v, [], []))
                continue
            keys, values = self._keys_and_values(block, head)
            query = sum(q[token] for token in range(len(q))) / len(q)
            found = torch.stack([(key * query).sum() for key in keys])
            picked = self._choose(block, head, found.tolist(), mode)
            of_heads.append(
                slow_rows(q, k, v, [found[e] for e in picked], [values[e] for e in picked])
            )
            head_scores.append(found)
            head_chosen.append(picked)
        if block in self.experts:
            scores.append(head_scores)
            chosen.append(head_chosen)
        return torch.cat(of_heads, dim=1) @ w[f"{name}.proj.weight"].T + w[f"{name}.proj.bias"]

    def _keys_and_values(self, block: int, head: int) -> tuple[list[Tensor], list[Tensor]]:
        """One head's experts.

        In input space expert e is one C-wide row, which the head sees through W_K and W_V.
        """
        experts = self.experts[block]
        if not self.input_space:
            return list(experts.keys[head]), list(experts.values[head])
        weight = self.weights[f"blocks.{block}.attn.qkv.weight"]
        heads, number, width = experts.keys.shape
        found = []
        for part, rows in ((1, experts.keys), (2, experts.values)):
            first = part * heads * width + head * width
            projection = weight[first : first + width]
            found.append(
                [projection @ torch.cat([rows[h, e] for h in range(heads)]) for e in range(number)]
            )
        return found[0], found[1]

    def keys_of(self, block: int) -> Tensor:
        """(H, E, D): the keys as attention uses them."""
        return torch.stack(
            [torch.stack(self._keys_and_values(block, head)[0]) for head in range(self.heads)]
        )

    def _choose(self, block: int, head: int, scores: list[float], mode: Mode) -> list[int]:
        experts = self.experts[block]
        spread = max(scores) - min(scores)
        if mode == "dense":
            return list(range(len(scores)))
        penalty = [0.0] * len(scores)
        if mode == "train":
            penalty = [self.epsilon * spread * flag for flag in experts.frequent[head]]
        elif self.exclude_unused:
            penalty = [2 * spread * (count == 0) for count in experts.counts[head]]
        return best(
            [score - minus for score, minus in zip(scores, penalty, strict=True)], self.top_k
        )


def slow_rows(
    q: Tensor, k: Tensor, v: Tensor, scores: list[Tensor], values: list[Tensor]
) -> Tensor:
    """One head's attention: every token over the chosen experts and all tokens."""
    scale = 1 / math.sqrt(q.shape[1])
    rows = []
    for i in range(len(q)):
        logits = [score * scale for score in scores] + [
            (q[i] * k[j]).sum() * scale for j in range(len(k))
        ]
        shares = softmax(logits)
        rows.append(sum(share * row for share, row in zip(shares, [*values, *v], strict=True)))
    return torch.stack(rows)


def best(ranking: Sequence[float], number: int) -> list[int]:
    """The places of the `number` largest entries, largest first."""
    return sorted(range(len(ranking)), key=lambda place: ranking[place], reverse=True)[:number]


def softmax(logits: Sequence[Tensor]) -> list[Tensor]:
    largest = max(logit.item() for logit in logits)
    powers = [(logit - largest).exp() for logit in logits]
    total = sum(powers)
    return [power / total for power in powers]


def cross_entropy(logits: Sequence[Tensor], target: int) -> Tensor:
    return -softmax(logits)[target].log()


def layer_norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + 1e-6).sqrt() * weights[f"{name}.weight"] + weights[
        f"{name}.bias"
    ]


def task_cross_entropy(logits: Tensor, labels: Tensor, start: int, stop: int) -> Tensor:
    """Earlier classes at minus infinity, later ones cut off; mean over the images."""
    losses = []
    for row, label in zip(logits, labels.tolist(), strict=True):
        masked = [
            row.new_tensor(-math.inf) if place < start else row[place] for place in range(stop)
        ]
        losses.append(cross_entropy(masked, label))
    return sum(losses) / len(losses)


def router_loss(result: SlowPass, epsilon: float, paper: bool = False) -> Tensor:
    """For each image, block, head and chosen expert: cross-entropy towards it, the others lifted by
    epsilon·range.

    Mean over images, summed over the rest. Paper: minus the softmax mass of the chosen experts.
    """
    total = torch.zeros((), dtype=result.features[0].dtype)
    for blocks, choices in zip(result.scores, result.chosen, strict=True):
        for heads, picks in zip(blocks, choices, strict=True):
            for scores, picked in zip(heads, picks, strict=True):
                spread = (scores.max() - scores.min()).item()
                lifted = [s + epsilon * spread * (e not in picked) for e, s in enumerate(scores)]
                for target in picked:
                    total = total + (
                        -softmax(list(scores))[target] if paper else cross_entropy(lifted, target)
                    )
    return total / len(result.scores)


def prototype_loss(
    keys: Sequence[Tensor],
    old_keys: Sequence[Tensor],
    frequent: list,
    top_k: int,
    paper: bool = False,
) -> Tensor:
    """Each flagged old key asked again: cross-entropy of its scores among the present keys towards
    the K it scored best among the old ones; mean over flagged keys, summed over blocks, heads and
    targets; nothing where none is flagged.

    Paper: minus the softmax mass of the K present keys that it scores best.
    """
    total = torch.zeros((), dtype=keys[0].dtype)
    for new_block, old_block, flags_block in zip(keys, old_keys, frequent, strict=True):
        for new, old, flags in zip(new_block, old_block, flags_block, strict=True):
            prototypes = [row for row, flag in zip(old, flags, strict=True) if flag]
            for prototype in prototypes:
                scores = [(prototype * key).sum() for key in new]
                if paper:
                    targets = best([score.item() for score in scores], top_k)
                    losses = [-softmax(scores)[target] for target in targets]
                else:
                    targets = best([(prototype * key).sum().item() for key in old], top_k)
                    losses = [cross_entropy(scores, target) for target in targets]
                total = total + sum(losses) / len(prototypes)
    return total


def add_counts(model: SlowViT, result: SlowPass) -> None:
    """One more for each of the best K experts, by raw score, of every image, block and head."""
    for blocks in result.scores:
        for experts, heads in zip(model.experts.values(), blocks, strict=True):
            for head, scores in enumerate(heads):
                for expert in best(scores.tolist(), model.top_k):
                    experts.counts[head][expert] += 1


def usage_pass(model: SlowViT, batches: Sequence[Tensor], order_free: bool = False) -> None:
    """Count over the batches in evaluation mode: by the rule on the counts so far, or (order_free)
    by score alone.
    """
    exclude = model.exclude_unused
    for images in batches:
        model.exclude_unused = exclude and not order_free
        with torch.no_grad():
            result = model.forward(images, "eval")
        add_counts(model, result)
    model.exclude_unused = exclude


def flags(counts: Sequence[int], before: Sequence[bool], paper: bool = False) -> list[bool]:
    """One head's frequent flags. Code: at least the mean over the experts used at all, and what was
    flagged stays;
    paper: at least the mean over all experts, decided anew. Unused experts are not frequent.
    """
    used = len(counts) if paper else sum(count > 0 for count in counts)
    fresh = [used > 0 and count > 0 and count >= sum(counts) / used for count in counts]
    return fresh if paper else [new or old for new, old in zip(fresh, before, strict=True)]


def begin_second_task(model: SlowViT, paper: bool = False) -> None:
    """Keep the keys, and flag the experts that were much used."""
    for block, experts in model.experts.items():
        experts.old_keys = model.keys_of(block).detach().clone()
        pairs = zip(experts.counts, experts.frequent, strict=True)
        experts.frequent = [flags(counts, before, paper) for counts, before in pairs]
