"""The methods with prefix prompts a second time: loops over images, blocks, heads, prompts and
tokens.

Written from the papers' formulas (and, where those leave things open, from what the docstrings in
smope/methods say is followed), on the slow ViT of slow_smope.py, in the precision of the tensors
given. A prompt is a pair of lists of rows, keys and values, as wide as all heads together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .slow_smope import SlowViT, best, layer_norm, softmax

Rows = list[Tensor]
Prompt = tuple[Rows, Rows]


@dataclass
class SlowPrefixViT(SlowViT):
    """The slow ViT with a prefix in some of its blocks."""

    prefixes: dict[int, Prompt] = field(default_factory=dict)
    gates: dict[int, Callable[[Tensor], Tensor]] = field(default_factory=dict)

    def feature(self, image: Tensor, prefixes: dict[int, Prompt]) -> Tensor:
        """The CLS feature (C,) of one image (3, S, S) with a prompt for each of some blocks."""
        self.prefixes = prefixes
        return self.forward(image.unsqueeze(0), "eval").features[0]

    def attention(self, block: int, x: Tensor, mode: object, scores: list, chosen: list) -> Tensor:
        name, w = f"blocks.{block}.attn", self.weights
        qkv = x @ w[f"{name}.qkv.weight"].T + w[f"{name}.qkv.bias"]
        channels = qkv.shape[1] // 3
        width = channels // self.heads
        keys, values = self.prefixes.get(block, ([], []))
        of_heads = []
        for head in range(self.heads):
            part = slice(head * width, (head + 1) * width)
            q, k, v = (
                qkv[:, number * channels : (number + 1) * channels][:, part] for number in range(3)
            )
            if f"{name}.q_norm.weight" in w:
                q, k = layer_norm(q, w, f"{name}.q_norm"), layer_norm(k, w, f"{name}.k_norm")
            rows = []
            for i in range(len(q)):
                of_prefix = [(q[i] * key[part]).sum() / math.sqrt(width) for key in keys]
                if block in self.gates:
                    of_prefix = [self.gates[block](logit) for logit in of_prefix]
                shares = softmax(
                    of_prefix + [(q[i] * k[j]).sum() / math.sqrt(width) for j in range(len(k))]
                )
                rows.append(
                    sum(
                        s * row
                        for s, row in zip(shares, [*(u[part] for u in values), *v], strict=True)
                    )
                )
            of_heads.append(torch.stack(rows))
        return torch.cat(of_heads, dim=1) @ w[f"{name}.proj.weight"].T + w[f"{name}.proj.bias"]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / ((a * a).sum().sqrt() * (b * b).sum().sqrt())


def prompt_of(prompts: Tensor, block: int, numbers: Sequence[int]) -> Prompt:
    """prompts (L, 2, M, P, W): those of the given numbers in one block, one after the other."""
    keys = [row for number in numbers for row in prompts[block, 0, number]]
    return keys, [row for number in numbers for row in prompts[block, 1, number]]


def slow_l2p(
    query: Tensor, keys: Tensor, prompts: Tensor, top_k: int
) -> tuple[list[Prompt], Tensor]:
    """L2P: the prompts with the closest keys; how far these keys are."""
    scores = [cosine(query, key) for key in keys]
    numbers = best([score.item() for score in scores], top_k)
    away = sum(1 - scores[number] for number in numbers)
    return [prompt_of(prompts, block, numbers) for block in range(len(prompts))], away


def slow_dual(
    query: Tensor, keys: Tensor, general: Tensor, expert: Tensor, task: int, training: bool
) -> tuple[list[Prompt], Tensor]:
    """DualPrompt: G-prompts, then the E-prompt of the task, known or the closest of those seen."""
    scores = [cosine(query, key) for key in keys]
    number = task if training else best([score.item() for score in scores[: task + 1]], 1)[0]
    g_prompts = [(list(block[0]), list(block[1])) for block in general]
    e_prompts = [prompt_of(expert, block, [number]) for block in range(len(expert))]
    return g_prompts + e_prompts, 1 - scores[number]


def slow_coda(
    query: Tensor, keys: Tensor, attentions: Tensor, prompts: Tensor, use: int
) -> list[Prompt]:
    """CODA-Prompt: in each block the first `use` components, weighted; prompts (L, M, 2, P, W)."""
    found = []
    for k, a, p in zip(keys, attentions, prompts, strict=True):
        weights = [cosine(query * a[m], k[m]) for m in range(use)]
        total = sum(weight * p[m] for m, weight in enumerate(weights))
        found.append((list(total[0]), list(total[1])))
    return found


def slow_deviation(vectors: Sequence[Tensor]) -> Tensor:
    """Mean over all pairs of (inner product - [the same])²."""
    pairs = [
        ((a * b).sum() - float(i == j)) ** 2
        for i, a in enumerate(vectors)
        for j, b in enumerate(vectors)
    ]
    return sum(pairs) / len(pairs)


def slow_vq(
    query: Tensor, keys: Tensor, prompts: Tensor, temperature: float
) -> tuple[list[Prompt], list, list]:
    """VQ-Prompt: hard prompts whose gradient is the soft ones'; the soft and the hard ones of each
    block (2, P, W).
    """
    found, softs, hards = [], [], []
    for k, p in zip(keys, prompts, strict=True):
        shares = softmax(
            [(query * key).sum() / (key * key).sum().sqrt() / temperature for key in k]
        )
        soft = sum(share * one for share, one in zip(shares, p, strict=True))
        away = [((soft - one) ** 2).sum().item() for one in p]
        hard = p[away.index(min(away))]
        through = soft + (hard - soft).detach()
        found.append((list(through[0]), list(through[1])))
        softs.append(soft)
        hards.append(hard)
    return found, softs, hards


def slow_identity(
    query: Tensor, weights: dict[str, Tensor], classes: Sequence[int], task_of: Sequence[int]
) -> int:
    """The task of the likeliest of the seen classes; weights as in TaskIdentity.classifier's
    state.
    """
    inner = weights["0.inner.0.weight"] @ query + weights["0.inner.0.bias"]
    inner = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
    x = query + weights["0.inner.2.weight"] @ inner + weights["0.inner.2.bias"]
    x = (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() * weights["0.norm.weight"] + weights[
        "0.norm.bias"
    ]
    logits = weights["1.weight"] @ x + weights["1.bias"]
    return task_of[max(classes, key=lambda label: logits[label].item())]
