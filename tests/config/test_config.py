"""Composition and validation: what is accepted, in what form, and the line that each mistake
gives.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smope.config.conf_files import choices, conf_dir
from smope.config.config import Config, closest_key, load_config, validate, with_defaults
from smope.config.hydra import compose
from smope.config.identity import flatten, immaterial, may_move
from smope.config.overrides import read_overrides
from smope.errors import UserError


def config(*overrides: str) -> Config:
    return compose(read_overrides(overrides))


def test_defaults_are_the_embedded_demo() -> None:
    made = config()
    assert made.stream["name"] == "digits"
    assert made.method["_target_"] == "smope.methods.smope.SMoPE"
    assert made.backbone["weights"] == "embedded"
    assert (made.seed, made.name, made.run_dir, made.resume) == (0, "digits", None, None)


def test_paper_defaults_of_the_trainer_are_those_of_its_settings() -> None:
    from dataclasses import asdict

    from smope.training.settings import TrainerSettings

    trainer = config("trainer=default").trainer
    del trainer["_target_"]
    assert trainer == asdict(TrainerSettings())


def test_values_take_the_form_of_their_type() -> None:
    made = config("trainer.learning_rate=1", "router.epsilon=0", "stream.crop_scale=[1,1]")
    assert [type(made.trainer["learning_rate"]), type(made.router["epsilon"])] == [float, float]
    assert made.stream["crop_scale"] == [1.0, 1.0]
    assert type(made.stream["crop_scale"][0]) is float


def test_the_comparison_experiment_has_exactly_its_settings(tmp_path: Path) -> None:
    weights = tmp_path / "vit.safetensors"
    weights.touch()
    made = config(
        "experiment=cifar100_vit_tiny_subset",
        f"stream.root={tmp_path}",
        f"backbone.weights={weights}",
    )
    assert made.backbone["name"] == "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert (made.backbone["pixel_statistics"], made.seed, made.stream["num_tasks"]) == (
        "none",
        0,
        10,
    )
    expected = {
        "batch_size": 50,
        "epochs": 6,
        "dense_epochs": 3,
        "frozen_steps": 10,
        "iter_step": 10,
    }
    expected |= {"learning_rate": 5e-3, "alignment_epochs": 20, "alignment_samples_per_class": 50}
    assert {key: made.trainer[key] for key in expected} == expected
    assert (made.method["router_loss_weight"], made.method["prototype_loss_weight"]) == (1e-5, 1e-5)
    assert made.router["epsilon"] == 0.4


ROUTERS = ", ".join(choices("router", [conf_dir()]))
MISTAKES = {
    "router.topk=3": r"unknown key router\.topk=3; did you mean router\.top_k\?",
    "rooter.top_k=3": r"unknown key rooter\.top_k=3; did you mean router\.top_k\?",
    "epochs=3": r"unknown key epochs=3; did you mean trainer\.epochs\?",
    "methd=smope": r"unknown key methd=smope; did you mean method\?",
    "method.frobnicate=1": r"unknown key method\.frobnicate=1; keys of method are num_experts, "
    r"blocks,",
    "method=ncm method.blocks=[1]": r"unknown key method\.blocks=\[1\]; keys of method are "
    r"similarity",
    "frobnicate=1": r"unknown key frobnicate=1; `smope train --help` lists the keys",
    "router=adaptive": r"no choice; did you mean router=adaptive_noise\? Choices are "
    rf"{ROUTERS}$",
    "router=qq": rf"router=qq is no choice; choose one of {ROUTERS}$",
    "stream=null": r"stream=null is no choice; choose one of",
    "experiment=smok": r"no choice; did you mean experiment=smoke\? `smope train --help` "
    r"lists all \d\d$",
    "variant=qq": r"no choice; choose one of ablation_1_.{80,200}, \.\.\.; `smope train "
    r"--help` lists all \d\d$",
    "experiment=full_finetune_imagenet_r_10": r"^experiment=full_finetune_imagenet_r_10 is no "
    r"choice; write benchmark=imagenet_r_10 method=full_finetune$",
    "benchmark=cifar10": r"no choice; did you mean benchmark=cifar100\? Choices are cifar100, cub",
    "benchmrk=cifar100": r"unknown key benchmrk=cifar100; did you mean benchmark\?",
    "~router": r"router=null chooses nothing",
    "~seed": r"seed has no value yet",
    "resume=": r"resume must be a path, got ''; write for example resume=runs/",
    "run_dir=": r"run_dir must be a path, got ''; write for example run_dir=runs/",
    "backbone.weights=": r"backbone\.weights must be embedded, hub, random or a path, got ''",
    "stream=folder stream.num_tasks=2 stream.root=": r"stream\.root must be a path, got ''",
    "backbone.image_size=30": r"image_size must be a multiple of the patch size 4, got 30; .* "
    r"backbone\.image_size=32$",
    "backbone=vit_tiny backbone.image_size=7": r"multiple of the patch size 16, got 7; .* "
    r"backbone\.image_size=16$",
    "backbone=timm stream=folder": r"^backbone\.name, stream\.root and stream\.num_tasks have no "
    r"value yet; write "
    r"backbone\.name=<timm model> stream\.root=<folder of images> stream\.num_tasks=<a whole "
    r"number or null>$",
    "router.top_k=0 trainer.epochs=0": r"^router\.top_k must be .*=5; and trainer\.epochs must be "
    r"at least 1, got 0",
    "backbone.weights=nope stream=cifar100 stream.root=gone": r"nope: no such .*; and "
    r"stream\.root=/.*gone: no",
    "router.top_k=ten": r"router\.top_k must be a whole number, got ten; write for example "
    r"router\.top_k=5",
    "router.top_k=2.5": r"router\.top_k must be a whole number, got 2\.5",
    "router.top_k=true": r"router\.top_k must be a whole number, got true",
    "seed=null": r"seed must be a whole number, got null; write for example seed=0",
    "trainer.deterministic=1": r"trainer\.deterministic must be true or false, got 1",
    "trainer.precision=fp16": r"trainer\.precision must be one of float32, bfloat16, .*, got fp16",
    "method.router_loss=both": r"method\.router_loss must be one of code, paper, got both",
    "method.blocks=3": r"method\.blocks must be a list of whole numbers or null, got 3",
    "method.blocks=[a]": r"method\.blocks must be a list of whole numbers or null, got \[a\]",
    "tracker=wandb tracker.project=7": r"tracker\.project must be text, got 7; quote "
    r".*project=\"'7'\"",
    "backbone.options=3": r"backbone\.options must be a mapping .* or null, got 3",
    "router._target_=nowhere.Router": r"router\._target_='nowhere\.Router' names no class or "
    r"function",
    "router.top_k=26": r"router\.top_k must be in 1\.\.method\.num_experts=25, got 26; write",
    "router.top_k=0": r"router\.top_k must be at least 1, got 0",
    "method.balance_loss_weight=-1": r"method\.balance_loss_weight must be a finite number, 0 or "
    r"more, got -1",
    "method=smope_plus method.router_z_loss_weight=inf": r"router_z_loss_weight must be a finite",
    "method.load_loss_weight=0.1": r"load_loss_weight=0\.1: the load loss needs noise in its "
    r"choice, which router=adaptive_noise does not have; or write method\.load_loss_weight=0$",
    "router=softmax_topk router.noise=0 method.load_loss_weight=0.1": r"and router\.noise=0; raise",
    "router=noisy_topk router.top_k=25 method.load_loss_weight=0.1": r"no effect where all experts "
    r"are chosen, and router\.top_k=method\.num_experts=25; lower router\.top_k; or write",
    "router=noisy_topk router.top_k=1": r"router\.top_k must be at least 2, got 1",
    "router=switch router.jitter=1": r"router\.jitter must be 0 or more and below 1, got 1",
    "router=softmax_topk router.gate=key": r"router\.gate must be one of keys, learned, got key",
    "router=dense method.balance_loss_weight=0.1": r"needs a gate that chooses, which router=dense",
    "method.num_experts=0": r"method\.num_experts must be at least 1 and at most 100000, got 0",
    "router.epsilon=-0.1": r"router\.epsilon must be a finite number, 0 or more, got -0\.1",
    "router.epsilon=inf": r"router\.epsilon must be a finite number, 0 or more, got inf",
    "method.router_loss_weight=-1": r"method\.router_loss_weight must be a finite number, 0 or "
    r"more, got -1",
    "method.prototype_loss_weight=nan": r"method\.prototype_loss_weight must be a finite number, "
    r"0 or more",
    "method.blocks=[]": r"method\.blocks must be a list of different block numbers, each 0 or "
    r"more, got \[\]",
    "method.blocks=[1,1]": r"method\.blocks must be a list of different block .* got "
    r"\[1,1\]",
    "method.blocks=[-1]": r"method\.blocks must be a list of different .* got \[-1\]",
    "trainer.batch_size=0": r"trainer\.batch_size must be at least 1, got 0; write for example",
    "trainer.eval_batch_size=0": r"trainer\.eval_batch_size must be at least 1, got 0",
    "trainer.epochs=0": r"trainer\.epochs must be at least 1, got 0",
    "trainer.dense_epochs=-1": r"trainer\.dense_epochs must be at least 0, got -1",
    "trainer.learning_rate=0": r"trainer\.learning_rate must be a finite number above 0, got 0",
    "trainer.learning_rate=nan": r"trainer\.learning_rate must be a finite number above 0, got nan",
    "trainer.frozen_steps=-1": r"trainer\.frozen_steps must be at least 0, got -1",
    "trainer.iter_step=0": r"trainer\.iter_step must be at least 1, got 0",
    "trainer.num_workers=-1": r"trainer\.num_workers must be at least 0 and at most 256, got -1",
    "method.num_experts=1000000000": r"method\.num_experts must be at least 1 and at most 100000, "
    r"got 1000000000",
    "backbone.image_size=1000000000": r"backbone\.image_size must be at least 1 and at most 4096, "
    r"got 1000000000",
    "method.centroids=1000000000": r"method\.centroids must be at least 1 and at most 1000, got "
    r"1000000000",
    "trainer.alignment_samples_per_class=1000000000": r"samples_per_class must be at least 1 and "
    r"at most 100000",
    "trainer.num_workers=1000000000": r"trainer\.num_workers must be at least 0 and at most 256, "
    r"got 1000000000",
    "trainer.checkpoint_steps=0": r"trainer\.checkpoint_steps must be at least 1, got 0; write "
    r"for example",
    "trainer.checkpoint_steps=-5": r"trainer\.checkpoint_steps must be at least 1, got -5",
    "trainer.checkpoint_minutes=0": r"trainer\.checkpoint_minutes must be a finite number above "
    r"0, got 0",
    "trainer.checkpoint_minutes=-inf": r"trainer\.checkpoint_minutes must be a finite number "
    r"above 0, got -inf",
    "trainer.checkpoint_minutes=nan": r"trainer\.checkpoint_minutes must be a finite number above "
    r"0, got nan",
    "trainer.learning_rate=inf": r"trainer\.learning_rate must be a finite number above 0, got inf",
    "trainer.weight_decay=-inf": r"trainer\.weight_decay must be a finite number, 0 or more, got "
    r"-inf",
    "trainer.epochs=-1": r"trainer\.epochs must be at least 1, got -1",
    "trainer.device=gpu": r"trainer\.device must be auto, cpu, cuda, cuda:N or mps, got gpu",
    "stream.num_tasks=0": r"stream\.num_tasks must be at least 1, got 0",
    "stream.classes_per_task=[5,0,5]": r"stream\.classes_per_task must be a list of sizes, each 1 "
    r"or more",
    "stream.classes_per_task=[]": r"stream\.(classes_per_task|num_tasks) must be",
    "stream.classes_per_task=[5,5] stream.num_tasks=3": r"is 2 tasks, but stream\.num_tasks=3; "
    r"leave",
    "stream.class_order=[1,1]": r"stream\.class_order must name each class once, got \[1,1\]",
    "stream.crop_scale=[0.5]": r"stream\.crop_scale must be two numbers a,b with 0 < a <= b <= 1, "
    r"or null",
    "stream.crop_scale=[0.9,0.5]": r"stream\.crop_scale must be two numbers",
    "stream.eval_crop=0": r"stream\.eval_crop must be above 0 and at most 1, got 0",
    "backbone.pixel_statistics=given": r"given needs backbone\.mean and backbone\.std, three "
    r"numbers each",
    "backbone.pixel_statistics=given backbone.mean=[0,0] backbone.std=[1,1,1]": r"mean must be "
    r"three finite",
    "backbone.pixel_statistics=given backbone.mean=[0,0,0] backbone.std=[1,0,1]": r"three numbers "
    r"above",
    "backbone.mean=[0,0,0]": r"backbone\.mean=\[0\.0,0\.0,0\.0\] has no effect with "
    r".*pixel_statistics=own",
    "backbone.weights=embeded": r"backbone\.weights=embeded: no such file or folder; .* did you "
    r"mean embedded\?",
    "backbone.weights=/nowhere/vit.pth": r"weights=/nowhere/vit\.pth: no such file or folder; .* "
    r"check the path",
    "backbone.weights=/": r"backbone\.weights=/: no \.safetensors / .* file in this folder; name "
    r"the file itself",
    "backbone=timm": r"backbone\.name has no value yet; write backbone\.name=<timm model>",
    "stream=cifar100": r"stream\.root has no value yet; write stream\.root=<folder of images>",
    "stream=cifar100 stream.root=/nowhere/c": r"stream\.root=/nowhere/c: no such folder; .* check "
    r"the path",
    "seed=-1": r"seed must be at least 0 and at most 4294967295, got -1",
    "seed=4294967296": r"seed must be at least 0 and at most 4294967295",
    "name=a/b": r"name must be usable as a folder's name, without / or \\, got a/b",
    "name=..": r"name must be usable as a folder's name",
    "frobnicate": r"'frobnicate' is no override; write key=value",
    "=3": r"'=3' is no override; write key=value",
    "seed=1,2": r"seed=1,2 gives several values; add -m for a run with each, or write a list as "
    r"\[a,b\]",
    "router.top_k=1=2": r"cannot read 'router\.top_k=1=2' \(.*\); quote the value",
    "method.blocks=[1": r"cannot read 'method\.blocks=\[1' \(.*\); quote the value",
    "tracker.project=${nope}": r"Interpolation key 'nope' not found",
    "hydra.frobnicate=1": r"Could not override 'hydra\.frobnicate'",
    "hydra/launcher=frobnicate": r"hydra/launcher=frobnicate is no choice; choose one of basic, "
    r"joblib,",
}


@pytest.mark.parametrize("overrides", MISTAKES)
def test_a_mistake_is_one_line(overrides: str) -> None:
    with pytest.raises(UserError, match=MISTAKES[overrides]) as caught:
        config(*overrides.split())
    assert "\n" not in str(caught.value)


def test_classes_per_task_decides_the_number_of_tasks() -> None:
    assert config("stream.classes_per_task=[4,3,3]").stream["num_tasks"] == 3
    assert config("stream.classes_per_task=[4,6]", "stream.num_tasks=2").stream["num_tasks"] == 2
    assert config("experiment=smoke", "stream.classes_per_task=[4,3,3]").stream["num_tasks"] == 3


@pytest.mark.parametrize("key", ["run_dir", "resume", "stream.root", "backbone.weights"])
@pytest.mark.parametrize(
    "value", ["a=b", "two words", "a,b", "x[1]", "{y}", "it's", 'say "hi"', "back\\slash", "k:v"]
)
def test_paths_need_no_quoting(
    key: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / value).touch() if key == "backbone.weights" else (tmp_path / value).mkdir()
    texts = [f"{key}={value}"] + (["stream=cifar100"] if key == "stream.root" else [])
    made = config(*texts).as_dict()
    group, _, inner = key.rpartition(".")
    found = made[group][inner] if group else made[inner]
    assert found == (str(tmp_path / value) if group else value)


@settings(deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(
        lambda text: "${" not in text
    )
)
def test_any_text_survives_as_a_name(text: str) -> None:
    quoted = re.fullmatch(r"'.*'|\".*\"", text) or text in ("null", "???")
    value = read_overrides([f"name={text}"]).parsed[0].value()
    assert quoted or str(value) == text


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(
        ["seed", "router.top_k", "method.blocks", "stream.root", "trainer.device", "router", "x.y"]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)
def test_any_value_gives_a_configuration_or_a_user_error(key: str, value: str) -> None:
    try:
        made = config(f"{key}={value}")
    except UserError:
        return
    assert isinstance(made, Config)


def test_home_and_relative_folders_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for written in ("~/photos", "photos", "./photos/"):
        made = config("stream=folder", f"stream.root={written}", "stream.num_tasks=2")
        assert made.stream["root"] == str(tmp_path / "photos")


def test_saved_text_gives_the_same_configuration(tmp_path: Path) -> None:
    made = config("experiment=smoke", "trainer.learning_rate=1e-4", "run_dir=some where")
    (tmp_path / "config.yaml").write_text(made.to_yaml(), encoding="utf-8")
    assert load_config(tmp_path) == made


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is no run directory"),
        ("a: [", "is not readable YAML"),
        ("- 1", "holds no mapping"),
        ("a: 1", "unknown key a=1"),
    ],
)
def test_a_damaged_run_directory_is_one_line(
    tmp_path: Path, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_config(tmp_path)
    assert "\n" not in str(caught.value)


def test_hash_names_the_computation_only() -> None:
    plain = config().config_hash
    assert re.fullmatch(r"[0-9a-f]{12}", plain)
    same = [
        "name=other",
        "run_dir=elsewhere",
        "tracker=wandb",
        "trainer.num_workers=2",
        "trainer.gradient_accumulation_steps=4",
        "trainer.device=cpu",
        "trainer.eval_batch_size=7",
        "trainer.record=nothing",
        "trainer.learning_rate=0.005",
    ]
    assert {config(text).config_hash for text in same} == {plain}
    other = {
        config(text).config_hash
        for text in ("seed=1", "router.top_k=4", "method=ncm", "trainer.epochs=7")
    }
    assert len(other | {plain}) == 5


def test_what_is_immaterial() -> None:
    where = (
        "run_dir",
        "tracker",
        "tracker.project",
        "seed",
        "stream.root",
        "stream.cache_gb",
        "stream.cache_dir",
    )
    how = (
        "trainer.record",
        "trainer.checkpoint_minutes",
        "trainer.checkpoint_steps",
        "trainer.device",
    )
    assert all(immaterial(key, {}) for key in where + how)
    decisive = (
        "stream.class_order",
        "stream.num_tasks",
        "backbone.weights",
        "trainer.epochs",
        "method._target_",
    )
    assert not any(immaterial(key, {}) for key in decisive), (
        "of these a keyword or number decides about results"
    )


def test_the_size_of_test_batches_counts_where_their_images_see_each_other() -> None:
    plain, bug = ("method=l2p",), ("method=l2p", "method.authors_bug=vote")
    for method, counts in ((plain, False), (bug, True)):
        one, many = (config(*method, f"trainer.eval_batch_size={size}") for size in (1, 128))
        settings = flatten(one.as_dict())
        assert (one.config_hash != many.config_hash) == counts
        assert immaterial("trainer.eval_batch_size", settings) == may_move(
            "trainer.eval_batch_size", settings
        )
        assert immaterial("trainer.eval_batch_size", settings) != counts


def test_older_configurations_get_todays_defaults() -> None:
    whole = config().as_dict()
    old = {
        **whole,
        "trainer": {key: value for key, value in whole["trainer"].items() if key != "record"},
    }
    gone = {**whole, "method": {"_target_": "smope.methods.gone.Gone"}}
    assert with_defaults(old) == whole
    assert with_defaults(gone) == gone


def test_nearest_key_prefers_the_same_group() -> None:
    known = ["method.align", "trainer.epochs", "trainer.dense_epochs", "router.top_k"]
    assert closest_key("trainer.epoch", known) == "trainer.epochs"
    assert closest_key("method.epochs", known) == "trainer.epochs"
    assert closest_key("zzz", known) is None


def test_a_folder_of_ones_own_adds_choices(tmp_path: Path) -> None:
    for group, stem, text in (
        (
            "experiment",
            "mine, 1",
            "# @package _global_\ndefaults:\n  - override /router: two\nseed: 5\n",
        ),
        ("router", "two", "_target_: smope.routers.topk.TopK\ntop_k: 2\n"),
    ):
        folder = tmp_path / "own conf=1" / group
        folder.mkdir(parents=True)
        (folder / f"{stem}.yaml").write_text(text)
    made = compose(read_overrides(["router=two"], str(tmp_path / "own conf=1")))
    assert made.router["top_k"] == 2
    with pytest.raises(UserError, match=r"--config-dir nowhere: no such folder"):
        read_overrides([], "nowhere")


def test_defaults_fill_what_a_choice_of_ones_own_leaves_out(tmp_path: Path) -> None:
    (tmp_path / "router").mkdir()
    (tmp_path / "router" / "short.yaml").write_text(
        "_target_: smope.routers.adaptive_noise.AdaptiveNoise\n"
    )
    made = compose(read_overrides(["router=short", "router.epsilon=0.1"], str(tmp_path)))
    assert made.router["top_k"] == 5
    assert made.router["epsilon"] == 0.1


@pytest.mark.parametrize("stream", ["folder", "table"])
def test_keys_that_came_later_change_no_hash_at_their_defaults(stream: str, tmp_path: Path) -> None:
    path = "stream.root" if stream == "folder" else "stream.table"
    overrides = [f"stream={stream}", f"{path}={tmp_path}", "stream.num_tasks=2"]
    configs = [
        compose(read_overrides([*overrides, *more]))
        for more in ([], ["stream.test_fraction=0.2"], ["stream.test_fraction=0.3"])
    ]
    hashes = [config.config_hash for config in configs]
    assert hashes[0] == hashes[1] != hashes[2]
    values = configs[0].as_dict()
    del values["stream"]["test_fraction"]
    assert validate(values).config_hash == hashes[0]
