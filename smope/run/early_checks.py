"""Mistakes that can be seen before torch is imported and any image is read."""

from __future__ import annotations

import importlib

from smope.config.config import Config
from smope.config.signatures import chosen_name, class_attribute, takes
from smope.distributed import torchrun
from smope.errors import UserError
from smope.streams.class_order import divide_classes, resolve_class_order
from smope.training.device_presence import refuse_absent_device


def check_early(config: Config) -> None:
    """Refuse a device that is not here, processes that a router cannot divide its batch among, and
    what `check_tasks` refuses, in one UserError.
    """
    messages = []
    for check in (_refuse_absent_device, _refuse_divided_batch, check_tasks):
        try:
            check(config)
        except UserError as error:
            messages.append(str(error))
    if messages:
        raise UserError("; and ".join(messages))


def _refuse_absent_device(config: Config) -> None:
    refuse_absent_device(config.trainer["device"])


def _refuse_divided_batch(config: Config) -> None:
    target, world = config.router["_target_"], torchrun.world_size()
    if world == 1 or not takes(config.method["_target_"], "router"):
        return
    if class_attribute(target, "couples_batch"):
        raise UserError(
            f"router={chosen_name(target)}: it divides the images of a whole batch among experts, "
            f"which {world} processes cannot share; start one process, or choose another router"
        )


def check_tasks(config: Config) -> None:
    """Refuse tasks or an order of classes that do not fit a stream whose classes are known.

    Such a stream names them in its module as CLASS_NAMES. The classes of others are known once
    their images are listed, and are checked then.

    Raises:
        UserError: the configuration does not fit the classes.
    """
    stream = config.stream
    module = importlib.import_module(stream["_target_"].rpartition(".")[0])
    names = getattr(module, "CLASS_NAMES", None)
    if names is None:
        return
    divide_classes(len(names), stream["num_tasks"], stream["classes_per_task"], config.seed)
    resolve_class_order(stream["class_order"], names, config.seed)
