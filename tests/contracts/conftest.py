"""Routers and methods as their files in conf/ describe them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import yaml

from smope.backbones.vit import Backbone
from smope.config.conf_files import choice_values, choices, conf_dir
from smope.methods.base import Method
from smope.routers.base import Router
from smope.streams.stream import Stream
from smope.training.trainer import Trainer
from tests.tiny import PassedImages, tiny_backbone, tiny_settings, tiny_stream

ROUTERS = choices("router", [conf_dir()])
METHODS = choices("method", [conf_dir()])
# With experts elsewhere, or that learn on, it is another method for every contract
VARIANTS = [
    *METHODS,
    "smope placement=mlp",
    "smope placement=lora",
    "smope_plus later_epochs_factor=1",
]
SHALLOW = 4  # blocks, so few that every method still joins one of its own
TASKS = 2  # of the stream that methods are tried on
# Of few samples: enough for a classifier that was trained to wide margins
ALIGNMENT = {"alignment_epochs": 20, "alignment_learning_rate": 1e-2}
every_method = pytest.mark.parametrize("name", VARIANTS)
# Prompts in proportion to the 17 tokens of a tiny image, and where a size meant for real images
# would take seconds
SIZES = {
    "length": 4,
    "e_length": 4,
    "top_k": 2,
    "width": 64,
    "layers": 2,
    "noise_width": 8,
    "transport_steps": 500,
}


@pytest.fixture(scope="session")
def stream() -> Stream:
    return tiny_stream(num_tasks=TASKS)


@pytest.fixture(scope="session")
def trained(stream: Stream, own_passes: dict[str, list[int]]) -> Callable[[str], Trainer]:
    """name -> the trainer of that method after both tasks; made once, so tests must copy the
    method to change it.
    """
    made: dict[str, Trainer] = {}

    def train(name: str) -> Trainer:
        if name not in made:
            method = make_method(name, tiny_backbone(), 4)
            made[name] = trainer_of(method, stream)
            passed = PassedImages(method)
            for function in ("prepare_task", "end_task"):
                counts = own_passes.setdefault(f"{name} {function}", [])
                setattr(method, function, passed.during(getattr(method, function), counts))
            made[name].fit()
            del method.prepare_task, method.end_task
            passed.close()
        return made[name]

    return train


@pytest.fixture(scope="session")
def own_passes() -> dict[str, list[int]]:
    """Images that passed through the network in prepare_task and in end_task of each task, by the
    name of a method in `trained`, a blank and that of the function.
    """
    return {}


@pytest.fixture
def method(name: str, trained: Callable[[str], Trainer]) -> Method:
    return trained(name).method.eval()


def trainer_of(method: Method, stream: Stream) -> Trainer:
    settings = tiny_settings(**ALIGNMENT)
    return Trainer(method, stream, settings, seed=0, device=torch.device("cpu"))


def make_router(name: str = "adaptive_noise", **changes: Any) -> Router:
    """The router of conf/router/<name>.yaml; `changes` are for those of its keys that it has."""
    return _make("router", name, changes)


def make_method(
    name: str, backbone: Backbone, num_classes: int, seed: int = 0, **changes: Any
) -> Method:
    """The method of conf/method/<name>.yaml round `backbone`, small, its initial weights from
    `seed`. Words behind the name are key=value.
    """
    name, *words = name.split()
    given = dict(word.split("=") for word in words)
    changes = {**SIZES, **{key: yaml.safe_load(value) for key, value in given.items()}, **changes}
    torch.manual_seed(seed)
    return _make("method", name, changes, backbone=backbone, num_classes=num_classes)


def make_shallow_method(name: str, seed: int = 0, **changes: Any) -> Method:
    """make_method in a backbone of a few blocks, for tests in which more would only take longer.

    The method joins those blocks of its file in conf/ that are there, but for the last one.
    """
    values = _read("method", name.split()[0])
    blocks = {
        key: [block for block in values[key] if block < SHALLOW - 1]
        for key in ("blocks", "g_blocks", "e_blocks")
        if values.get(key) is not None
    }
    return make_method(name, tiny_backbone(depth=SHALLOW), 4, seed, **blocks, **changes)


def _make(group: str, name: str, changes: dict[str, Any], **objects: Any) -> Any:
    values = _read(group, name)
    module, _, attribute = values.pop("_target_").rpartition(".")
    target = getattr(importlib.import_module(module), attribute)
    wanted = inspect.signature(target).parameters
    if "router" in wanted:
        objects["router"] = make_router(changes.get("router", "adaptive_noise"))
    if "total_tasks" in wanted:
        objects["total_tasks"] = TASKS
    return target(
        **{**values, **{key: value for key, value in changes.items() if key in values}}, **objects
    )


def _read(group: str, name: str) -> dict[str, Any]:
    """What `smope train` composes for a choice, as test_conf.py makes sure, without Hydra."""
    return choice_values(group, name, [conf_dir()])


ALIGNED = [name for name in METHODS if "align" in _read("method", name)]
