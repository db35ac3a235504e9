"""The artefact of every method of conf/method: it classifies as the trained method does, and holds
nothing else.
"""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from smope.methods.base import Method
from smope.run.artefact import describe, read_model, restore, write_model
from smope.storage.run_directory import RunDirectory
from smope.streams.stream import Stream
from tests.tiny import tiny_backbone

from .conftest import every_method, make_method

# bytes that may be kept though no logit here depends on them: the number of a task, flags of
# experts, biases of a second classifier that change the task of none of these images
UNREAD = 800
LEARNING = (
    "statistics.mean",
    "statistics.variance",
    "sums.",
    "moments.means",
    "old_keys",
    "old_values",
    "earlier.",
    "projector.",
)


@pytest.fixture(scope="module")
def images(stream: Stream) -> Tensor:
    return torch.stack([image for task in stream.tasks for image, _ in task.test])


def record_of(method: Method, stream: Stream) -> dict[str, Any]:
    """What run.json says of a run, as far as artefacts ask."""
    groups = {"backbone": {}, "method": {}, "router": {}, "stream": {"eval_crop": 1.0}}
    return {
        "config": {**groups, "trainer": {"precision": "float32"}},
        "config_hash": "0" * 12,
        "seed": 0,
        "versions": {"smope": "0"},
        "backbone": method.backbone.identity.as_dict(),
        "class_names": list(stream.class_names),
        "stream": {"name": stream.name},
        "evaluated_on": "test",
        "tasks": [{"classes": list(task.classes), "test": len(task.test)} for task in stream.tasks],
        "accuracy_matrix": [[1.0, None], [1.0, 1.0]],
    }


def written(method: Method, stream: Stream, folder: Path) -> Path:
    directory = RunDirectory.create(folder / "run", "seed: 0\n")
    write_model(directory, method, record_of(method, stream))
    return directory.model


def poisoned(state: dict[str, Tensor]) -> None:
    """Nothing that is read of these tensors goes unnoticed: NaN, and of counts every second is 0,
    every other 1.
    """
    for value in state.values():
        if value.is_floating_point():
            value.fill_(float("nan"))
        else:
            value.copy_((torch.arange(value.numel()) % 2).view(value.shape))


@every_method
def test_the_file_classifies_as_the_method_does(
    name: str, method: Method, stream: Stream, images: Tensor, tmp_path: Path
) -> None:
    """Bit for bit, in a method of other weights, all of it overwritten."""
    other = make_method(name, tiny_backbone(), 4, seed=1).eval()
    with torch.no_grad():
        poisoned(other.trained_state())
        restore(other, read_model(written(method, stream, tmp_path)))
        assert torch.equal(other(images), method(images))
        assert method(images).std(0).max() > 1e-3, "the images must differ"


@every_method
def test_nothing_is_kept_that_no_logit_depends_on(method: Method, images: Tensor) -> None:
    changed, unread = copy.deepcopy(method), {}
    with torch.no_grad():
        expected = method(images)
        for key, value in method.inference_state().items():
            tensor = changed.inference_state()[key]
            draw = torch.Generator().manual_seed(0)
            new = (
                torch.rand(value.shape, generator=draw)
                if value.is_floating_point()
                else (value == 0).flip(-1)
            )
            tensor.copy_(new)
            # what follows from the state is found anew
            changed.load_state_dict(changed.state_dict())
            # a matrix was read, and is none of a covariance
            with suppress(torch.linalg.LinAlgError):
                if torch.equal(changed(images), expected):
                    unread[key] = value.nbytes
            tensor.copy_(value)
    assert sum(unread.values()) <= UNREAD, unread


@every_method
def test_what_only_learning_needs_is_not_in_the_file(
    method: Method, stream: Stream, tmp_path: Path
) -> None:
    path = written(method, stream, tmp_path)
    artefact = read_model(path)
    assert artefact.state.keys() == method.inference_state().keys()
    assert not [key for key in artefact.state for part in LEARNING if part in f"{key}."]
    assert artefact.has_backbone == (not method.backbone.frozen)
    tensors = sum(value.nbytes for value in artefact.state.values())
    assert path.stat().st_size < tensors + 200 * len(artefact.state) + 2000, (
        "names and the record are small"
    )


@every_method
def test_a_state_that_is_not_the_method_s_is_refused(
    name: str, method: Method, stream: Stream
) -> None:
    whole = describe(record_of(method, stream), 2, method.trained_state(), 32)
    fresh = make_method(name, tiny_backbone(), 4).eval()
    restore(fresh, whole)
    for state in ({**whole.state, "moon": torch.zeros(1)}, {}):
        with pytest.raises(
            ValueError, match=r"its state does not fit \w+ \(.* differs, \d+ in all\); use smope 0"
        ):
            restore(fresh, replace(whole, state=state))
