"""Batch size and frozen steps that follow from the data."""

from __future__ import annotations

import pytest

from smope.config.config import load_config
from smope.config.hydra import compose
from smope.config.overrides import read_overrides
from smope.errors import UserError
from smope.run.build import build
from smope.run.train import train
from smope.storage.run_directory import RunDirectory
from smope.training.auto import resolve


@pytest.mark.parametrize(
    ("train_images", "batch_size", "frozen_steps"),
    [
        (1, 1, 0),
        (3, 3, 0),
        (20, 16, 0),
        (32, 16, 1),
        (284, 32, 4),  # the embedded digits
        (1_000, 64, 7),
        (5_000, 128, 19),
        (1_000_000, 128, 80),
    ],
)
def test_auto_leaves_steps_to_train(train_images: int, batch_size: int, frozen_steps: int) -> None:
    resolved = resolve({"batch_size": "auto", "frozen_steps": "auto"}, train_images)
    assert resolved == {"batch_size": batch_size, "frozen_steps": frozen_steps}
    assert 1 <= resolved["batch_size"] <= train_images
    assert resolved["frozen_steps"] < max(1, train_images // batch_size)


def test_a_number_that_the_user_wrote_stays() -> None:
    assert resolve({"batch_size": 10, "frozen_steps": 3}, 160) == {}
    assert resolve({"batch_size": 10, "frozen_steps": "auto"}, 160) == {"frozen_steps": 8}


def test_the_defaults_give_the_digits_what_they_always_had() -> None:
    experiment = build(compose(read_overrides([])))
    assert experiment.config.trainer["batch_size"] == experiment.settings.batch_size == 32
    assert experiment.config.trainer["frozen_steps"] == experiment.settings.frozen_steps == 4


def test_config_yaml_holds_the_numbers_and_a_resumed_run_keeps_them(tmp_path) -> None:
    config = compose(
        read_overrides(
            [
                "experiment=smoke",
                "trainer.batch_size=auto",
                "trainer.frozen_steps=auto",
                "backbone.image_size=8",
            ]
        )
    )
    assert config.trainer["batch_size"] == "auto"
    record = train(config, tmp_path / "run")
    saved = load_config(tmp_path / "run")
    assert (saved.trainer["batch_size"], saved.trainer["frozen_steps"]) == (64, 5)
    assert record["config"] == saved.as_dict()

    # A sweep resumes with the configuration that it composed, in which auto is not resolved.
    directory = RunDirectory(tmp_path / "run")
    directory.write_record(directory.read_record() | {"status": "interrupted"})
    again = train(config, tmp_path / "run", resume=True)
    assert again["accuracy_matrix"] == record["accuracy_matrix"]


def test_a_word_other_than_auto_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"trainer\.batch_size must be a whole number or one of auto"
    ):
        compose(read_overrides(["trainer.batch_size=automatic"]))
    with pytest.raises(UserError, match=r"trainer\.batch_size must be at least 1"):
        compose(read_overrides(["trainer.batch_size=0"]))
