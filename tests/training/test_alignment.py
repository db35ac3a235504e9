"""Class statistics, and the classifier's training on features drawn from them."""

from __future__ import annotations

from dataclasses import replace

import numpy
import pytest
import torch
from torch import Tensor

from smope.methods._shared.class_statistics import ClassStatistics
from smope.methods.base import TaskSpan
from smope.methods.finetune import Finetune
from smope.training import alignment
from smope.training.alignment import align_classifier
from smope.training.schedule import alignment_cosine
from smope.training.settings import TrainerSettings
from tests.tiny import tiny_backbone

WIDTH, CLASSES = 32, 6
SECOND = TaskSpan(1, 3, 5)
SETTINGS = TrainerSettings(alignment_epochs=2, alignment_samples_per_class=8)


def features(seed: int, number: int = 20, width: int = WIDTH) -> Tensor:
    return torch.randn(
        number, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def test_mean_and_variance() -> None:
    statistics = ClassStatistics(3, 1, WIDTH).double()
    drawn = 5 + 3 * features(0)
    statistics.record(1, drawn, seed=0)
    assert statistics.mean[1, 0].numpy() == pytest.approx(drawn.numpy().mean(axis=0), rel=1e-12)
    assert statistics.variance[1, 0].numpy() == pytest.approx(drawn.numpy().var(axis=0), rel=1e-12)
    assert statistics.known.flatten().tolist() == [False, True, False]
    assert not statistics.mean[[0, 2]].any()


def test_one_image_is_a_class_too() -> None:
    statistics = ClassStatistics(1, 1, WIDTH).double()
    statistics.record(0, features(0, number=1), seed=0)
    assert statistics.known.all()
    drawn, _ = statistics.sample(500, torch.Generator().manual_seed(0))
    assert (drawn - features(0, number=1)).std().item() == pytest.approx(0.01, rel=0.1), (
        "the floor: sqrt(1e-4)"
    )


def test_several_centroids_are_the_clusters() -> None:
    centres = numpy.array([-40.0, 0.0, 40.0])
    clusters = [centre + features(seed) for seed, centre in enumerate(centres)]
    statistics = ClassStatistics(1, 3, WIDTH).double()
    statistics.record(0, torch.cat(clusters), seed=0)
    order = statistics.mean[0, :, 0].argsort()
    for index, cluster in zip(order, clusters, strict=True):
        assert statistics.mean[0, index].numpy() == pytest.approx(cluster.numpy().mean(axis=0))
        assert statistics.variance[0, index].numpy() == pytest.approx(cluster.numpy().var(axis=0))
    assert statistics.known.all()


def test_a_centroid_of_one_image_is_left_out() -> None:
    statistics = ClassStatistics(1, 2, WIDTH).double()
    statistics.record(0, torch.cat([features(0), 99 + features(1, number=1)]), seed=0)
    assert statistics.known.sum() == 1
    drawn, labels = statistics.sample(50, torch.Generator().manual_seed(0))
    assert len(drawn) == len(labels) == 50
    assert drawn.abs().max() < 20


def test_fewer_images_than_centroids_fall_back_to_one_gaussian() -> None:
    statistics = ClassStatistics(1, 5, WIDTH).double()
    images = features(0, number=3)
    statistics.record(0, images, seed=0)
    assert statistics.known.tolist() == [[True, False, False, False, False]]
    assert statistics.mean[0, 0].numpy() == pytest.approx(images.numpy().mean(axis=0))
    assert statistics.variance[0, 0].numpy() == pytest.approx(images.numpy().var(axis=0))


def test_samples_follow_the_formula() -> None:
    statistics = ClassStatistics(4, 1, WIDTH).double()
    for label in (0, 2):
        statistics.record(label, features(label) * (label + 1), seed=0)
    drawn, labels = statistics.sample(7, torch.Generator().manual_seed(3))
    assert labels.tolist() == [0] * 7 + [2] * 7
    noise = torch.randn(2, 7, WIDTH, generator=torch.Generator().manual_seed(3)).double()
    for row, label in enumerate((0, 2)):
        mean, variance = statistics.mean[label, 0], statistics.variance[label, 0]
        expected = mean + (variance + 1e-4).sqrt() * noise[row]
        torch.testing.assert_close(drawn[row * 7 : row * 7 + 7], expected)


def test_samples_have_the_moments() -> None:
    statistics = ClassStatistics(1, 1, WIDTH).double()
    statistics.record(0, 2 + 3 * features(0), seed=0)
    drawn, _ = statistics.sample(40_000, torch.Generator().manual_seed(0))
    assert drawn.mean(0).numpy() == pytest.approx(statistics.mean[0, 0].numpy(), abs=0.1)
    assert drawn.var(0).numpy() == pytest.approx(statistics.variance[0, 0].numpy() + 1e-4, rel=0.1)


@pytest.fixture
def method() -> Finetune:
    """A classifier over 6 classes of which 5 are known by well separated features."""
    torch.manual_seed(0)
    method = Finetune(tiny_backbone(depth=1), CLASSES, align=True)
    for label in range(SECOND.stop):
        centre = torch.zeros(WIDTH)
        centre[label] = 8.0
        method.statistics.record(label, centre + features(label).float(), seed=0)
    return method


class Spy:
    """Writes down what each step of the alignment sees and at which rate it runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.labels: list[Tensor] = []
        self.rates: list[float] = []
        self.decays: set[float] = set()
        spy, cross_entropy = self, alignment.F.cross_entropy

        class AdamW(torch.optim.AdamW):
            def step(self, *arguments: object, **options: object) -> None:
                spy.rates.append(self.param_groups[0]["lr"])
                spy.decays.add(self.param_groups[0]["weight_decay"])
                super().step(*arguments, **options)

        def watched(logits: Tensor, labels: Tensor) -> Tensor:
            self.shapes.append(tuple(logits.shape))
            self.labels.append(labels)
            return cross_entropy(logits, labels)

        monkeypatch.setattr(alignment.F, "cross_entropy", watched)
        monkeypatch.setattr(alignment.torch.optim, "AdamW", AdamW)


@pytest.mark.parametrize(("batches", "expected"), [("old_classes", 3), ("all", 5)])
def test_batches_an_epoch(
    batches: str, expected: int, method: Finetune, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(monkeypatch)
    align_classifier(method, SECOND, replace(SETTINGS, alignment_batches=batches), seed=0)
    assert spy.shapes == [(8, 5)] * (2 * expected), (
        "8 rows; all seen classes compete, the sixth does not"
    )
    seen = torch.cat(spy.labels)
    assert set(seen.tolist()) == set(range(5)), "old and new classes"
    assert all(len(set(labels.tolist())) > 1 for labels in spy.labels), "shuffled"
    if batches == "all":
        assert torch.bincount(seen).tolist() == [16] * 5


@pytest.mark.parametrize("lag", [True, False])
def test_rates(lag: bool, method: Finetune, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    align_classifier(
        method, SECOND, replace(SETTINGS, schedule_lag=lag, alignment_learning_rate=1e-3), seed=0
    )
    assert spy.rates == [alignment_cosine(1e-3, step, 6, lag) for step in range(6)]
    assert spy.rates[0] == pytest.approx(1e-2 if lag else 1e-3)
    assert spy.decays == {5e-4}


def test_only_the_classifier_changes(method: Finetune) -> None:
    before = {key: value.clone() for key, value in method.state_dict().items()}
    align_classifier(method, SECOND, SETTINGS, seed=0)
    changed = {
        key for key, value in method.state_dict().items() if not torch.equal(value, before[key])
    }
    assert changed == {"classifier.weight", "classifier.bias"}


def test_each_epoch_takes_its_own_draw_in_order(
    method: Finetune, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn ahead or not: an epoch's features are one sample() and its order one permutation, of
    one generator.
    """
    seen: list[Tensor] = []
    classify = method.classify
    monkeypatch.setattr(method, "classify", lambda x: seen.append(x) or classify(x))
    align_classifier(method, SECOND, replace(SETTINGS, alignment_epochs=3), seed=7)
    generator = torch.Generator().manual_seed(7)
    expected = []
    for _ in range(3):
        drawn, labels = method.statistics.sample(8, generator)
        order = torch.randperm(len(labels), generator=generator)
        expected += [drawn[chosen] for chosen in order.split(8)[:3]]
    assert len(seen) == 9 and all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))


def test_its_seed_decides_it(method: Finetune) -> None:
    start = {key: value.clone() for key, value in method.state_dict().items()}
    found = []
    for seed, disturbance in ((0, 1), (0, 2), (1, 1)):
        method.load_state_dict(start)
        torch.manual_seed(disturbance)
        align_classifier(method, SECOND, SETTINGS, seed=seed)
        found.append(method.classifier.weight.detach().clone())
        assert torch.initial_seed() == disturbance
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_it_puts_the_classes_right(method: Finetune) -> None:
    drawn, labels = method.statistics.sample(50, torch.Generator().manual_seed(1))

    def accuracy() -> float:
        return (
            (method.classifier(drawn)[:, : SECOND.stop].argmax(1) == labels).double().mean().item()
        )

    before = accuracy()
    align_classifier(
        method, SECOND, replace(SETTINGS, alignment_epochs=20, alignment_learning_rate=1e-2), seed=0
    )
    assert before < 0.7 < 0.95 < accuracy()
