"""Graphs of trained methods that other programs run: torch.export, and ONNX by both exporters."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor
from torch.export import ExportedProgram

from smope.methods.base import Method
from smope.run.artefact import describe
from smope.serving.export import export_model
from smope.serving.predict import Classifier
from smope.streams.pixels.decode import decode
from smope.streams.stream import Stream

from .conftest import SHALLOW, VARIANTS, make_shallow_method, trainer_of
from .test_artefacts import record_of

TOLERANCE = 2e-5  # of logits, relative to the largest
SIZES = (1, 2, 5)  # images in a batch; the graphs are made with 2
# torch.export takes seconds for a method; these have an export path of their own
QUICK = ("smope", "coda")


def methods(quick: Sequence[str] = VARIANTS) -> pytest.MarkDecorator:
    """For tests of every method, slow but for `quick`; tests of the same one are neighbours."""
    names = [pytest.param(n, marks=[] if n in quick else [pytest.mark.slow]) for n in VARIANTS]
    return pytest.mark.parametrize("name", names, scope="module")


@pytest.fixture(scope="module")
def exportable(stream: Stream) -> Callable[[str], Method]:
    """name -> that method after both tasks; made once."""

    @cache
    def make(name: str) -> Method:
        trainer = trainer_of(make_shallow_method(name), stream)
        trainer.fit()
        return trainer.method.eval()

    return make


@pytest.fixture
def method(name: str, exportable: Callable[[str], Method]) -> Method:
    return exportable(name)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(max(SIZES), 3, 32, 32, generator=torch.Generator().manual_seed(0))


def assert_equal(logits: Tensor, method: Method, images: Tensor) -> None:
    with torch.no_grad():
        expected = method(images)
    assert expected.abs().max() > 0, "an untrained method says nothing"
    assert (logits - expected).abs().max() <= TOLERANCE * expected.abs().max()


def program_of(method: Method, images: Tensor) -> ExportedProgram:
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        return torch.export.export(method, (images[:2],), dynamic_shapes=({0: batch},))


@pytest.fixture(scope="module")
def program(exportable: Callable[[str], Method]) -> Callable[[str, Tensor], ExportedProgram]:
    """(name, images) -> the exported program of that method; made once, since it takes seconds."""
    made: dict[str, ExportedProgram] = {}

    def export(name: str, images: Tensor) -> ExportedProgram:
        if name not in made:
            made[name] = program_of(copy.deepcopy(exportable(name)), images)
        return made[name]

    return export


@methods(QUICK)
def test_torch_export_with_batches_of_any_size(
    name: str, method: Method, program: Any, images: Tensor
) -> None:
    module = program(name, images).module()
    with torch.no_grad():
        for size in SIZES:
            assert_equal(module(images[:size]), method, images[:size])


@pytest.fixture(scope="session")
def photographs(data_root: Path) -> list[Path]:
    """A hundred photographs of many sizes."""
    return sorted((data_root / "caltech100" / "test").rglob("*.jpg"))[::10][:100]


@pytest.fixture
def some_photographs(name: str, photographs: list[Path]) -> list[Path]:
    """All of them for one method, ten for the others: the graph prepares images of all alike."""
    return photographs if name == "smope" else photographs[::10]


@methods()
def test_smope_export_to_onnx(
    method: Method, stream: Stream, some_photographs: list[Path], tmp_path: Path
) -> None:
    """The graph reads bytes, and gives the logits of `smope predict` on photographs."""
    onnxruntime = pytest.importorskip("onnxruntime")
    classifier = classifier_of(method, stream)
    exported = export_model(classifier, "onnx", tmp_path / "m.onnx", with_preprocessing=True)
    assert exported.difference is not None and exported.difference <= 1e-5
    session = onnxruntime.InferenceSession(exported.file)
    assert_as_predicted(
        classifier,
        some_photographs,
        lambda pixels: session.run(None, {"images": pixels})[0],
    )
    names = session.get_modelmeta().custom_metadata_map["classes"]
    assert json.loads(names) == list(classifier.class_names)


@methods(quick=["smope"])
def test_smope_export_to_torch(
    method: Method, stream: Stream, some_photographs: list[Path], tmp_path: Path
) -> None:
    classifier = classifier_of(method, stream)
    exported = export_model(classifier, "torch", tmp_path / "m.pt2", with_preprocessing=True)
    facts = {"smope.json": ""}
    program = torch.export.load(exported.file, extra_files=facts).module()
    assert_as_predicted(
        classifier, some_photographs, lambda pixels: program(torch.from_numpy(pixels)).numpy()
    )
    assert json.loads(facts["smope.json"]) == json.loads(exported.description.read_text())


def classifier_of(method: Method, stream: Stream) -> Classifier:
    record = record_of(method, stream)
    record["config"]["stream"]["eval_crop"] = 0.875
    artefact = replace(
        describe(record, 2, method.inference_state(), 32), method={"_target_": "smope.methods.x.X"}
    )
    return Classifier(artefact, copy.deepcopy(method), torch.device("cpu"), torch.float32)


def assert_as_predicted(classifier: Classifier, photographs: list[Path], graph: Any) -> None:
    """Logits of `graph` on bytes (1, H, W, 3) are those of the classifier on the files."""
    ours = torch.cat(
        [classifier(classifier._prepare(path)[None]) for path in photographs]  # pyright: ignore
    ).numpy()
    pictures = [numpy.asarray(decode(path))[None] for path in photographs]
    assert len({picture.shape for picture in pictures}) > min(20, len(pictures) // 2)
    theirs = numpy.concatenate([graph(picture) for picture in pictures])
    assert numpy.abs(theirs - ours).max() <= 1e-4 * numpy.abs(ours).max()


def test_what_mixes_the_images_of_a_batch_is_not_exported(stream: Stream, tmp_path: Path) -> None:
    method = make_shallow_method("dualprompt", authors_bug="vote").eval()
    with pytest.raises(
        ValueError, match=r"method=x with method.authors_bug=vote: cannot be exported, because "
    ):
        export_model(classifier_of(method, stream), "onnx", tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_what_an_exporter_does_not_know_is_named(stream: Stream, tmp_path: Path) -> None:
    """A method of somebody's own may look at numbers, which no graph can."""
    method = make_shallow_method("finetune").eval().requires_grad_(False)
    plain = method.classify
    method.classify = lambda features: plain(features) * float(features.numpy().sum() > 0)
    with pytest.raises(ValueError, match=r"method=x: cannot be exported as torch \(.+\); `smope p"):
        export_model(classifier_of(method, stream), "torch", tmp_path / "m.pt2")
    method.classify = lambda features: plain(features) + float(features[0, 0])
    with pytest.raises(ValueError, match=r"as onnx: the graph's logits differ by .* allowed; `sm"):
        export_model(classifier_of(method, stream), "onnx", tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@methods(QUICK)
def test_onnx_of_the_dynamo_exporter(
    name: str, method: Method, program: Any, images: Tensor, tmp_path: Path
) -> None:
    """From the method, as users do it; most from the program exported before."""
    options: dict[str, Any] = {"dynamo": True}
    if name in QUICK:
        options["dynamic_shapes"] = ({0: torch.export.Dim("batch")},)
    else:
        options["program"] = program(name, images)
    assert_onnx_equal(method, images, tmp_path / "model.onnx", **options)


def assert_onnx_equal(
    method: Method,
    images: Tensor,
    path: Path,
    program: ExportedProgram | None = None,
    **options: Any,
) -> None:
    """onnxruntime computes the method's logits for batches of any size."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    method = copy.deepcopy(method).eval()
    logging.disable(logging.WARNING)  # exporters write pages
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                program or method,
                (images[:2],),
                path,
                input_names=["images"],
                verbose=False,
                **options,
            )
    finally:
        logging.disable(logging.NOTSET)
    session = onnxruntime.InferenceSession(path)
    for size in SIZES:
        [logits] = session.run(None, {"images": images[:size].numpy()})
        assert_equal(torch.from_numpy(logits), method, images[:size])


def test_a_learned_gate_is_exported(images: Tensor, tmp_path: Path) -> None:
    method = make_shallow_method("smope", router="noisy_topk").eval()
    for matrix in method.routers.parameters():  # a gate of zeros would choose among ties
        torch.nn.init.normal_(matrix)
    axes = {"dynamic_axes": {"images": {0: "batch"}}, "opset_version": 17, "dynamo": False}
    assert_onnx_equal(method, images, tmp_path / "model.onnx", **axes)
    module = program_of(method, images).module()
    with torch.no_grad():
        for size in SIZES:
            assert_equal(module(images[:size]), method, images[:size])


def test_nothing_of_the_exporter_stays_in_the_method(images: Tensor) -> None:
    """Choices of experts are kept for those who read them, and those of an exporter are fake."""
    method = make_shallow_method("smope").eval()
    with torch.no_grad():
        method(images)
        torch.export.export(method, (images[:2],))
        batches = [len(routing.scores) for routing in method.routings]
        assert batches == [len(images)] * (SHALLOW - 1)


@pytest.mark.parametrize("router", ["cosine", "dense", "hash", "soft", "token"])
def test_routers_with_a_way_of_their_own_are_exported(
    router: str, images: Tensor, tmp_path: Path
) -> None:
    method = make_shallow_method("smope", router=router).eval()
    axes = {"dynamic_axes": {"images": {0: "batch"}}, "opset_version": 17, "dynamo": False}
    assert_onnx_equal(method, images, tmp_path / "model.onnx", **axes)
    module = program_of(method, images).module()
    with torch.no_grad():
        for size in SIZES:
            assert_equal(module(images[:size]), method, images[:size])
