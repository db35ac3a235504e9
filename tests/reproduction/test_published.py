"""The paper's rows, the rule of comparison worked out by hand, and the card made from it."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from smope.config.conf_files import choices, conf_dir
from smope.config.config import MISSING
from smope.config.hydra import compose_values
from smope.config.identity import flatten
from smope.config.overrides import read_overrides
from smope.reproduction.published import (
    PublishedRow,
    SeedMean,
    allowed_difference,
    changed_data,
    changed_settings,
    compare_scores,
    means,
    verdict,
)
from smope.reproduction.report import make_card, markdown
from smope.reproduction.rows import OF_PEERS, OF_THE_PAPER, ROWS

FAA, CAA, FORGETTING = "final_average_accuracy", "cumulative_average_accuracy", "forgetting"


def row(paper: dict[str, SeedMean], **others: Any) -> PublishedRow:
    return PublishedRow(
        "SMoPE on digits, 2 tasks", "the digits of scikit-learn", 1442, 355, paper, **others
    )


def record(seed: int, faa: float, **others: Any) -> dict[str, Any]:
    """The parts of a finished run's run.json that a card is made from."""
    return {
        "status": "finished",
        "seed": seed,
        FAA: faa / 100,
        CAA: 0.95,
        FORGETTING: 0.05,
        "sample_weighted_accuracy": 0.9,
        "config": {
            "seed": seed,
            "run_dir": None,
            "stream": {"root": "/home/me/photos"},
            "router": {},
        },
        "config_hash": "0123456789ab",
        "class_order": [2, 0, 1, 5, 4, 3],
        "tasks": [{"train": 1000, "test": 300}, {"train": 442, "test": 55}],
        "evaluated_on": "test",
        "stream": {
            "name": "digits",
            "content_hash": "c0ffee",
            "identity": f"identity {seed}",
            "skipped_images": [],
        },
        "backbone": {"name": "vit", "source": "/home/me/vit.safetensors", "sha256": "beef"},
        "seconds": {"train": 3.0, "per_task": [2.0, 2.5]},
        "device": "cpu",
        "threads": 2,
        "float32_products": "ieee",
        "trainable_parameters": {"prompt": 10},
        "versions": {"python": "3.11"},
    } | others


def test_the_allowed_difference_by_hand() -> None:
    """Pooled: s² = (5·0.12² + 5·0.16²) / (4 + 4) = 0.025; 2·0.158114·sqrt(2/5) = 0.2."""
    paper, ours = SeedMean(89.23, 0.12), SeedMean(89.0, 0.16)
    assert allowed_difference(ours, paper, [ours, paper]) == pytest.approx(0.2)


def test_the_allowed_difference_of_one_seed_is_the_papers() -> None:
    """s² = 5·0.4² / 4 = 0.2; 2·sqrt(0.2)·sqrt(1 + 1/5) = 0.979796."""
    paper, ours = SeedMean(80.0, 0.4), SeedMean(79.5, 0.0, seeds=1)
    assert allowed_difference(ours, paper, [ours, paper]) == pytest.approx(2 * math.sqrt(0.2 * 1.2))


def test_the_allowed_difference_without_a_published_deviation() -> None:
    """Ours alone: s² = 3·0.2² / 2 = 0.06; a single seed says nothing of the spread."""
    ours, one = SeedMean(72.0, 0.2, seeds=3), SeedMean(72.0, 0.0, seeds=1)
    assert allowed_difference(ours, SeedMean(72.17), [ours, SeedMean(72.17)]) == pytest.approx(
        2 * math.sqrt(0.06 * (1 / 3 + 1 / 5))
    )
    assert allowed_difference(one, SeedMean(72.17), [one, SeedMean(72.17)]) is None


def test_scores_are_percent_with_ddof_0() -> None:
    assert means([record(0, 80.0), record(1, 82.0)])[FAA] == SeedMean(
        pytest.approx(81.0), pytest.approx(1.0), 2
    )


def test_inside_and_outside() -> None:
    """s² = (5·0.4² + 2·1²) / 5 = 0.56, allowed 2·sqrt(0.56·0.7) = 1.252."""
    ours = means([record(0, 80.0), record(1, 82.0)])
    for reported, said in ((81.9, "inside"), (82.3, "outside, below"), (79.7, "outside, above")):
        published = row({FAA: SeedMean(reported, 0.4)})
        [found] = compare_scores(published, ours)
        assert found.allowed == pytest.approx(2 * math.sqrt(0.56 * 0.7))
        assert (found.difference, found.verdict) == (pytest.approx(81 - reported), said)
        assert verdict(published, [], [found])[0] == said.partition(",")[0]


def test_the_repeat_is_judged_by_the_spread_of_the_paper_as_well() -> None:
    published = row(
        {FAA: SeedMean(81.0, 0.4)}, repeat={FAA: SeedMean(70.0), FORGETTING: SeedMean(4.3)}
    )
    paper, repeat, forgetting = compare_scores(published, means([record(0, 81.0)]))
    assert (paper.verdict, repeat.verdict) == ("inside", "outside, above")
    assert repeat.allowed == paper.allowed
    assert forgetting.verdict == "not judged", "one seed and nobody's deviation"
    assert verdict(published, [], [paper, repeat, forgetting]) == (
        "inside",
        "agrees with the paper in FAA",
    )


def test_the_note_on_the_independent_repeat_is_true() -> None:
    published = ROWS["paper_cifar100"].paper[FAA]
    repeated = ROWS["paper_cifar100"].repeat[FAA]
    allowed = allowed_difference(repeated, published, [published])
    assert allowed is not None and published.mean - repeated.mean > allowed
    assert published.mean - repeated.mean == pytest.approx(0.35)


def test_a_changed_row_is_not_judged() -> None:
    published = row({FAA: SeedMean(81.0, 0.4)})
    found = compare_scores(published, means([record(0, 81.0)]), judge=False)
    assert [item.verdict for item in found] == ["not judged"]
    word, sentence = verdict(published, ["trainer.epochs=1 (20)"], found)
    assert word == "not a reproduction"
    assert sentence == "this is not the row: changed trainer.epochs=1 (20)"


def test_nothing_published_and_nothing_to_judge_by() -> None:
    assert verdict(row({}), [], [])[0] == "nothing to compare"
    published = row({FAA: SeedMean(72.17)})
    assert (
        verdict(published, [], compare_scores(published, means([record(0, 72.0)])))[0]
        == "not judged"
    )


def test_changed_settings_are_named_and_where_things_are_is_not() -> None:
    own = {
        "seed": 0,
        "trainer.epochs": 20,
        "trainer.device": "auto",
        "stream.root": MISSING,
        "backbone.weights": "hub",
    }
    moved = own | {
        "seed": 3,
        "trainer.device": "cuda",
        "stream.root": "/data",
        "backbone.weights": "vit.safetensors",
    }
    assert changed_settings(own, moved) == []
    assert changed_settings(own, own | {"stream.cache_gb": 2.0, "trainer.record": "all"}) == []
    assert changed_settings(own, moved | {"trainer.epochs": 1}) == ["trainer.epochs=1 (20)"]
    assert changed_settings(own, moved | {"backbone.weights": "random"}) == [
        "backbone.weights=random (hub)"
    ]
    assert changed_settings(own, own | {"trainer.epoch": 1}) == ["trainer.epoch=1 (not in the row)"]


def test_other_images_are_named() -> None:
    numbers = {"train": 24_000, "test": 6_000}
    imagenet_r = ROWS["paper_imagenet_r_10"]
    assert changed_data(imagenet_r, numbers, {"split": "published lists"}) == []
    assert changed_data(imagenet_r, numbers, {"split": "drawn"}) == [
        "split=drawn (published lists)"
    ]
    assert changed_data(imagenet_r, numbers | {"test": 60}, {"split": "published lists"}) == [
        "test images=60 (6000)"
    ]


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_rows_have_the_published_settings(name: str) -> None:
    """Those of the authors' scripts, row by row."""
    table = {
        # batch, rate, schedule, frozen, iter_step, router and prototype weight, epsilon, alignment
        # epochs, samples
        "paper_cifar100": (128, 5e-3, "warm_frozen_cosine", 80, 40, 1e-5, 1e-5, 0.4, 50, 128),
        "paper_cub200": (128, 5e-3, "epoch_cosine", None, None, 1e-5, 5e-5, 0.4, 50, 128),
        "paper_imagenet_r_5": (64, 2.5e-3, "warm_frozen_cosine", 80, 80, 1e-4, 1e-5, 0.7, 60, 128),
        "paper_imagenet_r_10": (64, 2.5e-3, "warm_frozen_cosine", 40, 40, 5e-5, 1e-4, 0.5, 50, 384),
        "paper_imagenet_r_20": (64, 2.5e-3, "warm_frozen_cosine", 20, 20, 1e-4, 5e-5, 0.3, 50, 256),
    }
    values = flatten(compose_values(read_overrides([f"experiment={name}"])))
    keys = (
        "trainer.batch_size",
        "trainer.learning_rate",
        "trainer.schedule",
        "trainer.frozen_steps",
        "trainer.iter_step",
        "method.router_loss_weight",
        "method.prototype_loss_weight",
        "router.epsilon",
        "trainer.alignment_epochs",
        "trainer.alignment_samples_per_class",
    )
    expected = table[re.sub(r"_(ibot|dino)$", "", name)]
    found = tuple(values[key] for key in keys)
    assert [a for a, b in zip(found, expected, strict=True) if b is not None] == [
        b for b in expected if b is not None
    ]
    fixed = {
        "trainer.epochs": 20,
        "trainer.dense_epochs": 10,
        "router.top_k": 5,
        "method.num_experts": 25,
    }
    fixed |= {"backbone.pixel_statistics": "none", "stream.class_order": "paper", "name": name}
    assert {key: values[key] for key in fixed} == fixed
    assert str(values["stream.num_tasks"]) in ROWS[name].title
    assert values["stream.eval_crop"] == (1.0 if name == "paper_cifar100" else 0.875)


def test_every_row_of_conf_is_published() -> None:
    names = {path.stem for path in (conf_dir() / "experiment").glob("*.yaml")}
    assert {name for name in names if name.startswith("paper_")} == set(OF_THE_PAPER)
    methods, benchmarks = (choices(group, [conf_dir()]) for group in ("method", "benchmark"))
    of_peers = {f"{method}_{benchmark}" for method in methods for benchmark in benchmarks}
    assert names & of_peers == set(OF_PEERS)


@pytest.mark.parametrize("name", OF_PEERS)
def test_rows_of_peers_are_a_method_on_a_benchmark(name: str) -> None:
    """With the settings of its recipe; a number that is compared is printed for the row's backbone,
    which the title names.
    """
    benchmark = next(text for text in choices("benchmark", [conf_dir()]) if name.endswith(text))
    method = name.removesuffix(f"_{benchmark}")
    row = flatten(compose_values(read_overrides([f"experiment={name}"])))
    plain = flatten(compose_values(read_overrides([f"benchmark={benchmark}", f"method={method}"])))
    differing = {key for key in row if row[key] != plain.get(key)}
    others = {key for key in differing if not key.startswith("backbone.")}
    assert others <= {"name", "stream.class_order"}
    assert row["name"] == name and str(row["stream.num_tasks"]) in ROWS[name].title
    assert ROWS[name].note and ROWS[name].source


def test_a_card_keeps_the_last_part_of_paths() -> None:
    command = [
        "smope",
        "reproduce",
        "paper_tiny",
        "stream.root=/home/me/photos",
        "--out=~/cards",
        "name=a=b",
    ]
    card = make_card(
        "paper_tiny",
        row({FAA: SeedMean(80.0, 1.0)}),
        {"/home/me/run": record(3, 80.0)},
        [],
        command,
        None,
    )
    assert card["command"] == "smope reproduce paper_tiny stream.root=photos --out=cards name=a=b"
    assert card["config"]["stream"]["root"] == "photos"
    assert card["backbone"]["source"] == "vit.safetensors"
    assert card["runs"][0]["directory"] == "run"
    page = markdown(card)
    assert "/home/me" not in page
    assert "checkout: none" in page
    assert "| 3 | 80.00 | 95.00 | 5.00 | 90.00 |" in page
    assert "| mean | 80.00 | 95.00 | 5.00 | 90.00 |" in page
