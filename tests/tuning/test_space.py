"""The search space and the settings of a search: read, typed, checked; no torch and no Optuna."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import smope
from smope.config.conf_files import conf_dir
from smope.config.hydra import compose
from smope.config.identity import flatten
from smope.config.overrides import read_overrides
from smope.errors import UserError
from smope.tuning.settings import TuneSettings, read_settings, separate
from smope.tuning.space import Choices, NumberRange, Space, make_space, own_values, without_steps

RATE = "trainer.learning_rate"


def space_of(*texts: str) -> Space:
    own, others = separate(texts)
    overrides = read_overrides(others)
    _, file, changes = read_settings(own, overrides.config_dirs)
    return make_space(compose(overrides), file, changes, overrides.given)


def test_the_shipped_space_is_that_of_the_method() -> None:
    assert list(space_of()) == [RATE, "method.expert_rate_factor", "router.epsilon"]
    assert list(space_of("method=coda")) == [RATE, "method.prompt_rate_factor"]
    assert list(space_of("method=fecam")) == [RATE, "method.diagonal", "method.off_diagonal"]
    assert list(space_of("router=topk")) == [RATE, "method.expert_rate_factor"]


@pytest.mark.parametrize(
    "method", sorted(path.stem for path in (conf_dir() / "method").glob("*.yaml"))
)
def test_the_shipped_space_fits_every_method_and_holds_its_defaults(method: str) -> None:
    config = compose(read_overrides([f"method={method}"]))
    _, file, changes = read_settings([], (conf_dir(),))
    space = make_space(config, file, changes)
    assert own_values(config, space) == {key: flatten(config.as_dict())[key] for key in space}


def test_what_is_given_a_value_by_hand_is_not_searched() -> None:
    assert list(space_of(f"{RATE}=0.01")) == ["method.expert_rate_factor", "router.epsilon"]
    assert RATE in space_of(f"{RATE}=0.01", f"tune.space.{RATE}=[0.01,0.02]")


def test_entries_are_added_replaced_and_taken_out() -> None:
    found = space_of(
        "tune.space.router.top_k={low: 1, high: 9, step: 2}",
        f"tune.space.{RATE}={{low: 1, high: 2}}",
        "tune.space.router.epsilon=null",
        "tune.space.method.router_loss=[code,paper]",
        "tune.space.method.blocks={choices: [[0,1],[2,3]]}",
    )
    assert found["router.top_k"] == NumberRange(1, 9, False, 2)
    assert found[RATE] == NumberRange(1.0, 2.0) and isinstance(found[RATE].ends[0], float)
    assert "router.epsilon" not in found
    assert found["method.router_loss"] == Choices(("code", "paper"))
    assert found["method.blocks"] == Choices(([0, 1], [2, 3]))


def test_the_whole_space_at_once() -> None:
    assert list(space_of("tune.space={router.top_k: [1,2]}")) == ["router.top_k"]


@pytest.mark.parametrize(
    ("dimension", "inside", "outside"),
    [
        (NumberRange(1, 9, step=2), [1, 5, 9], [0, 2, 10, None, True, "5"]),
        (NumberRange(0.1, 0.4, step=0.1), [0.1, 0.3, 0.4], [0.25, 0.5]),
        (Choices(("code", [1, 2], None)), ["code", [1, 2], None], ["paper", [1], 1]),
    ],
)
def test_what_a_dimension_holds(
    dimension: NumberRange | Choices, inside: list[Any], outside: list[Any]
) -> None:
    assert all(map(dimension.holds, inside))
    assert not any(map(dimension.holds, outside))


def test_defaults_outside_the_space_are_no_trial() -> None:
    config = compose(read_overrides([]))
    assert own_values(config, {RATE: NumberRange(1e-2, 1e-1)}) is None
    assert own_values(config, {RATE: NumberRange(1e-3, 1e-1)}) == {RATE: 5e-3}


def test_a_method_without_steps() -> None:
    space: Space = {RATE: NumberRange(0.1, 0.2), "method.diagonal": NumberRange(0.1, 1.0)}
    assert list(without_steps(space, {}, "fecam")) == ["method.diagonal"]
    with pytest.raises(
        UserError, match=rf"tune\.space\.{RATE}: method fecam takes no training steps; leave it out"
    ):
        without_steps(space, {RATE: [1, 2]}, "fecam")
    with pytest.raises(
        UserError, match=r"method ncm takes no training steps and has no key in the space"
    ):
        without_steps({RATE: NumberRange(0.1, 0.2)}, {}, "ncm")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["tune.trails=3"], r"unknown key tune\.trails=3; did you mean tune\.trials\?"),
        (
            ["tune=defalt"],
            r"tune=defalt is no choice; choose one of default; did you mean tune=default\?",
        ),
        (
            ["tune.trials=0"],
            r"tune\.trials must be at least 1, got 0; write for example tune\.trials=20",
        ),
        (["tune.trials=many"], r"tune\.trials must be a whole number, got many"),
        (
            ["tune.first_tasks=9"],
            r"tune\.first_tasks=9: the stream has stream\.num_tasks=5; write tune\.first_tasks=4",
        ),
        (["tune.rank_on=tset"], r"tune\.rank_on must be one of validation, test, got tset"),
        (["tune.rank_on=test"], r"tune\.rank_on=test: values chosen on test images .* add --force"),
        (["tune.space=5"], r"tune\.space=5: must map keys to ranges or lists"),
        (
            ["tune.space.trainer.learning_rte=[1,2]"],
            r"no such key in this configuration; did you mean tune\.space\.tra",
        ),
        ([f"tune.space.{RATE}={{low: 2, high: 1}}"], r"low must be below high, got low=2 high=1"),
        (
            [f"tune.space.{RATE}={{low: 0, high: 1, log: true}}"],
            r"log: true needs low above 0 and no step",
        ),
        (
            [f"tune.space.{RATE}={{low: 0, high: 1, step: 0.3}}"],
            r"step must be above 0 and lead from low to high",
        ),
        (
            [f"tune.space.{RATE}={{low: 1, high: 2, logg: true}}"],
            r"unknown 'logg'; write a range as \{low: 1e-4",
        ),
        ([f"tune.space.{RATE}={{low: 1}}"], r"a range needs low and high"),
        (
            [f"tune.space.{RATE}={{low: -1, high: 1}}"],
            r"tune\.space\.trainer\.learning_rate: trainer\.learning_rate must",
        ),
        (
            [f"tune.space.{RATE}=0.1"],
            r"must be a range or a choice; .* for this value alone: trainer\.learning_rate=0\.1",
        ),
        (["tune.space.router.top_k={low: 0.5, high: 3}"], r"low must be a whole number, got 0\.5"),
        (
            ["tune.space.router.top_k={low: 1, high: 30}"],
            r"router\.top_k must be in 1\.\.method\.num_experts=25, got 30",
        ),
        (
            ["tune.space.method.router_loss=[code,papr]"],
            r"papr must be one of code, paper; correct the list",
        ),
        (
            ["tune.space.method.router_loss=[code,code]"],
            r"must be different values, got \[code,code\]",
        ),
        (
            ["tune.space.method.router_loss={low: 1, high: 2}"],
            r"one of code, paper, which has no range",
        ),
        (
            ["tune.space.method=[smope,coda]"],
            r"method is a group; a search is over keys of one choice",
        ),
        (["tune.space.seed=[0,1]"], r"seed does not change what a method learns"),
        (
            ["tune.space.trainer.device=[cpu,cuda]"],
            r"trainer\.device does not change what a method learns",
        ),
        (
            ["tune.space.stream.num_tasks=[2,5]"],
            r"scores could not be compared; of the stream only stream\.crop_scale",
        ),
        (
            ["method=coda", "tune.space.router.epsilon=[0.1,0.2]"],
            r"this method has no router, so it has no effect",
        ),
        (
            ["stream.validation_fraction=null"],
            r"stream\.validation_fraction must be above 0 for `smope tune`",
        ),
        (
            ["tune.rank_on=test", "stream.validation_fraction=0.1", "--force"],
            r"has no effect with tune\.rank_on=test",
        ),
        (
            ["run_dir=x"],
            r"run_dir belongs to `smope train`; .* say tune\.folder=\.\.\. for another",
        ),
        (["trainer.epoch=3"], r"unknown key trainer\.epoch=3; did you mean trainer\.epochs\?"),
        (["tune.trials=1,2"], r"tune\.trials=1,2: must be a single value"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    texts: list[str], message: str, mistake: Callable[..., str]
) -> None:
    line = mistake("tune", *texts)
    assert re.search(message, line), line


def test_a_choice_that_only_some_combinations_allow() -> None:
    """top_k=30 needs more experts than the configuration has; the search may choose them too."""
    texts = ["tune.space.router.top_k=[5,30]", "tune.space.method.num_experts=[25,50]"]
    assert {"router.top_k", "method.num_experts"} <= set(space_of(*texts))


def test_a_file_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tune").mkdir()
    (tmp_path / "tune/mine.yaml").write_text("first_tasks: 1\nspace:\n  router.top_k: [1, 2]\n")
    settings, space, _ = read_settings(["tune=mine", "tune.trials=3"], (conf_dir(), tmp_path))
    assert settings == TuneSettings(first_tasks=1, trials=3)
    assert space == {"router.top_k": [1, 2]}
    (tmp_path / "tune/mine.yaml").write_text("space: [")
    with pytest.raises(UserError, match=r"mine\.yaml: is not readable YAML"):
        read_settings(["tune=mine"], (conf_dir(), tmp_path))


def test_optuna_that_is_missing_is_told_with_its_extra_and_before_torch(tmp_path: Path) -> None:
    program = (
        "import importlib.util, sys\nfind = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'optuna' else find(name, "
        "*rest)\n"
        "from smope.cli.main import main\ncode = "
        "main(['tune'])\nprint(*sys.modules)\nsys.exit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(smope.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 2
    assert (
        done.stderr == "smope: error: smope tune needs Optuna, which is not installed; pip install "
        "'smope[tune]'\n"
    )
    assert not {"torch", "optuna", "numpy"} & set(done.stdout.split())
