"""Writing a trained model as a graph that runs without this package: ONNX, or torch.export.

The file holds everything: the weights of the backbone and of the method, routing, the names of the
classes. A description of what goes in and comes out (JSON) is part of it, and stands beside it.
Before anything is written, the graph must give the model's own logits.
"""

from __future__ import annotations

import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smope.config.signatures import chosen_name
from smope.errors import UserError
from smope.methods.base import Method
from smope.serving.graph import Graph
from smope.serving.predict import Classifier
from smope.storage.files import unwritten, write_together

OPSET = 17
TOLERANCE = 1e-4  # of logits, relative to the largest
DESCRIPTION = "smope.json"  # the name of the description within a .pt2 file
CHECKED_BATCH = 3  # images of the comparison; the graph is recorded with 2


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        file: The graph.
        description: The JSON file beside it.
        difference: Largest difference of the graph's logits from the model's, relative to the
            largest logit; None where no program to run the graph is installed.
    """

    file: Path
    description: Path
    difference: float | None


def export_model(
    classifier: Classifier, form: str, file: Path, *, with_preprocessing: bool = False
) -> Exported:
    """Write the graph of a model, and its description beside it.

    Args:
        classifier: The model; it is changed to float32 and must be on the CPU.
        form: "onnx" or "torch".
        file: What is written; FILE.json is the description.
        with_preprocessing: Whether the graph takes pictures of any size as bytes, and resizes and
            crops them itself.

    Raises:
        UserError: The method cannot be exported; nothing was written.
        OSError: A file cannot be written.
    """
    method = classifier.method.float().requires_grad_(False)
    name = chosen_name(classifier.artefact.method["_target_"])
    _refuse_mixed_images(method, name)
    transform = classifier.transform
    graph = Graph(
        method, len(classifier.class_names), transform if with_preprocessing else None
    ).eval()
    facts = describe_graph(classifier, with_preprocessing)
    record, run = {"onnx": (_onnx, _run_onnx), "torch": (_torch, _run_torch)}[form]
    try:
        with _quiet(), torch.no_grad():
            content = record(graph, graph.example(transform.image_size), facts)
    except Exception as error:  # exporters raise nearly any class for what they do not know
        raise UserError(
            f"method={name}: cannot be exported as {form} ({_first_line(error)}); "
            "`smope predict` classifies with it"
        ) from error
    difference = _difference(graph, run, content, transform.image_size)
    if difference is not None and not difference <= TOLERANCE:
        raise UserError(
            f"method={name}: cannot be exported as {form}: the graph's logits differ by "
            f"{difference:.1e} of the largest, and at most {TOLERANCE:g} is allowed; "
            "`smope predict` classifies with it"
        )
    description = file.with_name(f"{file.name}.json")
    try:
        write_together({file: content, description: (json.dumps(facts, indent=1) + "\n").encode()})
    except OSError as error:
        raise unwritten(file, error, ", or name another file") from error
    return Exported(file, description, difference)


def _first_line(error: Exception) -> str:
    """What is wrong, without the pages that exporters add."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _refuse_mixed_images(method: Method, name: str) -> None:
    mixes = method.needs_one_process()
    if mixes is not None:
        raise UserError(
            f"method={name} with {mixes.setting}: cannot be exported, because the logits of an "
            f"image depend on the other images of its batch; train with {mixes.instead}"
        )


def describe_graph(classifier: Classifier, with_preprocessing: bool) -> dict[str, Any]:
    """What goes into a graph and comes out, as plain values.

    Args:
        classifier: The model.
        with_preprocessing: Whether the graph resizes and crops.
    """
    artefact, transform = classifier.artefact, classifier.transform
    side = transform.image_size
    within = [
        {"resize_shorter_side": transform.shorter_side, "filter": "bilinear, antialias"},
        {"center_crop": side},
        {"divide_by": 255},
    ]
    before = [{"exif_orientation": "applied"}, {"mode": "RGB", "transparency": "over white"}]
    pixels = {"shape": ["batch", 3, side, side], "type": "float32", "range": [0, 1]}
    pictures = {"shape": ["batch", "height", "width", 3], "type": "uint8", "range": [0, 255]}
    return {
        "classes": list(classifier.class_names),
        "input": {"name": "images", **(pictures if with_preprocessing else pixels)},
        "output": {"name": "logits", "shape": ["batch", len(classifier.class_names)]},
        "preprocessing": before if with_preprocessing else before + within,
        "in_the_graph": [
            *(within if with_preprocessing else []),
            {"mean": artefact.identity["mean"], "std": artefact.identity["std"]},
        ],
        "method": artefact.method.get("_target_"),
        "backbone": artefact.identity,
        "tasks_done": artefact.tasks_done,
        "config_hash": artefact.config_hash,
        "smope_version": artefact.smope_version,
    }


def _axes(graph: Graph) -> dict[int, str]:
    """The dimensions of the input that may have any size."""
    sizes = {0: "batch"}
    return sizes if graph.preprocessing is None else {**sizes, 1: "height", 2: "width"}


def _onnx(graph: Graph, example: Tensor, facts: Mapping[str, Any]) -> bytes:
    """The graph in the ONNX format, with the description as metadata."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            graph,
            (example,),
            path,
            input_names=["images"],
            output_names=["logits"],
            dynamic_axes={"images": _axes(graph), "logits": {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,  # the quicker exporter; both are tested for every method
        )
        model = onnx.load(path)
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in facts.items()})
    return model.SerializeToString()


def _run_onnx(content: bytes) -> Callable[[Tensor], Tensor] | None:
    """A function images -> logits; None without onnxruntime."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return None
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _torch(graph: Graph, example: Tensor, facts: Mapping[str, Any]) -> bytes:
    """The graph as torch.export writes it, with the description as an extra file."""
    sizes = {
        number: torch.export.Dim(name, min=1 if name == "batch" else 2)
        for number, name in _axes(graph).items()
    }
    program = torch.export.export(graph, (example,), dynamic_shapes=(sizes,))
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={DESCRIPTION: json.dumps(facts)})
    return file.getvalue()


def _run_torch(content: bytes) -> Callable[[Tensor], Tensor]:
    return torch.export.load(io.BytesIO(content)).module()


@torch.no_grad()
def _difference(
    graph: Graph,
    run: Callable[[bytes], Callable[[Tensor], Tensor] | None],
    content: bytes,
    side: int,
) -> float | None:
    """How far a graph's logits are from the model's, as a share of the largest logit.

    Args:
        graph: What was recorded.
        run: Makes the content of a file a function.
        content: Of the file.
        side: Of the images that are compared; pictures of another size than the recorded ones.
    """
    function = run(content)
    if function is None:
        return None
    images = graph.example(side if graph.preprocessing is None else 2 * side, CHECKED_BATCH)
    expected, logits = graph(images), function(images)
    scale = max(expected.abs().max().item(), 1e-12)
    return (logits - expected).abs().max().item() / scale


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters write pages of warnings about what is meant to be."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
