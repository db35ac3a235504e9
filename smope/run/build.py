"""From a validated configuration to objects. Only this module calls what `_target_` names."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any, get_type_hints

import torch
from hydra.utils import get_object

from smope.backbones.vit import Backbone
from smope.config.config import Config
from smope.config.signatures import keys_of
from smope.errors import UserError
from smope.methods.base import Method
from smope.routers.base import Router
from smope.run.build_source import arguments, make_source
from smope.seeding import stable_seed
from smope.streams.source import Source
from smope.streams.stream import Stream, build_stream
from smope.trackers.base import Tracker
from smope.training.auto import resolve
from smope.training.device import prepare_process, resolve_device
from smope.training.settings import TrainerSettings

STREAM_KEYS = tuple(inspect.signature(build_stream).parameters)


@dataclass(frozen=True)
class Experiment:
    """The objects of a run, on the CPU, and its configuration with every `auto` resolved."""

    config: Config
    backbone: Backbone
    stream: Stream
    method: Method
    settings: TrainerSettings
    tracker: Tracker
    device: torch.device


def build(config: Config, stream: Stream | None = None) -> Experiment:
    """Build a run's objects. Nothing is trained or written.

    Args:
        config: the run's configuration.
        stream: a stream to use in the place of the configured one.

    Returns:
        The objects.

    Raises:
        UserError: they do not fit together.
    """
    settings: TrainerSettings = _call(config.trainer)
    device = resolve_device(settings.device)
    prepare_process(settings, device)
    # first, since weights may have to come over the network
    source = make_source(config) if stream is None else None
    backbone = make_backbone(config.backbone)
    stream = stream or make_stream(config, backbone.image_size, source)
    torch.manual_seed(stable_seed(config.seed, "initialisation"))
    method = make_method(
        config.method, config.router, backbone, len(stream.class_names), len(stream.tasks)
    )
    resolved = resolve(config.trainer, min(len(task.train) for task in stream.tasks))
    config = replace(config, trainer=config.trainer | resolved)
    settings = replace(settings, **resolved)
    return Experiment(config, backbone, stream, method, settings, _call(config.tracker), device)


def make_method(
    method: dict[str, Any],
    router: dict[str, Any],
    backbone: Backbone,
    num_classes: int,
    total_tasks: int,
) -> Method:
    """Build a method; its first weights are drawn from torch's global generator.

    Args:
        method: the group `method` of a configuration.
        router: the group `router`; not used by methods without one.
        backbone: the method may wrap its blocks.
        num_classes: classes of the whole stream.
        total_tasks: tasks of the whole stream, for methods with prompts for each task.

    Returns:
        The method, on the CPU.
    """
    objects: dict[str, Any] = {"backbone": backbone, "num_classes": num_classes}
    parameters = inspect.signature(get_object(method["_target_"])).parameters
    if "router" in parameters:
        objects["router"] = make_router(router)
    if "total_tasks" in parameters:
        objects["total_tasks"] = total_tasks
    return _call(method, **objects)


def make_router(group: dict[str, Any]) -> Router:
    """The router of the group `router` of a configuration."""
    return _call(group)


def settings_for_tasks(group: dict[str, Any], total_tasks: int, more: int) -> dict[str, Any]:
    """The group `method` for more tasks; see Method.settings_for_tasks.

    Args:
        group: its `_target_` makes a method.
        total_tasks: tasks that the method was made for.
        more: further tasks.
    """
    maker = get_object(group["_target_"])
    if more == 0 or not isinstance(maker, type):
        return group
    return maker.settings_for_tasks(group, total_tasks, more)


def make_backbone(group: dict[str, Any]) -> Backbone:
    """The backbone of the group `backbone` of a configuration."""
    return _call(group)


def check_target(group: dict[str, Any], kind: type) -> None:
    """Check a group that comes from a file, before anything that the file names is called.

    Args:
        group: of a configuration.
        kind: what its `_target_` must make.

    Raises:
        UserError: `_target_` makes something else, or has no such arguments.
    """
    target = str(group.get("_target_"))
    try:
        maker = get_object(target)
        makes = maker if isinstance(maker, type) else get_type_hints(maker).get("return")
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


def make_stream(config: Config, image_size: int, source: Source | None = None) -> Stream:
    """Build the stream of a configuration.

    Args:
        config: its group `stream`, and its seed.
        image_size: pixels of a side.
        source: its images; None looks for them.

    Returns:
        The stream; no image is decoded yet unless the settings say so.
    """
    common = {key: value for key, value in config.stream.items() if key in STREAM_KEYS}
    source = source or make_source(config)
    return build_stream(source, image_size=image_size, seed=config.seed, **common)


def _call(group: dict[str, Any], **objects: Any) -> Any:
    return get_object(group["_target_"])(**arguments(group), **objects)
