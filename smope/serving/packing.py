"""An artefact for learning more classes, and the smaller one for classifying alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from smope.errors import UserError
from smope.run.artefact import Artefact, megabytes, of_checkpoint, read_model
from smope.run.record_check import refusing_nonsense
from smope.serving.rebuild import new_method
from smope.storage.commands import command
from smope.storage.run_directory import RunDirectory
from smope.training.precision import full_precision


def learnable_model(path: Path) -> Artefact:
    """The learnable artefact of a run directory or a file.

    UserError where there is none: it names the command that makes one.
    """
    artefact = read_model(path)
    if artefact.learning is None and path.is_dir():
        return of_checkpoint(RunDirectory.open(path))
    if artefact.learning is None:
        raise not_learnable(artefact)
    return artefact


def not_learnable(artefact: Artefact) -> UserError:
    """The error about a model that cannot learn."""
    path = artefact.file.path if artefact.file else "of this run"
    pack = command("pack", "RUN", "--learnable", "--out", "FILE")
    return UserError(
        f"model {path}: holds what classifying needs, and not what learning needs; make a "
        f"learnable one of its run with `{pack}`, or train with trainer.keep=learnable"
    )


def for_inference(artefact: Artefact) -> Artefact:
    """The same without what only learning needs."""
    dtype = full_precision(artefact.precision)
    method = new_method(artefact, torch.device("cpu"), dtype, "random")
    with refusing_nonsense():
        state = method.adopted(artefact.state)
    names = method.inference_state().keys() & state.keys()
    return replace(
        artefact, state={name: state[name] for name in sorted(names)}, learning=None, file=None
    )


def size(artefact: Artefact) -> str:
    """The size of an artefact's tensors, for people."""
    return megabytes(artefact.state)
