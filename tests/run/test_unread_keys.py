"""Keys that the user set and that the run does not read are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from smope.cli import main
from smope.config.hydra import compose
from smope.config.overrides import read_overrides
from smope.run.prepare import prepare
from smope.run.unread_keys import unread_keys

SMALLEST = ["experiment=smoke", "backbone.image_size=8"]
STEPS = ("trainer.learning_rate", "trainer.batch_size", "trainer.epochs")


def line(*overrides: str) -> str:
    read = read_overrides([*SMALLEST, *overrides])
    return unread_keys(read.given, *prepare(compose(read))) or ""


@pytest.mark.parametrize(
    ("overrides", "unread"),
    [
        (("method=ncm", "router.top_k=3"), ["router.top_k (method=ncm has no router)"]),
        (("method=finetune", "router=topk"), ["router (method=finetune has no router)"]),
        (("method=ncm", "trainer.learning_rate=1"), ["trainer.learning_rate (method=ncm takes no"]),
        (("method=ridge", "stream.flip=false"), ["stream.flip (method=ridge does not augment"]),
        (("method=finetune", "trainer.dense_epochs=1"), ["trainer.dense_epochs"]),
        (("method.align=false", "trainer.alignment_epochs=3"), ["trainer.alignment_epochs"]),
        (("method.align=false", "method.centroids=2"), ["method.centroids"]),
        (("trainer.schedule=epoch_cosine", "trainer.frozen_steps=1"), ["trainer.frozen_steps"]),
        (("method.rank=8",), ["method.rank (method.placement=prefix)"]),
        (("method=smope_plus", "method.rank=8"), ["method.rank (method.placement=prefix)"]),
        (
            ("method.placement=mlp", "method.expert_space=input", "method.expert_init=uniform"),
            ["method.expert_init, method.expert_space (method.placement=mlp)"],
        ),
        (("stream.blurry_images=0.2",), ["stream.blurry_images (stream.disjoint_classes=1)"]),
    ],
)
def test_an_unread_key_is_named_with_the_reason(
    overrides: tuple[str, ...], unread: list[str]
) -> None:
    text = line(*overrides)
    assert text.startswith("these keys change nothing in this run: ")
    for words in unread:
        assert words in text


@pytest.mark.parametrize("method", ["smope", "smope_plus", "finetune", "l2p"])
def test_a_method_that_trains_reads_the_keys_of_training(method: str) -> None:
    assert not line(f"method={method}", *(f"{key}=1" for key in STEPS))


def test_nothing_is_named_where_nothing_was_set() -> None:
    assert not line("method.placement=lora", "method.rank=8")
    assert not line()
    assert not line("method=ncm")


def test_train_and_dry_run_print_the_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", *SMALLEST, "method=ncm", "router.top_k=3", f"run_dir={tmp_path / 'run'}"]
    expected = "these keys change nothing in this run: router.top_k (method=ncm has no router)"
    assert main.main([*command, "--dry-run"]) == 0
    assert expected in capsys.readouterr().out
    assert main.main(command) == 0
    assert expected in capsys.readouterr().out
    assert expected in (tmp_path / "run" / "train.log").read_text()
