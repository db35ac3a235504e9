"""From a validated configuration to objects: the one place that looks at `_target_`."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, get_type_hints

import torch
from hydra.utils import get_object

from smope.backbones.vit import Backbone
from smope.config.config import Config
from smope.config.signatures import keys_of
from smope.errors import UserError
from smope.methods.base import Method
from smope.run.build_source import arguments, make_source
from smope.seeding import stable_seed
from smope.streams.stream import Stream, build_stream
from smope.trackers.base import Tracker
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
    """Build a run's objects.

    UserError, before anything is trained or written, for what does not fit together.
    """
    settings: TrainerSettings = _call(config.trainer)
    device = resolve_device(settings.device)
    prepare_process(settings, device)
    backbone = make_backbone(config.backbone)
    stream = make_stream(config, backbone.image_size)
    torch.manual_seed(stable_seed(config.seed, "initialisation"))
    method = make_method(
        config.method, config.router, backbone, len(stream.class_names), len(stream.tasks)
    )
    return Experiment(config, backbone, stream, method, settings, _call(config.tracker), device)


def make_method(
    method: dict[str, Any],
    router: dict[str, Any],
    backbone: Backbone,
    num_classes: int,
    total_tasks: int,
) -> Method:
    """The method of these groups of a configuration round `backbone`; its first weights come from
    torch's generator.
    """
    objects: dict[str, Any] = {"backbone": backbone, "num_classes": num_classes}
    wanted = inspect.signature(get_object(method["_target_"])).parameters
    if "router" in wanted:
        objects["router"] = _call(router)
    if "total_tasks" in wanted:  # a method with something of its own for each task
        objects["total_tasks"] = total_tasks
    return _call(method, **objects)


def make_backbone(group: dict[str, Any]) -> Backbone:
    """The backbone of a group of a configuration."""
    return _call(group)


def check_target(group: dict[str, Any], kind: type) -> None:
    """UserError unless a group, from a file that may be anybody's, names a class or function that
    makes a `kind`, and arguments that it has: nothing else is called in the name of a file.
    """
    target = str(group.get("_target_"))
    try:
        found = get_object(target)
        makes = found if isinstance(found, type) else get_type_hints(found).get("return")
    except Exception as error:  # importing a module may fail with any class of exception
        raise UserError(
            f"{target} is not here ({type(error).__name__}: {error}); install what has it"
        ) from error
    if not (isinstance(makes, type) and issubclass(makes, kind)):
        raise UserError(
            f"{target} makes no {kind.__name__}; get the file from where it was trained"
        )
    unknown = group.keys() - {"_target_"} - keys_of(target, "_target_").keys()
    if unknown:
        raise UserError(
            f"{target} has no {sorted(unknown)[0]} here; use the version of smope that wrote the "
            f"file"
        )


def make_stream(config: Config, image_size: int) -> Stream:
    """The stream of a configuration for images of `image_size` pixels."""
    common = {key: value for key, value in config.stream.items() if key in STREAM_KEYS}
    return build_stream(make_source(config), image_size=image_size, seed=config.seed, **common)


def _call(group: dict[str, Any], **objects: Any) -> Any:
    return get_object(group["_target_"])(**arguments(group), **objects)
