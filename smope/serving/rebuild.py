"""Rebuilding a trained method from an artefact, on the same backbone."""

from __future__ import annotations

import torch

from smope.backbones.vit import Backbone, BackboneIdentity
from smope.config.config import checked_group
from smope.errors import UserError
from smope.methods.base import Method
from smope.routers.base import Router
from smope.run.artefact import Artefact, restore, restore_all
from smope.run.build import check_target, make_backbone, make_method
from smope.run.record_check import refusing_nonsense


def rebuild(
    artefact: Artefact,
    device: torch.device,
    dtype: torch.dtype,
    weights: str | None = None,
    *,
    remembers: bool = False,
) -> Method:
    """Rebuild a method in evaluation mode. The caller's random generators are left as they were.

    Args:
        artefact: what was saved of the method.
        device: where it is rebuilt.
        dtype: of its parameters.
        weights: where the backbone's weights are now; None for where the run read them.
        remembers: whether the method also gets what only learning reads, of a learnable artefact.

    Raises:
        UserError: the weights are others, or the artefact does not fit what is installed.
    """
    method = new_method(artefact, device, dtype, weights)
    if remembers and artefact.learning is not None:
        restore_all(method, artefact)
    else:
        restore(method, artefact)
    return method.eval()


def new_method(
    artefact: Artefact,
    device: torch.device,
    dtype: torch.dtype,
    weights: str | None = None,
    *,
    seed: int = 0,
) -> Method:
    """A method as an artefact describes it, with nothing learned yet.

    Args:
        artefact: its configuration, classes and tasks.
        device: where the method computes.
        dtype: of its parameters.
        weights: where the backbone's weights are now; None for where the run read them, "random"
            for a method of which only names and shapes are needed.
        seed: of the first weights.

    Raises:
        UserError: the weights are others, or the artefact does not fit what is installed.
    """
    for name, kind in (("backbone", Backbone), ("method", Method), ("router", Router)):
        check_target(getattr(artefact, name), kind)
        checked_group(name, getattr(artefact, name))
    with torch.random.fork_rng(devices=[]), refusing_nonsense():  # weights are drawn first
        backbone = _backbone(artefact, weights)
        torch.default_generator.manual_seed(seed)
        method = make_method(
            artefact.method, artefact.router, backbone, artefact.num_classes, artefact.total_tasks
        )
        return method.to(device, dtype)


def _backbone(artefact: Artefact, weights: str | None) -> Backbone:
    """The backbone of the run, with weights from their file, or with random ones where the artefact
    holds the weights.
    """
    mean, std = artefact.identity["mean"], artefact.identity["std"]
    changes = {
        "pixel_statistics": "given",
        "mean": mean,
        "std": std,
        "image_size": artefact.image_size or None,
    }
    if artefact.has_backbone or weights == "random":
        return make_backbone({**artefact.backbone, **changes, "weights": "random"})
    source = weights or artefact.backbone["weights"]
    if source == "random":
        raise UserError(
            "backbone.weights=random: these were drawn for the run and are in no file; train on "
            "others"
        )
    try:
        backbone = make_backbone({**artefact.backbone, **changes, "weights": source})
    except UserError as error:
        if weights is not None:  # the argument that the user gave is called so
            raise UserError(str(error).replace("backbone.weights", "weights")) from error
        raise UserError(
            f"{error}; with weights=FILE (--weights FILE) say where the weights are now"
        ) from error
    _check_identity(artefact, backbone.identity, source)
    return backbone


def _check_identity(artefact: Artefact, identity: BackboneIdentity, source: str) -> None:
    expected = artefact.identity
    if identity.sha256 != expected["sha256"]:
        raise UserError(
            f"weights={source}: is not what the model was trained on (sha256 "
            f"{identity.sha256[:12]}, wanted {expected['sha256'][:12]}); give the file of "
            f"{expected['name']} that the run read from {expected['source']}"
        )
