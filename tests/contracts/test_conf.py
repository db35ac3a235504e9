"""Every file of conf/ composes, and its keys are the arguments of the class that it names."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
import yaml

from smope.config.conf_files import ALL_GROUPS, GROUPS, SETTINGS, choice_values, choices, conf_dir
from smope.config.config import MISSING, Config, validate
from smope.config.hydra import compose, compose_values, with_sweep
from smope.config.identity import flatten
from smope.config.launchers import LAUNCHERS
from smope.config.overrides import combinations, read_overrides, read_values
from smope.config.schema import STREAM_BUILDER, STREAM_COMPUTED
from smope.config.signatures import COMPUTED, keys_of
from smope.declare.constraint import Constraint

FILES = [(group, name) for group in ALL_GROUPS for name in choices(group, [conf_dir()])]
TARGETS = [(group, name) for group, name in FILES if group in GROUPS]
HASHES = json.loads(Path(__file__).with_name("config_hashes.json").read_text(encoding="utf-8"))
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
    overrides = read_overrides([f"{group}={name}"])
    values = compose_values(overrides)
    known = flatten(values)
    left_open = [f"{key}={mandatory[key]}" for key in mandatory if known.get(key) == MISSING]
    if left_open:
        return compose(read_overrides([f"{group}={name}", *left_open]))
    return validate(values, overrides.given)


def _first_cell(name: str, mandatory: dict[str, str]) -> Config:
    """The first run of a sweep; that its choices exist is checked for all runs on the way."""
    texts = [
        f"sweep={name}",
        *([] if name.endswith("_small") else [f"stream.root={mandatory['stream.root']}"]),
    ]
    return compose(next(combinations(with_sweep(read_overrides(texts, multirun=True)))))


def without_paths(config: Config) -> Config:
    """The configuration with /data and /weights in place of the paths of this test."""
    stream = {
        key: "/data" if key in ("root", "table") and value is not None else value
        for key, value in config.stream.items()
    }
    weights = "/weights" if "/" in config.backbone["weights"] else config.backbone["weights"]
    return replace(config, stream=stream, backbone={**config.backbone, "weights": weights})


@pytest.mark.parametrize(("group", "name"), FILES)
def test_composes_to_the_recorded_hash(group: str, name: str, mandatory: dict[str, str]) -> None:
    """config_hashes.json has config_hash, and a hash of the text of config.yaml, of every choice.

    A hash that changes makes every earlier run another computation: collect, sweeps and resume
    would not find it again. A new choice adds its line.
    """
    made = without_paths(composed(group, name, mandatory))
    assert "???" not in made.to_yaml()
    if group in ("method", "router"):
        assert getattr(made, group) == choice_values(group, name, [conf_dir()])
    text = hashlib.sha256(made.to_yaml().encode()).hexdigest()[:12]
    choice = f"{group}={name}"
    assert choice in HASHES, (
        "a new choice adds its line to tests/contracts/config_hashes.json: "
        f'"{choice}": ["{made.config_hash}", "{text}"]'
    )
    assert [made.config_hash, text] == HASHES[choice], (
        f"{choice} is another computation than before; earlier runs would not be recognised"
    )


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


def imported(target: str) -> Any:
    module, _, attribute = target.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def real_arguments(made: Any) -> dict[str, tuple[inspect.Parameter, Any]]:
    """Arguments by name, each with its evaluated annotation; behind ** are those of the base."""
    start = made.__init__ if isinstance(made, type) else made
    hints = get_type_hints(start, include_extras=True)
    parameters = inspect.signature(made).parameters
    own = {name: (item, hints.get(name)) for name, item in parameters.items()}
    if any(item.kind is inspect.Parameter.VAR_KEYWORD for item in parameters.values()):
        own = {**real_arguments(made.__mro__[1]), **own}
    return own


def constraints_in(annotation: Any) -> list[Constraint]:
    """The constraints of an annotation, in the order in which they are written."""
    if get_origin(annotation) is Annotated:
        inner, *rest = get_args(annotation)
        return [*constraints_in(inner), *(item for item in rest if isinstance(item, Constraint))]
    return [item for part in get_args(annotation) for item in constraints_in(part)]


@pytest.mark.parametrize(("group", "name"), TARGETS)
def test_arguments_read_from_source_are_the_real_ones(group: str, name: str) -> None:
    target = read(group, name)["_target_"]
    real = real_arguments(imported(target))
    keys = keys_of(target, f"{group}._target_")
    assert set(keys) <= set(real)
    assert not COMPUTED & set(keys)
    for argument, key in keys.items():
        parameter, annotation = real[argument]
        assert key.required == (parameter.default is inspect.Parameter.empty)
        assert list(key.constraints) == constraints_in(annotation)
        if key.has_default and not isinstance(key.default, list):
            assert key.default == parameter.default


@pytest.mark.parametrize(("group", "name"), TARGETS)
def test_defaults_and_examples_keep_their_constraints(group: str, name: str) -> None:
    target = read(group, name)["_target_"]
    for argument, key in keys_of(target, f"{group}._target_").items():
        if key.has_default:
            key.check(argument, key.default)
        for constraint in key.constraints:
            typed = constraint.example
            value = typed if constraint.free_text else read_values([f"key={typed}"])["key"]
            assert constraint.holds(value), f"{argument}={typed}"


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
