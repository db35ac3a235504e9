"""What each method of conf/method trains and computes, beside what its paper says.

Counted on the objects themselves, in one setting for all: a ViT-B/16 at 224 pixels with random
weights, in the first of ten tasks of twenty classes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_type_hints

import torch

from smope.backbones.vit import Backbone, load_backbone
from smope.config.hydra import compose
from smope.config.overrides import read_overrides
from smope.methods.base import Method, TaskSpan
from smope.metrics.cost import count_flops, count_parameters
from smope.metrics.flops import Gflops
from smope.planning.method_table import settings_digest
from smope.run.build import make_method

BACKBONE, CLASSES, TASKS = "vit_base_patch16_224", 200, 10


def method_rows(names: Sequence[str], config_dir: str | None = None) -> Iterator[dict[str, Any]]:
    """Count each method.

    In a row, train_gflops and infer_gflops have two values: `torch`, what runs here by PyTorch's
    counter, and `paper_convention`, what papers count, whose code computes all rows of the last
    block. cls_saving says how much less the last block computes here. Published numbers have the
    same units as ours. placements are those of method.placement, the first of which is counted.

    Args:
        names: of conf/method.
        config_dir: a folder like conf/ that is searched as well.

    Returns:
        A row of plain values for each name; `settings` is the digest of the counted settings.
    """
    backbone = load_backbone(BACKBONE, weights="random", pixel_statistics="none")
    for name in names:
        yield _row(name, _copy(backbone), config_dir)


def _copy(backbone: Backbone) -> Backbone:
    """A copy for a method to wrap, frozen. Weights are shared, since nobody changes them here."""
    shared = {id(parameter): parameter.requires_grad_(False) for parameter in backbone.parameters()}
    return copy.deepcopy(backbone, shared)


def _row(name: str, backbone: Backbone, config_dir: str | None) -> dict[str, Any]:
    config = compose(read_overrides([f"method={name}"], config_dir))
    with torch.random.fork_rng(devices=[]):
        method = make_method(config.method, config.router, backbone, CLASSES, TASKS)
    reference, trained = method.reference, count_parameters(method)
    flops = count_flops(method, TaskSpan(0, 0, CLASSES // TASKS))
    published = reference.published_parameters
    return {
        "name": name,
        "source": reference.source,
        "note": reference.note,
        "trainable_parameters": {**trained, "total": sum(trained.values())},
        "published_parameters": None if published is None else round(1e6 * published),
        "published_gflops": None
        if reference.published_gflops is None
        else list(reference.published_gflops),
        **{phase: _as_papers_count(flops, phase) for phase in ("train_gflops", "infer_gflops")},
        "cls_saving": flops["cls_saving"],
        "placements": _placements(type(method)) if "placement" in config.method else [],
        "settings": settings_digest(name, config_dir),
    }


def _placements(method: type[Method]) -> list[str]:
    """The values of the argument `placement` of a method, in their order."""
    return [*get_args(get_type_hints(method.__init__)["placement"])]


def _as_papers_count(flops: dict[str, Any], phase: str) -> Gflops:
    return {
        **flops[phase],
        "paper_convention": flops["without_cls_saving"][phase]["paper_convention"],
    }
