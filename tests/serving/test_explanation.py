"""What a prediction rests on: the chosen experts, and the nearest class means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity

from smope.serving.explanation import explained
from smope.serving.packing import for_inference
from smope.serving.predict import Classifier, classifier_of

from .colours import COLOURS, Run

# features in the form in which a method remembers the means of classes
FORMS: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "ncm": lambda method, features: features,
    "slda": lambda method, features: features,
    "fecam": lambda method, features: method.mapped(features),
    "ridge": lambda method, features: method.classifier.hidden(features),
    "smope_plus": lambda method, features: method.ridge.hidden(features),
}


def features(classifier: Classifier, folder: Path) -> torch.Tensor:
    paths = sorted(folder.iterdir())
    return classifier._features(torch.stack([classifier._prepare(path) for path in paths]))  # pyright: ignore


@pytest.mark.parametrize("method", FORMS)
def test_nearest_classes_are_those_of_a_slow_loop(
    method: str, colour_run: Callable[..., Run], colours: Path
) -> None:
    artefact = colour_run(method, 3, colours).artefacts[-1]
    classifier = classifier_of(artefact, Path(), "cpu", remembers=True)
    form = FORMS[method]
    [prediction] = classifier.predict(colours / "test" / "coral" / "0.png", explain=True)
    assert prediction.explanation is not None
    nearest = prediction.explanation.nearest
    image = form(classifier.method, features(classifier, colours / "test" / "coral"))[0]
    expected = {}
    for name in COLOURS:
        mean = form(classifier.method, features(classifier, colours / "train" / name)).mean(0)
        expected[name] = float(cosine_similarity(image, mean, dim=0))
    best = sorted(expected, key=expected.__getitem__, reverse=True)[:5]
    assert [name for name, _ in nearest] == best
    assert [cosine for _, cosine in nearest] == pytest.approx(
        [expected[name] for name in best], abs=1e-6
    )


def test_experts_are_those_of_each_image_by_itself(
    colour_run: Callable[..., Run], colours: Path
) -> None:
    artefact = colour_run("smope", 3, colours).artefacts[-1]
    classifier = classifier_of(artefact, Path(), "cpu", remembers=True)
    predictions = list(classifier.predict(colours / "test", explain=True))
    method: Any = classifier.method
    for path, prediction in zip(
        sorted((colours / "test").rglob("*.png")), predictions, strict=True
    ):
        classifier._features(classifier._prepare(path)[None])  # pyright: ignore
        assert prediction.explanation is not None
        [block] = prediction.explanation.experts
        [routing] = method.routings
        assert (block.block, block.of) == (0, method.experts[0].keys.shape[1])
        assert [list(head) for head in block.heads] == routing.expert_ids[0].tolist()


def test_nearest_of_a_trained_classifier_are_its_statistics(
    colour_run: Callable[..., Run], colours: Path
) -> None:
    artefact = colour_run("smope", 3, colours).artefacts[-1]
    classifier = classifier_of(artefact, Path(), "cpu", remembers=True)
    image = features(classifier, colours / "test" / "blue")[:1]
    [explanation] = explained(artefact, classifier.method, image)
    means = artefact.state["statistics.mean"][:, 0].to(image)
    expected = cosine_similarity(image, means, dim=1).sort(descending=True)
    assert [cosine for _, cosine in explanation.nearest] == pytest.approx(
        expected.values[:5].tolist(), abs=1e-6
    )


def test_where_tokens_choose_those_of_most_tokens_count(
    colour_run: Callable[..., Run], colours: Path
) -> None:
    artefact = colour_run("smope", 2, colours, "router=token").artefacts[-1]
    classifier = classifier_of(artefact, Path(), "cpu")
    paths = sorted((colours / "test" / "blue").iterdir())
    predictions = list(classifier.predict(paths, explain=True))
    chosen = classifier.method.routings[0].chosen.unflatten(0, (len(paths), -1))  # pyright: ignore
    for image, prediction in enumerate(predictions):
        assert prediction.explanation is not None
        [block] = prediction.explanation.experts
        for head, experts in enumerate(block.heads):
            counts = chosen[image, :, head].sum(0)
            assert sorted(counts[list(experts)]) == sorted(counts)[-len(experts) :]


def test_a_model_that_only_classifies_names_no_neighbours(
    colour_run: Callable[..., Run], colours: Path
) -> None:
    artefact = for_inference(colour_run("ncm", 3, colours).artefacts[-1])
    classifier = classifier_of(artefact, Path(), "cpu", remembers=True)
    [prediction] = classifier.predict(colours / "test" / "blue" / "0.png", explain=True)
    assert prediction.explanation is not None
    assert (prediction.explanation.experts, prediction.explanation.nearest) == ((), ())
    [plain] = classifier.predict(colours / "test" / "blue" / "0.png")
    assert plain.explanation is None
