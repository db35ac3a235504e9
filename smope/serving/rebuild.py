"""From an artefact to the method that it is of, on the same backbone."""

from __future__ import annotations

import torch

from smope.backbones.vit import Backbone, BackboneIdentity
from smope.errors import UserError
from smope.methods.base import Method
from smope.routers.base import Router
from smope.run.artefact import Artefact, restore
from smope.run.build import check_target, make_backbone, make_method


def rebuild(
    artefact: Artefact, device: torch.device, dtype: torch.dtype, weights: str | None = None
) -> Method:
    """The method in evaluation mode; no random number of the caller's is drawn.

    weights: where the backbone's weights are now; None: where the run found them. UserError where
    these are others, or the artefact does not fit what is installed.
    """
    for group, kind in (
        (artefact.backbone, Backbone),
        (artefact.method, Method),
        (artefact.router, Router),
    ):
        check_target(group, kind)
    with torch.random.fork_rng(devices=[]):  # first weights are drawn, and then replaced
        backbone = _backbone(artefact, weights)
        method = make_method(
            artefact.method, artefact.router, backbone, artefact.num_classes, artefact.total_tasks
        ).to(device, dtype)
    restore(method, artefact)
    return method.eval()


def _backbone(artefact: Artefact, weights: str | None) -> Backbone:
    """The backbone of the run: its weights from their file, or none yet where the artefact has
    them.
    """
    mean, std = artefact.identity["mean"], artefact.identity["std"]
    changes = {
        "pixel_statistics": "given",
        "mean": mean,
        "std": std,
        "image_size": artefact.image_size or None,
    }
    if artefact.has_backbone:
        return make_backbone({**artefact.backbone, **changes, "weights": "random"})
    where = weights or artefact.backbone["weights"]
    if where == "random":
        raise UserError(
            "backbone.weights=random: these were drawn for the run and are in no file; train on "
            "others"
        )
    try:
        backbone = make_backbone({**artefact.backbone, **changes, "weights": where})
    except UserError as error:
        if weights is not None:  # the user knows them by this name
            raise UserError(str(error).replace("backbone.weights", "weights")) from error
        raise UserError(
            f"{error}; with weights=FILE (--weights FILE) say where the weights are now"
        ) from error
    _check_identity(artefact, backbone.identity, where)
    return backbone


def _check_identity(artefact: Artefact, found: BackboneIdentity, where: str) -> None:
    wanted = artefact.identity
    if found.sha256 != wanted["sha256"]:
        raise UserError(
            f"weights={where}: is not what the model was trained on (sha256 {found.sha256[:12]}, "
            f"wanted {wanted['sha256'][:12]}); give the file of {wanted['name']} that the run "
            f"read from {wanted['source']}"
        )
