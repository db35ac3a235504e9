"""Streams in which classes come again: domains that change under the same classes, and blurred
boundaries.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from smope.errors import UserError
from smope.methods._shared.class_statistics import ClassStatistics
from smope.methods.base import Method
from smope.methods.ncm import NearestClassMean
from smope.methods.smope import SMoPE
from smope.routers.adaptive_noise import AdaptiveNoise
from smope.storage.run_directory import RunDirectory
from smope.streams.stream import Stream
from smope.training.checkpoint import list_checkpoints, read_checkpoint, restore
from smope.training.history import History
from smope.training.trainer import Trainer
from tests.tiny import shades, tiny_backbone, tiny_settings, tiny_source, tiny_stream


@pytest.fixture(scope="module")
def domains() -> Stream:
    return tiny_stream(source=shades(tiny_source(train=15, test=6), 3), num_tasks=None)


@pytest.fixture(scope="module")
def blurry() -> Stream:
    return tiny_stream(
        source=tiny_source(train=12), num_tasks=4, disjoint_classes=0.25, blurry_images=0.5
    )


def make(kind: type[Method], classes: int) -> Method:
    torch.manual_seed(0)
    backbone = tiny_backbone(depth=2)
    if kind is SMoPE:
        return SMoPE(backbone, classes, AdaptiveNoise(3), num_experts=7, blocks=[0, 1])
    return kind(backbone, classes)  # type: ignore[call-arg]


def trainer_of(method: Method, stream: Stream, directory: RunDirectory | None = None) -> Trainer:
    settings = tiny_settings(batch_size=4, epochs=2)
    return Trainer(
        method, stream, settings, seed=0, device=torch.device("cpu"), directory=directory
    )


def test_spans_of_domains(domains):
    assert [task.name for task in domains.tasks] == ["a", "b", "c"]
    spans = trainer_of(make(NearestClassMean, 4), domains).spans
    assert [(span.start, span.stop, span.classes) for span in spans] == [
        (0, 4, (0, 1, 2, 3)),
        (4, 4, (0, 1, 2, 3)),
        (4, 4, (0, 1, 2, 3)),
    ]


def test_spans_of_blurred_boundaries(blurry):
    spans = trainer_of(make(NearestClassMean, 4), blurry).spans
    seen: set[int] = set()
    for span, task in zip(spans, blurry.tasks, strict=True):
        assert span.classes == task.classes == tuple(sorted(set(task.train.targets)))
        assert span.start == len(seen)
        seen |= set(span.classes)
        assert span.stop == len(seen) and seen == set(range(span.stop))
    assert any(set(a.classes) & set(b.classes) for a, b in itertools.pairwise(spans))


def test_class_means_are_of_all_images_so_far(domains):
    method = make(NearestClassMean, 4)
    trainer_of(method, domains).fit()
    features = {label: [] for label in range(4)}
    for task in domains.tasks:
        for image, label in (task.train_plain[i] for i in range(len(task.train_plain))):
            features[label].append(method.features(image[None])[0])
    for label, rows in features.items():
        assert method.counts[label] == len(rows) == 15
        torch.testing.assert_close(
            method.means[label], torch.stack(rows).mean(0), rtol=1e-5, atol=1e-6
        )


def test_a_gaussian_goes_on_from_what_it_was():
    statistics = ClassStatistics(2, 1, 5).double()
    draw = torch.Generator().manual_seed(0)
    parts = [torch.randn(n, 5, generator=draw, dtype=torch.float64) * n + n for n in (7, 3, 12)]
    for part in parts:
        statistics.record(1, part, seed=0)
    images = torch.cat(parts)
    torch.testing.assert_close(statistics.mean[1, 0], images.mean(0))
    torch.testing.assert_close(statistics.variance[1, 0], images.var(0, correction=0))
    assert statistics.count.tolist() == [[0], [22]]


def test_several_gaussians_a_class_are_refused_before_training(domains):
    torch.manual_seed(0)
    method = SMoPE(
        tiny_backbone(depth=2), 4, AdaptiveNoise(3), num_experts=7, blocks=[0, 1], centroids=2
    )
    with pytest.raises(
        UserError, match=r"method\.centroids must be 1 for stream shades, where .*, got 2; leave"
    ):
        trainer_of(method, domains)


def test_resumed_it_ends_the_same(domains, tmp_path):
    whole = make(SMoPE, 4)
    expected = trainer_of(whole, domains).fit().accuracy_matrix
    directory = RunDirectory.create(tmp_path / "run", "")
    first = trainer_of(make(SMoPE, 4), domains, directory)
    first.spans, spans = first.spans[:2], first.spans
    first.stream = replace(domains, tasks=domains.tasks[:2])
    first.fit()
    checkpoint = read_checkpoint(list_checkpoints(directory)[-1])
    second = trainer_of(make(SMoPE, 4), domains)
    checkpoint = replace(checkpoint, stream_identity=domains.identity)
    restore(second.method, domains, checkpoint)
    second.history = History(**checkpoint.history)
    assert second.fit().accuracy_matrix == expected and len(spans) == 3
    for key, value in whole.trained_state().items():
        assert torch.equal(value, second.method.trained_state()[key]), key


def test_validation_images_are_not_test_images():
    stream = tiny_stream(validation_fraction=0.25)
    tests = {image.tobytes() for image in tiny_source().test.images}
    assert stream.evaluated_on == "validation"
    for task in stream.tasks:
        assert len(task.test) == 6 and len(task.train) == 18
        shown = {
            (255 * image).round().byte().permute(1, 2, 0).numpy().tobytes()
            for image, _ in task.test
        }
        assert not shown & tests
    assert stream.identity != tiny_stream().identity
