"""Recompute the numbers of a reference file with this installation.

A reference file has a small ViT with experts and what the authors' code computed with it. It is a
safetensors file. Its metadata entry `config` (JSON) gives the sizes. Its tensors are the weights of
the ViT (`vit.*`, timm keys), inputs, experts, and the results in three phases: dense warm-up and
sparse training on the first task, sparse training on the second.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from smope.backbones.vit import Backbone, BackboneIdentity
from smope.errors import UserError
from smope.methods.base import TaskSpan
from smope.methods.smope import SMoPE
from smope.routers.adaptive_noise import AdaptiveNoise

REQUIRED_SIZES = (
    "img_size",
    "patch_size",
    "embed_dim",
    "depth",
    "num_heads",
    "num_experts",
    "top_k",
    "num_classes",
    "blocks",
)
REQUIRED_LOSS_WEIGHTS = ("router_weight", "prototype_weight", "epsilon")


@dataclass(frozen=True)
class RecomputedQuantity:
    """How far a recomputed quantity is from the reference.

    error: max|a - b| / max|b|, or max|a - b| if b is all zero. For integers and booleans, which are
           exact, the number of differing entries.
    """

    name: str
    shape: tuple[int, ...]
    error: float
    exact: bool

    def passes(self, tolerance: float) -> bool:
        return self.error == 0 if self.exact else self.error <= tolerance


def read_reference(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the tensors of a reference file; UserError if it is none."""
    from safetensors import safe_open

    if not path.is_file():
        raise UserError(f"FILE={path}: no such file; give a reference file (.safetensors)")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        config = json.loads(metadata["config"])
        missing = [key for key in (*REQUIRED_SIZES, *REQUIRED_LOSS_WEIGHTS) if key not in config]
    except Exception as error:
        raise UserError(
            f"FILE={path}: not a reference file ({type(error).__name__}: {error})"
        ) from error
    if missing:
        raise UserError(f"FILE={path}: its config lacks {', '.join(missing)}")
    return config, tensors


def compare_quantity(name: str, computed: Tensor, expected: Tensor) -> RecomputedQuantity:
    """Compare a recomputed quantity with the reference.

    Args:
        name: Its name in the reference file.
        computed: The recomputed tensor; another shape or a NaN counts as an infinite error.
        expected: The tensor of the reference file, of any dtype.
    """
    computed, expected = computed.detach().cpu(), expected.cpu()
    exact = not expected.is_floating_point()
    if computed.shape != expected.shape:
        return RecomputedQuantity(name, tuple(expected.shape), float("inf"), exact)
    if exact:
        return RecomputedQuantity(
            name, tuple(expected.shape), float((computed != expected).sum()), exact
        )
    if expected.numel() == 0:
        return RecomputedQuantity(name, tuple(expected.shape), 0.0, exact)
    scale = expected.abs().max().item()
    error = (computed.double() - expected.double()).abs().max().item() / (scale or 1.0)
    return RecomputedQuantity(
        name, tuple(expected.shape), error if error == error else float("inf"), exact
    )


def verify(path: Path, dtype: torch.dtype = torch.float64) -> list[RecomputedQuantity]:
    """Recompute every quantity of a reference file and compare.

    Args:
        path: The reference file.
        dtype: The precision to compute in.

    Raises:
        UserError: If the file is no reference file.
    """
    config, tensors = read_reference(path)
    try:
        return list(_Recomputation(config, tensors, dtype).run())
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"FILE={path}: a tensor is missing: {error}") from error
    except (RuntimeError, AssertionError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"FILE={path}: its tensors do not fit its config: {error}") from error


class _Recomputation:
    """The method of a reference file, and its quantities in the order of the file's phases."""

    def __init__(
        self, config: dict[str, Any], tensors: dict[str, Tensor], dtype: torch.dtype
    ) -> None:
        self.reference = tensors
        self.dtype = dtype
        self.method = _build(config, tensors).to(dtype)
        half = config["num_classes"] // 2
        self.tasks = (TaskSpan(0, 0, half), TaskSpan(1, half, config["num_classes"]))

    def run(self) -> Iterator[RecomputedQuantity]:
        method = self.method
        images = self._get("x")
        yield from self._training("dense_task0", images, self.tasks[0], dense=True)
        yield from self._training("sparse_task0", images, self.tasks[0])
        yield from self._routing("sparse_task0_train")
        method.eval()
        method.end_task(self.tasks[0], lambda _: iter([(self._get("x_usage"), torch.empty(0))]))
        yield self._compare("usage.counts", torch.stack([bank.counts for bank in method.experts]))
        method.begin_task(self.tasks[1])
        yield self._compare(
            "usage.frequent", torch.stack([bank.frequent for bank in method.experts])
        )
        yield from self._training("sparse_task1", images, self.tasks[1])
        yield from self._routing("sparse_task1_train")
        method.eval()
        with torch.no_grad():
            features = method.features(images)
            yield self._compare("eval_task1.features", features)
            yield self._compare("eval_task1.logits", method.classify(features))
        yield from self._routing("eval_task1")

    def _training(
        self, phase: str, images: Tensor, task: TaskSpan, dense: bool = False
    ) -> Iterator[RecomputedQuantity]:
        """One training step's forward and backward pass, without the update."""
        method = self.method
        with torch.no_grad():
            for index, bank in enumerate(method.experts):
                assert isinstance(bank.values, Tensor)
                bank.keys.copy_(self._get(f"{phase}.experts.key")[index])
                bank.values.copy_(self._get(f"{phase}.experts.value")[index])
        method.train()
        method.dense = dense
        method.zero_grad()
        features: list[Tensor] = []

        def record_features(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            features.append(output)

        hook = method.backbone.register_forward_hook(record_features)
        losses = method.losses(images, self.reference[f"y_task{task.index}"], task)
        hook.remove()
        sum(losses.values(), torch.zeros((), dtype=self.dtype)).backward()
        cross_entropy = losses.pop("cross_entropy").reshape(1)
        auxiliary = sum(losses.values(), torch.zeros((), dtype=self.dtype)).reshape(1)
        yield self._compare(f"{phase}.features", features[0])
        yield self._compare(f"{phase}.logits", method.classify(features[0]))
        yield self._compare(f"{phase}.cross_entropy", cross_entropy)
        yield self._compare(f"{phase}.auxiliary_loss", auxiliary)
        yield self._compare(f"{phase}.grad.key", _gradients(method, lambda bank: bank.keys))
        yield self._compare(f"{phase}.grad.value", _gradients(method, lambda bank: bank.values))
        yield self._compare(f"{phase}.grad.head.weight", _gradient(method.classifier.weight))

    def _routing(self, phase: str) -> Iterator[RecomputedQuantity]:
        routings = self.method.routings
        yield self._compare(
            f"{phase}.proxy_scores", torch.stack([r.scores for r in routings], dim=1)
        )
        chosen = torch.stack([r.expert_ids for r in routings], dim=1)
        yield self._compare(f"{phase}.selected", chosen.sort(-1).values)

    def _compare(self, name: str, computed: Tensor) -> RecomputedQuantity:
        return compare_quantity(name, computed, self.reference[name])

    def _get(self, name: str) -> Tensor:
        return self.reference[name].to(self.dtype)


def _gradient(parameter: Tensor) -> Tensor:
    return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)


def _gradients(method: SMoPE, select: Callable[[Any], Tensor]) -> Tensor:
    return torch.stack([_gradient(select(bank)) for bank in method.experts])


def _build(config: dict[str, Any], tensors: dict[str, Tensor]) -> SMoPE:
    """The ViT of the reference with its experts, classifier and loss weights."""
    vit: VisionTransformer = timm.create_model(  # pyright: ignore[reportAssignmentType]
        "vit_tiny_patch16_224",
        num_classes=0,
        **{
            key: config[key]
            for key in ("img_size", "patch_size", "embed_dim", "depth", "num_heads")
        },
        **{key: config[key] for key in ("mlp_ratio", "qkv_bias", "qk_norm") if key in config},
    )
    vit.double().load_state_dict(
        {
            key.removeprefix("vit."): value
            for key, value in tensors.items()
            if key.startswith("vit.")
        }
    )
    identity = BackboneIdentity("reference", "reference", "", (0.0,) * 3, (1.0,) * 3)
    method = SMoPE(
        Backbone(vit, identity),
        config["num_classes"],
        AdaptiveNoise(config["top_k"], config["epsilon"]),
        num_experts=config["num_experts"],
        blocks=config["blocks"],
        router_loss_weight=config["router_weight"],
        prototype_loss_weight=config["prototype_weight"],
    )
    method.double()
    with torch.no_grad():
        method.classifier.weight.copy_(tensors["head.weight"])
        method.classifier.bias.copy_(tensors["head.bias"])
    return method
