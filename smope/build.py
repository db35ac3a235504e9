"""From a validated configuration to objects: the one place that looks at `_target_`."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from hydra.utils import get_object

from smope.backbones.vit import Backbone
from smope.config import Config
from smope.make_source import make_source
from smope.methods.base import Method
from smope.report.trackers import Tracker
from smope.seeding import stable_seed
from smope.streams.base import Stream, build_stream
from smope.training.device import prepare_process, resolve_device
from smope.training.settings import TrainerSettings

STREAM_KEYS = tuple(inspect.signature(build_stream).parameters)


@dataclass(frozen=True)
class Experiment:
    """Everything that a run needs, on the CPU still."""

    config: Config
    backbone: Backbone
    stream: Stream
    method: Method
    settings: TrainerSettings
    tracker: Tracker
    device: torch.device


def build(config: Config) -> Experiment:
    """Build a run's objects. UserError, before anything is trained or written, for what does not fit together."""
    settings: TrainerSettings = _call(config.trainer)
    device = resolve_device(settings.device)
    prepare_process(settings, device)
    backbone: Backbone = _call(config.backbone)
    stream = make_stream(config, backbone.image_size)
    torch.manual_seed(stable_seed(config.seed, "initialisation"))
    method = make_method(config, backbone, len(stream.class_names), len(stream.tasks))
    return Experiment(config, backbone, stream, method, settings, _call(config.tracker), device)


def make_method(config: Config, backbone: Backbone, num_classes: int, total_tasks: int) -> Method:
    """The method of a configuration round `backbone`; its first weights come from torch's generator."""
    objects: dict[str, Any] = {"backbone": backbone, "num_classes": num_classes}
    wanted = inspect.signature(get_object(config.method["_target_"])).parameters
    if "router" in wanted:
        objects["router"] = _call(config.router)
    if "total_tasks" in wanted:  # a method with something of its own for each task
        objects["total_tasks"] = total_tasks
    return _call(config.method, **objects)


def make_stream(config: Config, image_size: int) -> Stream:
    """The stream of a configuration for images of `image_size` pixels."""
    common = {key: value for key, value in config.stream.items() if key in STREAM_KEYS}
    return build_stream(make_source(config), image_size=image_size, seed=config.seed, **common)


def _call(group: dict[str, Any], **objects: Any) -> Any:
    arguments = {key: value for key, value in group.items() if key != "_target_"}
    return get_object(group["_target_"])(**arguments, **objects)
