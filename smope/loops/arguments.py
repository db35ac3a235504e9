"""From the arguments of Python calls to the objects that a method is made of.

Names of backbones and routers are those of conf/, and so are their values. Values of a method are
checked by its signature, as those of a configuration are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from inspect import Parameter, signature
from typing import Any

import torch
from torch import nn

from smope.backbones.given import given_backbone
from smope.backbones.vit import Backbone, load_backbone
from smope.config.conf_files import choice_values, choices, conf_dir, default_choice
from smope.config.config import checked_group
from smope.errors import UserError
from smope.methods.base import Method
from smope.routers.base import Router
from smope.seeding import stable_seed
from smope.training.settings import TrainerSettings


def make_method(
    kind: type[Method],
    backbone: str | nn.Module,
    num_classes: int,
    settings: Mapping[str, Any],
    seed: int | None = None,
) -> Method:
    """Make a method of plain arguments.

    Args:
        kind: its class.
        backbone: see to_backbone.
        num_classes: of all tasks together.
        settings: further arguments of the class; `router` may be a name.
        seed: of the first weights, which are those of `smope train` with this seed; None draws them
            from torch's global generator.

    Raises:
        UserError: an argument is unknown, missing, of another type or out of range.
    """
    with errors_of_arguments():
        values, objects = _checked(kind, num_classes, settings)
        ready = to_backbone(backbone)
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.default_generator.manual_seed(stable_seed(seed, "initialisation"))
            return kind(backbone=ready, num_classes=num_classes, **objects, **values)


def _checked(
    kind: type[Method], num_classes: int, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values of a method, with its defaults, and what else its constructor needs."""
    if type(num_classes) is not int or num_classes < 1:
        raise UserError(
            f"num_classes must be a whole number from 1 on, got {num_classes}; give the number of "
            f"classes of all tasks together"
        )
    wanted, objects = signature(kind).parameters, {}
    values: dict[str, Any] = {
        name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()
    }
    if "total_tasks" in wanted:
        objects["total_tasks"] = _total_tasks(kind, values.pop("total_tasks", None))
    if "router" in wanted:
        objects["router"] = to_router(values.pop("router", None))
    target = f"{kind.__module__}.{kind.__qualname__}"
    return checked_group("method", {"_target_": target, **values}), objects


def to_backbone(backbone: str | nn.Module) -> Backbone:
    """A frozen backbone.

    Args:
        backbone: a name of timm, with its tag, whose weights come from the Hugging Face Hub; a name
            of conf/backbone, such as sup21k or glyph_vit; a ViT of timm, which is frozen and used
            itself; or what smope.backbones.vit.load_backbone returns.

    Raises:
        UserError: there is no such model, or it has no CLS token.
    """
    if isinstance(backbone, Backbone):
        return backbone
    if isinstance(backbone, nn.Module):
        return given_backbone(backbone)
    if not isinstance(backbone, str):
        raise UserError(
            f"backbone must be a name or a ViT of timm, got a {type(backbone).__name__}; write for "
            f"example backbone='vit_base_patch16_224.augreg_in21k'"
        )
    if backbone != "timm" and backbone in choices("backbone", [conf_dir()]):
        return _chosen("backbone", backbone)
    return load_backbone(backbone)


def to_router(router: Router | str | None) -> Router:
    """A router: one that is ready, that of a name of conf/router, or for None the default of
    `smope train`.
    """
    if isinstance(router, Router):
        return router
    if router is None or isinstance(router, str):
        return _chosen("router", router or default_choice("router"))
    raise UserError(
        f"router must be a name or a router, got a {type(router).__name__}; write for example "
        f"router='topk' or router=smope.routers.topk.TopK(top_k=3)"
    )


def trainer_settings(values: Mapping[str, Any]) -> TrainerSettings:
    """Settings of training with these values, and defaults for the others.

    UserError for an unknown name, and for a value of another type or out of range.
    """
    target = f"{TrainerSettings.__module__}.{TrainerSettings.__qualname__}"
    try:
        return TrainerSettings(**checked_group("trainer", {"_target_": target, **values}))
    except UserError as error:
        raise UserError(str(error).replace("trainer.", "")) from error


def alignment_settings(values: Mapping[str, Any]) -> TrainerSettings:
    """Settings of training with these values for alignment. UserError for other names too."""
    wrong = [name for name in values if not name.startswith("alignment_")]
    if wrong:
        known = [name for name in vars(TrainerSettings()) if name.startswith("alignment_")]
        raise UserError(f"end_task: {wrong[0]} is no argument; there are {', '.join(known)}")
    return trainer_settings(values)


def public_parameters(kind: type[Method]) -> Iterator[Parameter]:
    """The arguments by which a user makes a method: those of its class and, behind **, of its base;
    all but the first two by name alone.
    """
    seen = {"self"}
    for base in kind.__mro__:
        own = vars(base).get("__init__")
        if own is None:
            continue
        parameters = signature(own).parameters.values()
        for parameter in parameters:
            if parameter.kind is Parameter.VAR_KEYWORD or parameter.name in seen:
                continue
            seen.add(parameter.name)
            if parameter.name in ("backbone", "num_classes"):
                yield parameter.replace(annotation=Parameter.empty)
                continue
            changes: dict[str, Any] = {"kind": Parameter.KEYWORD_ONLY}
            if parameter.name == "router":
                changes |= {"default": None, "annotation": "Router | str | None"}
            yield parameter.replace(**changes)
        if all(parameter.kind is not Parameter.VAR_KEYWORD for parameter in parameters):
            return


@contextmanager
def errors_of_arguments() -> Iterator[None]:
    """Within it, errors name arguments as Python has them: num_experts, not method.num_experts."""
    try:
        yield
    except UserError as error:
        text = str(error).replace("backbone.name", "backbone").replace("method.", "")
        raise UserError(text) from error


def _total_tasks(kind: type[Method], total_tasks: Any) -> int:
    if type(total_tasks) is not int or total_tasks < 1:
        raise UserError(
            f"total_tasks must be a whole number from 1 on, got {total_tasks}; {kind.__name__} has "
            f"prompts for each task and is made for as many"
        )
    return total_tasks


def _chosen(group: str, name: str) -> Any:
    """The object of a choice of conf/."""
    values = choice_values(group, name, [conf_dir()])
    module, _, attribute = values["_target_"].rpartition(".")
    return getattr(import_module(module), attribute)(**checked_group(group, values))
