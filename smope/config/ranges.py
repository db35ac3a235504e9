"""The range of each key: a predicate, the rule in words, and an example that keeps it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from smope.config.value_types import shown
from smope.errors import UserError

WEIGHT_KEYWORDS = ("embedded", "hub", "random")
CLASS_ORDERS = ("paper", "pilot", "sorted")


@dataclass(frozen=True)
class Rule:
    """What a value must be, in words after `must be`, its test, and a value that passes."""

    text: str
    holds: Callable[[Any], bool]
    example: str


def at_least(minimum: int, example: int) -> Rule:
    return Rule(f"at least {minimum}", lambda value: value >= minimum, str(example))


def within(minimum: int, maximum: int, example: int) -> Rule:
    """For what takes memory or processes: a number too many zeros long ends here, not in a machine
    that swaps.
    """
    text = f"at least {minimum} and at most {maximum}"
    return Rule(text, lambda value: minimum <= value <= maximum, str(example))


def not_negative(example: str) -> Rule:
    return Rule(
        "a finite number, 0 or more", lambda value: math.isfinite(value) and value >= 0, example
    )


def positive(example: str) -> Rule:
    return Rule(
        "a finite number above 0", lambda value: math.isfinite(value) and value > 0, example
    )


def _is_crop(value: list[float]) -> bool:
    return len(value) == 2 and 0 < value[0] <= value[1] <= 1


def _is_range(value: list[int]) -> bool:
    return len(value) == 2 and -30 <= value[0] <= value[1] <= 30


def _are_blocks(value: list[int]) -> bool:
    return bool(value) and min(value) >= 0 and len(set(value)) == len(value)


def _are_sizes(value: list[int] | str) -> bool:
    return value == "random" or (isinstance(value, list) and bool(value) and min(value) >= 1)


def _are_three(value: list[float]) -> bool:
    return len(value) == 3 and all(map(math.isfinite, value))


def _are_names(value: list[int | str]) -> bool:
    return bool(value) and len(set(map(str, value))) == len(value)


def _is_folder_name(value: str) -> bool:
    return bool(value.strip()) and value not in (".", "..") and not re.search(r"[/\\\0\n]", value)


PATH = Rule("a path", lambda value: not isinstance(value, str) or bool(value.strip()), "...")
BLOCKS = Rule("a list of different block numbers, each 0 or more", _are_blocks, "[0,1,2,3,4]")
SHARE = Rule("0 or more and below 1", lambda value: 0 <= value < 1, "0.2")
PROMPT_SIZES = {
    "pool_size": 10, "length": 4, "g_length": 5, "e_length": 20, "top_k": 5, "outliers": 40, "candidates": 600,
    "neighbours": 50,
}  # fmt: skip
PROMPT_WEIGHTS = (
    "pull_weight", "ortho_weight", "soft_weight", "hard_weight", "contrastive_weight", "outlier_weight",
    "outlier_noise",
)  # fmt: skip
RULES: dict[str, Rule] = {
    "seed": Rule("within 0..4294967295", lambda value: 0 <= value < 2**32, "0"),
    "name": Rule("usable as a folder's name, without / or \\", _is_folder_name, "first_try"),
    "run_dir": replace(PATH, example="runs/first_try"),
    "resume": replace(PATH, example="runs/digits/2026-01-31_12-00-00"),
    "stream.root": replace(PATH, example="~/photos"),
    "stream.split_lists": replace(PATH, example="~/imagenet-r"),
    "stream.table": replace(PATH, example="images.csv"),
    "stream.cache_dir": replace(PATH, example="~/.cache/smope/images"),
    "stream.class_order": replace(
        PATH, text="paper, pilot, sorted, a list or a file", example="paper"
    ),
    "backbone.weights": replace(PATH, text="embedded, hub, random or a path", example="hub"),
    "method.num_experts": within(1, 100_000, 25),
    "method.blocks": BLOCKS,
    "method.router_loss_weight": not_negative("1e-5"),
    "method.prototype_loss_weight": not_negative("1e-5"),
    "method.expert_rate_factor": positive("5.0"),
    "method.epochs_factor": at_least(1, 4),
    "method.centroids": within(1, 1000, 1),
    "method.backbone_rate_factor": positive("0.01"),
    "method.penalty": not_negative("1e-3"),
    "method.iterations": at_least(1, 200),
    "method.width": at_least(1, 2000),
    "method.exponents": Rule("two numbers a,b with -30 <= a <= b <= 30", _is_range, "[-8,8]"),
    "method.shrinkage": Rule("above 0 and at most 1", lambda value: 0 < value <= 1, "1e-4"),
    "method.diagonal": positive("1.0"),
    "method.off_diagonal": not_negative("0.0"),
    "method.tukey": Rule("above 0 and at most 1, or null", lambda value: 0 < value <= 1, "0.5"),
    **{f"method.{name}": BLOCKS for name in ("g_blocks", "e_blocks")},
    **{f"method.{name}": at_least(1, example) for name, example in PROMPT_SIZES.items()},
    **{f"method.{name}": not_negative("0.1") for name in PROMPT_WEIGHTS},
    **{
        f"method.{name}": positive("1.0")
        for name in ("prompt_rate_factor", "identity_rate_factor", "temperature")
    },
    "method.identity_epochs": at_least(0, 20),
    "method.prompt_momentum": SHARE,
    "method.outlier_share": SHARE,
    "router.top_k": at_least(1, 5),
    "router.epsilon": not_negative("0.4"),
    "backbone.name": Rule(
        "the name of a timm model", lambda value: bool(value.strip()), "vit_base_patch16_224.dino"
    ),
    "backbone.image_size": within(1, 4096, 224),
    "backbone.mean": Rule("three finite numbers", _are_three, "[0.5,0.5,0.5]"),
    "backbone.std": Rule(
        "three numbers above 0", lambda v: _are_three(v) and min(v) > 0, "[0.5,0.5,0.5]"
    ),
    "stream.num_tasks": at_least(1, 5),
    "stream.classes_per_task": Rule(
        "a list of sizes, each 1 or more",
        lambda v: v == "random" or (bool(v) and min(v) >= 1),
        "[4,3,3]",
    ),
    "stream.crop_scale": Rule(
        "two numbers a,b with 0 < a <= b <= 1, or null", _is_crop, "[0.08,1.0]"
    ),
    "stream.eval_crop": Rule("above 0 and at most 1", lambda value: 0 < value <= 1, "1.0"),
    "stream.split_seed": at_least(0, 0),
    "stream.domains": Rule(
        "a list of different names", lambda v: len(set(map(str, v))) == len(v) > 0, "[photo,sketch]"
    ),
    "stream.validation_fraction": Rule(
        "above 0 and below 1, or null", lambda value: 0 < value < 1, "0.2"
    ),
    "stream.disjoint_classes": Rule("within 0..1", lambda value: 0 <= value <= 1, "0.5"),
    "stream.blurry_images": Rule("within 0..1", lambda value: 0 <= value <= 1, "0.1"),
    "stream.cache_gb": not_negative("8.0"),
    "trainer.batch_size": at_least(1, 32),
    "trainer.eval_batch_size": at_least(1, 128),
    "trainer.gradient_accumulation_steps": at_least(1, 4),
    "trainer.epochs": at_least(1, 6),
    "trainer.dense_epochs": at_least(0, 3),
    "trainer.learning_rate": positive("5e-3"),
    "trainer.weight_decay": not_negative("0.0"),
    "trainer.frozen_steps": at_least(0, 10),
    "trainer.iter_step": at_least(1, 40),
    "trainer.alignment_epochs": at_least(0, 50),
    "trainer.alignment_samples_per_class": within(1, 100_000, 128),
    "trainer.alignment_learning_rate": positive("1e-5"),
    "trainer.num_workers": within(0, 256, 0),
    "trainer.checkpoint_minutes": positive("10"),
    "trainer.checkpoint_steps": at_least(1, 500),
    "trainer.device": Rule(
        "auto, cpu, cuda, cuda:N or mps",
        lambda value: bool(re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", value)),
        "auto",
    ),
}


def check_rule(key: str, value: Any) -> None:
    """Hold a typed value to the rule of its key; UserError where it is broken. null passes."""
    rule = RULES[key]
    if value is not None and not rule.holds(value):
        raise UserError(
            f"{key} must be {rule.text}, got {shown(value)}; write for example {key}={rule.example}"
        )
