"""Ridge regression equals one written out over all images at once."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from smope.console.progress import Progress
from smope.methods._shared import ridge_sums
from smope.methods._shared.ridge_head import RidgeHead, _held_out
from smope.methods._shared.ridge_sums import (
    GCV_FACTORS,
    Sums,
    packed,
    triangular_inverse,
    unpacked,
)
from smope.methods.ridge import Ridge
from smope.training.trainer import Trainer
from tests.tiny import tiny_backbone, tiny_settings


def make(seed: int = 0, **options: Any) -> Ridge:
    torch.manual_seed(seed)
    return Ridge(tiny_backbone(), 4, **{"width": 50, **options})


@pytest.mark.parametrize("width", [50, None])
def test_weights_are_those_of_one_fit_to_all_images(stream, learn, all_features, width):
    method = make(width=width)
    learn(method, stream)
    features, labels = all_features(method, stream)
    hidden = (
        features if width is None else (features @ method.classifier.projection.double()).relu()
    )
    penalty = float(method.classifier.sums.penalty)
    system = hidden.T @ hidden + penalty * torch.eye(hidden.shape[1])
    expected = torch.linalg.solve(system, hidden.T @ F.one_hot(labels, 4).double())
    torch.testing.assert_close(method.classifier.weight.double(), expected.T, rtol=1e-4, atol=1e-5)
    fitted = hidden @ expected
    torch.testing.assert_close(
        0.05 * method.classify(features.float()).double(), fitted, rtol=1e-3, atol=1e-4
    )


def test_the_penalty_is_the_best_on_a_fifth_of_the_last_task(stream, learn, all_features):
    method = make(exponents=[-3, 6], penalty_rule="last_fifth")
    learn(method, stream)
    features, labels = all_features(method, stream)
    hidden, targets = (
        (features @ method.classifier.projection.double()).relu(),
        F.one_hot(labels, 4).double(),
    )
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    first = len(labels) - len(stream.tasks[-1].train)
    for label in stream.tasks[-1].classes:
        places = [place for place in range(first, len(labels)) if labels[place] == label]
        held_out[places[4::5] or places[-1:]] = True
    fitted = hidden[~held_out]
    errors = {}
    for power in range(-3, 7):
        system = fitted.T @ fitted + 10.0**power * torch.eye(50)
        weights = torch.linalg.solve(system, fitted.T @ targets[~held_out])
        errors[10.0**power] = float(
            (hidden[held_out] @ weights - targets[held_out]).square().mean()
        )
    assert float(method.classifier.sums.penalty) == pytest.approx(
        min(errors, key=errors.__getitem__)
    )
    assert 1e-3 < method.classifier.sums.penalty < 1e6, "the grid's ends would say little"


def test_images_held_out():
    labels = torch.tensor([0] * 11 + [1] * 3 + [2])
    assert _held_out(labels).nonzero()[:, 0].tolist() == [4, 9, 13]
    assert not _held_out(torch.arange(5)).any()


def test_without_two_images_of_a_class_the_penalty_stays(learn):
    from tests.tiny import tiny_stream

    method = make(penalty_rule="last_fifth")
    trainer = learn(method, tiny_stream())
    before = float(method.classifier.sums.penalty)
    method.end_task(trainer.spans[0], lambda _: iter([(torch.rand(4, 3, 32, 32), torch.arange(4))]))
    assert float(method.classifier.sums.penalty) == before


def test_the_projection_comes_from_the_seed_and_is_saved():
    assert torch.equal(make(3).classifier.projection, make(3).classifier.projection)
    assert not torch.equal(make(3).classifier.projection, make(4).classifier.projection)
    assert "classifier.projection" in make().trained_state()
    assert make(width=None).classifier.projection is None


def test_sums_stay_float64_and_follow_to_a_device():
    sums = make().to("cpu", torch.float32).classifier.sums
    sums.add(*images_of(3, 50))
    assert {sums.rows.dtype, sums.float().rows.dtype, sums.half().triangle.dtype} == {torch.float64}
    assert sums.to("meta").rows.device.type == "meta"


def images_of(count: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random features in float64, and one-hot labels of four classes."""
    generator = torch.Generator().manual_seed(count)
    hidden = torch.randn(count, width, dtype=torch.float64, generator=generator).relu()
    labels = torch.randint(4, (count,), generator=generator)
    hidden[:, 0] += labels
    return hidden, F.one_hot(labels, 4).double()


@pytest.mark.parametrize("count", [20, 40, 60, 200])
def test_generalised_error_is_that_of_the_hat_matrix(count):
    """At width 50: images in rows, more than half the width, fewer than the width, and more."""
    hidden, targets = images_of(count, 50)
    sums = Sums(50, 4)
    for part in range(0, count, 20):
        sums.add(hidden[part : part + 20], targets[part : part + 20])
    assert sums.in_rows == (count <= 25) and int(sums.images) == count
    unit = float(hidden.square().sum()) / count
    slow = {}
    for factor in GCV_FACTORS:
        system = hidden.T @ hidden + factor * unit * torch.eye(50, dtype=torch.float64)
        hat = hidden @ torch.linalg.solve(system, hidden.T)
        residual = targets - hat @ targets
        slow[factor] = float(residual.square().sum() / (count - hat.trace()) ** 2)
        assert sums.generalised_error(factor * unit, sums.system()) == pytest.approx(
            slow[factor], rel=1e-8
        )
        expected = torch.linalg.solve(system, hidden.T @ targets)
        torch.testing.assert_close(
            sums.solve(factor * unit, sums.system()), expected, rtol=1e-8, atol=1e-10
        )
    best = min(slow, key=slow.__getitem__)
    penalty, weights = sums.best_by_generalised_error()
    assert penalty == pytest.approx(best * unit)
    assert torch.equal(weights, sums.solve(penalty, sums.system()))


@pytest.mark.parametrize("count", [20, 60])
def test_each_penalty_is_factorised_once(count, monkeypatch):
    """The weights come from the factorisation that the choice of the penalty has made."""
    tried, factor = [], ridge_sums._factor

    def counted(system, penalty):
        tried.append(penalty)
        return factor(system, penalty)

    head = RidgeHead(8, 4, 50, (0, 1), "gcv")
    features, targets = images_of(count, 8)
    monkeypatch.setattr(ridge_sums, "_factor", counted)
    head.fit([(features, targets.argmax(1))])
    assert float(head.sums.penalty) in tried and len(tried) == len(set(tried)) >= 2


def test_candidates_are_half_decades():
    assert GCV_FACTORS[0] == pytest.approx(0.005) and GCV_FACTORS[-1] == 5
    ratios = [after / before for before, after in itertools.pairwise(GCV_FACTORS)]
    assert ratios == pytest.approx([10**0.5] * 6)


def test_by_default_the_penalty_follows_from_all_images(stream, learn, all_features):
    method = make()
    learn(method, stream)
    features, _ = all_features(method, stream)
    hidden = (features @ method.classifier.projection.double()).relu()
    factor = float(method.classifier.sums.penalty) / float(hidden.square().sum(1).mean())
    assert any(factor == pytest.approx(candidate, rel=1e-3) for candidate in GCV_FACTORS)


def test_few_images_take_little_memory_and_no_row_is_an_image():
    hidden, targets = images_of(20, 400)
    sums = Sums(400, 4)
    sums.add(hidden, targets)
    assert sums.rows.shape == (20, 400) and not sums.triangle.numel() and not sums.classes.numel()
    lengths = torch.cdist(F.normalize(sums.rows), F.normalize(hidden))
    assert (
        lengths.min() > 0.1
        and torch.cdist(F.normalize(-sums.rows), F.normalize(hidden)).min() > 0.1
    )
    torch.testing.assert_close(sums.gram(), hidden.T @ hidden)
    torch.testing.assert_close(sums.class_sums(), hidden.T @ targets)
    sums.add(*images_of(200, 400))
    assert sums.triangle.shape == (400 * 401 // 2,) and not sums.rows.numel()


def test_a_symmetric_matrix_is_packed_and_unpacked():
    hidden, _ = images_of(30, 7)
    symmetric = hidden.T @ hidden
    assert packed(symmetric).shape == (28,)
    assert torch.equal(unpacked(packed(symmetric), 7), symmetric)


def test_a_triangular_matrix_is_inverted_by_halves():
    hidden, _ = images_of(900, 701)
    lower = torch.linalg.cholesky(hidden.T @ hidden + torch.eye(701, dtype=torch.float64))
    torch.testing.assert_close(triangular_inverse(lower), torch.linalg.inv(lower))


def test_state_of_both_forms_and_of_earlier_versions_is_restored(stream, learn):
    for width in (50, 200):  # more images than half the width, and fewer
        method = make(width=width)
        learn(method, stream)
        restored = make(1, width=width)
        restored.load_trained_state(method.trained_state())
        for name, value in method.trained_state().items():
            assert torch.equal(restored.trained_state()[name], value)
    old = {key: value for key, value in method.trained_state().items() if ".sums." not in key}
    hidden, targets = images_of(30, 200)
    old["classifier.sums.gram"] = hidden.T @ hidden
    old["classifier.sums.classes"] = hidden.T @ targets
    old["classifier.sums.penalty"] = torch.tensor(10.0, dtype=torch.float64)
    restored.load_trained_state(old)
    sums = restored.classifier.sums
    torch.testing.assert_close(sums.gram(), hidden.T @ hidden)
    learn(restored, stream)
    exponent = math.log10(float(sums.penalty))
    assert exponent == pytest.approx(round(exponent)), "chosen on a fifth of the last task"


def test_a_system_that_rounding_made_singular_is_not_solved():
    method = make(width=None)
    rows = torch.ones(40, 32, dtype=torch.float64)
    method.classifier.sums.add(1e6 * rows, F.one_hot(torch.arange(40) % 4, 4).double())
    assert method.classifier.sums.solve(1e-8, method.classifier.sums.system()) is None
    solved = method.classifier.sums.solve(1.0, method.classifier.sums.system())
    assert solved is not None and math.isfinite(float(solved.sum()))


def test_a_penalty_too_small_to_solve_with_is_raised_until_it_is_not(stream, learn, all_features):
    """Fewer images than random features, but more than half of that: the sums are singular, and
    1e-12 is nothing beside what they hold.
    """
    images = sum(len(task.train) for task in stream.tasks)
    method = make(width=2 * images - 2, exponents=[-14, -12], penalty_rule="last_fifth")
    learn(method, stream)
    sums = method.classifier.sums
    power = math.log10(float(sums.penalty))
    assert power > -12 + 1e-6 and power == pytest.approx(round(power))
    assert sums.solve(10.0 ** (power - 1), sums.system()) is None, "no further than needed"
    expected = sums.solve(10.0**power, sums.system())
    assert expected is not None
    torch.testing.assert_close(method.classifier.weight.double(), expected.T, rtol=1e-3, atol=1e-5)
    features, labels = all_features(method, stream)
    assert (method.classify(features.float()).argmax(1) == labels).float().mean() > 0.9


@pytest.mark.parametrize(("noise", "end"), [(0.0, 0.005), (0.1, None), (1.0, 5.0)])
def test_a_penalty_at_an_end_of_its_range_is_remarked(noise, end):
    head = make(width=None).classifier
    labels = torch.arange(400) % 4
    generator = torch.Generator().manual_seed(0)
    features = noise * torch.randn(400, 32, dtype=torch.float64, generator=generator)
    features[:, :4] += F.one_hot(labels, 4)
    head.fit([(features, labels)])
    factor = float(head.sums.penalty) / float(features.square().sum(1).mean())
    if end is None:
        assert not head.remarks() and 0.006 < factor < 4
    else:
        assert len(head.remarks()) == 1 and factor == pytest.approx(end)


def test_a_remark_is_printed_once_in_a_run(stream, tmp_path):
    method = make()
    method.classifier.remarks = lambda: ["ridge: the penalty is 7, an end of the range"]
    trainer = Trainer(method, stream, tiny_settings(), seed=0, device=torch.device("cpu"))
    trainer.outputs.progress = Progress(tmp_path / "log.txt", quiet=True)
    trainer.fit()
    text = (tmp_path / "log.txt").read_text()
    assert text.count("the penalty is 7") == 1 and "task 1/" in text
