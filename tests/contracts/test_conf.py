"""Every file of conf/ composes, and its keys are the arguments of the class that it names."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from smope.config.conf_files import ALL_GROUPS, SETTINGS, choices, conf_dir
from smope.config.config import MISSING, STREAM_BUILDER, STREAM_COMPUTED, Config
from smope.config.hydra import compose, compose_values, with_sweep
from smope.config.identity import GROUPS, flatten
from smope.config.launchers import LAUNCHERS
from smope.config.overrides import combinations, read_overrides
from smope.config.signatures import COMPUTED, keys_of

FILES = [(group, name) for group in ALL_GROUPS for name in choices(group, [conf_dir()])]
TARGETS = [(group, name) for group, name in FILES if group in GROUPS]
RECIPES = [("recipe", name) for name in choices("recipe", [conf_dir()])]
# Groups in which a choice is the Python file of the same name.
ONE_FILE_EACH = ("stream", "method", "router")


def read(group: str, name: str) -> dict[str, Any]:
    """The values of a choice's file and of those that it includes; its own values win."""
    values = yaml.safe_load((conf_dir() / group / f"{name}.yaml").read_text(encoding="utf-8"))
    if group in SETTINGS:
        return values
    included = [read(group, other) for other in values.pop("defaults", []) if other != "_self_"]
    return {key: value for file in [*included, values] for key, value in file.items()}


@pytest.fixture
def mandatory(tmp_path: Path) -> dict[str, str]:
    """A value for each key that a choice may leave to the user."""
    weights = tmp_path / "vit.safetensors"
    weights.touch()
    return {
        "stream.root": str(tmp_path),
        "stream.table": str(weights),
        "stream.num_tasks": "2",
        "backbone.name": "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
        "backbone.weights": str(weights),
    }


def composed(group: str, name: str, mandatory: dict[str, str]) -> Config:
    if group == "sweep":
        return _first_cell(name, mandatory)
    choice = f"{group}={name}"
    values = flatten(compose_values(read_overrides([choice])))
    left_open = [key for key in mandatory if values.get(key) == MISSING]
    return compose(read_overrides([choice, *(f"{key}={mandatory[key]}" for key in left_open)]))


def _first_cell(name: str, mandatory: dict[str, str]) -> Config:
    """The first run of a sweep; that its choices exist is checked for all runs on the way."""
    texts = [
        f"sweep={name}",
        *([] if name.endswith("_small") else [f"stream.root={mandatory['stream.root']}"]),
    ]
    return compose(next(combinations(with_sweep(read_overrides(texts, multirun=True)))))


@pytest.mark.parametrize(("group", "name"), FILES)
def test_composes(group: str, name: str, mandatory: dict[str, str]) -> None:
    made = composed(group, name, mandatory)
    assert "???" not in made.to_yaml()


@pytest.mark.parametrize(("group", "name"), TARGETS)
def test_keys_are_the_arguments(group: str, name: str) -> None:
    values = read(group, name)
    target = values.pop("_target_")
    expected = set(keys_of(target, f"{group}._target_"))
    if group == "stream":
        expected |= set(keys_of(STREAM_BUILDER, "stream")) - STREAM_COMPUTED | {"name"}
        assert values["name"] == name
    assert set(values) == expected
    if group in ONE_FILE_EACH:
        assert target.split(".")[-2] == name


@pytest.mark.parametrize(("group", "name"), TARGETS)
def test_arguments_read_from_source_are_the_real_ones(group: str, name: str) -> None:
    target = read(group, name)["_target_"]
    module, _, attribute = target.rpartition(".")
    real = inspect.signature(getattr(importlib.import_module(module), attribute)).parameters
    keys = keys_of(target, f"{group}._target_")
    assert set(keys) <= set(real)
    assert not COMPUTED & set(keys)
    for argument, key in keys.items():
        assert key.required == (real[argument].default is inspect.Parameter.empty)
        if key.has_default and not isinstance(key.default, list):
            assert key.default == real[argument].default


@pytest.mark.parametrize(("group", "name"), [*FILES, *RECIPES])
def test_says_what_it_is(group: str, name: str) -> None:
    text = (conf_dir() / group / f"{name}.yaml").read_text(encoding="utf-8")
    comments = [
        line for line in text.splitlines()[:2] if line.startswith("# ") and "@package" not in line
    ]
    assert comments, "a file of conf/ starts with a line that says what it is"


@pytest.mark.parametrize("group", GROUPS)
def test_the_default_is_a_choice(group: str) -> None:
    defaults = yaml.safe_load((conf_dir() / "train.yaml").read_text(encoding="utf-8"))["defaults"]
    chosen = {
        key: value for item in defaults if isinstance(item, dict) for key, value in item.items()
    }
    assert chosen[group] in choices(group, [conf_dir()])


@pytest.mark.parametrize(
    "path", sorted((conf_dir() / "hydra" / "launcher").glob("*.yaml")), ids=lambda path: path.stem
)
def test_launchers_have_the_keys_of_their_plugin(path: Path) -> None:
    """A launcher takes any key and fails with it later, on the cluster."""
    needed = LAUNCHERS[path.stem]
    assert needed is not None
    plugin = pytest.importorskip(
        f"hydra_plugins.{needed[0]}.config"
        if needed[1] != "ray"
        else "hydra_plugins.hydra_ray_launcher._config"
    )
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    (known,) = (
        item
        for item in vars(plugin).values()
        if getattr(item, "_target_", None) == values["_target_"]
    )
    assert set(values) <= set(known.__dataclass_fields__)
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_slurm_jobs_pass_their_cores_to_srun_and_may_be_queued_again(tmp_path: Path) -> None:
    """From Slurm 22.05 on, srun does not take the number of cores from sbatch."""
    slurm = pytest.importorskip("submitit.slurm.slurm")
    values = yaml.safe_load(
        (conf_dir() / "hydra/launcher/submitit_slurm.yaml").read_text(encoding="utf-8")
    )
    settings = {key: values[key] for key in ("cpus_per_task", "additional_parameters", "setup")}
    lines = slurm._make_sbatch_string("python", folder=tmp_path, **settings).splitlines()
    assert "#SBATCH --cpus-per-task=8" in lines and "#SBATCH --requeue" in lines
    srun = next(index for index, line in enumerate(lines) if line.startswith("srun "))
    assert "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK" in lines[:srun]
