"""Graphs of trained methods that other programs run: torch.export, and ONNX by both exporters."""

from __future__ import annotations

import copy
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from smope.methods.base import Method
from tests.tiny import tiny_backbone

from .conftest import METHODS, every_method, make_method

TOLERANCE = 2e-5  # of logits, relative to the largest
SIZES = (1, 2, 5)  # images in a batch; the graphs are made with 2
# torch.export takes seconds for a method; these have an export path of their own
QUICK = ("smope", "coda")
some_methods = pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in METHODS],
)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(max(SIZES), 3, 32, 32, generator=torch.Generator().manual_seed(0))


def assert_equal(logits: Tensor, method: Method, images: Tensor) -> None:
    with torch.no_grad():
        expected = method(images)
    assert expected.abs().max() > 0, "an untrained method says nothing"
    assert (logits - expected).abs().max() <= TOLERANCE * expected.abs().max()


@some_methods
def test_torch_export_with_batches_of_any_size(method: Method, images: Tensor) -> None:
    method = copy.deepcopy(method).eval()
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        program = torch.export.export(method, (images[:2],), dynamic_shapes=({0: batch},))
        for size in SIZES:
            assert_equal(program.module()(images[:size]), method, images[:size])


@every_method
def test_onnx_of_the_torchscript_exporter(method: Method, images: Tensor, tmp_path: Path) -> None:
    axes = {"dynamic_axes": {"images": {0: "batch"}}, "opset_version": 17, "dynamo": False}
    assert_onnx_equal(method, images, tmp_path / "model.onnx", **axes)


@some_methods
def test_onnx_of_the_dynamo_exporter(method: Method, images: Tensor, tmp_path: Path) -> None:
    shapes = {"dynamic_shapes": ({0: torch.export.Dim("batch")},), "dynamo": True}
    assert_onnx_equal(method, images, tmp_path / "model.onnx", **shapes)


def assert_onnx_equal(method: Method, images: Tensor, path: Path, **options: Any) -> None:
    """onnxruntime computes the method's logits for batches of any size."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    method = copy.deepcopy(method).eval()
    logging.disable(logging.WARNING)  # exporters write pages
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                method, (images[:2],), path, input_names=["images"], verbose=False, **options
            )
    finally:
        logging.disable(logging.NOTSET)
    session = onnxruntime.InferenceSession(path)
    for size in SIZES:
        [logits] = session.run(None, {"images": images[:size].numpy()})
        assert_equal(torch.from_numpy(logits), method, images[:size])


def test_nothing_of_the_exporter_stays_in_the_method(images: Tensor) -> None:
    """Choices of experts are kept for those who read them, and those of an exporter are fake."""
    method = make_method("smope", tiny_backbone(), 4).eval()
    with torch.no_grad():
        method(images)
        torch.export.export(method, (images[:2],))
        assert [routing.scores.shape[0] for routing in method.routings] == [len(images)] * 6
