"""`smope tune`: check the settings and the search space, and start the search."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smope.cli.parser import Parser
from smope.config.config import Config, replaced
from smope.config.hydra import compose, compose_values
from smope.config.overrides import Overrides, read_overrides
from smope.errors import UserError
from smope.tuning.settings import TuneSettings, read_settings, separate
from smope.tuning.space import Space, make_space

FRACTION = "stream.validation_fraction"
REFUSED_KEYS = {
    "run_dir": "trials are kept in the study's folder: say tune.folder=... for another",
    "resume": "a search that was stopped continues by the same command",
}
EPILOG = """\
Trains on the first tasks of the stream (tune.first_tasks), on a part of their training images, and
ranks by the held-out rest (stream.validation_fraction, or else tune.validation_fraction). The keys
of tune.* and the default space are in conf/tune/default.yaml; tune=NAME chooses another file there.

the space (tune.space.KEY=...), where KEY is any key of the method, router, trainer or backbone:
  {low: 1e-4, high: 1e-2, log: true}    a range, whole numbers if the key is one; or step
  [code,paper]                          a choice
  null                                  not searched

examples:
  smope tune tune.trials=20
  smope tune tune.first_tasks=1 'tune.space.trainer.weight_decay={low: 1e-4, high: 1e-2, log: true}'
  smope tune method=coda "tune.space.method.pool_size=[50,100]"

The study (SQLite) is in studies/<name>/<method>-<hash>. The same command continues a search that
was stopped or killed. Started several times at once on one machine, it shares the trials among its
processes. A larger tune.trials adds trials. Needs Optuna: pip install 'smope[tune]'"""


def run(argv: Sequence[str]) -> int:
    """Entry point of the command; returns the exit code."""
    options = _parser().parse_intermixed_args(argv)
    tune_texts, others = separate(options.overrides)
    overrides = read_overrides(others, options.config_dir)
    for key, reason in REFUSED_KEYS.items():
        if key in overrides.given:
            raise UserError(f"{key} belongs to `smope train`; {reason}")
    settings, file, changes = read_settings(tune_texts, overrides.config_dirs)
    if settings.rank_on == "test" and not options.force:
        raise UserError(
            "tune.rank_on=test: values chosen on test images make their own test scores too good "
            "to report; leave it "
            "out to rank on validation images, or add --force, and every output will be marked"
        )
    config = _config(overrides, settings)
    space = make_space(config, file, changes, overrides.given)
    if importlib.util.find_spec("optuna") is None:
        raise UserError(
            "smope tune needs Optuna, which is not installed; pip install 'smope[tune]'"
        )
    _search(
        config,
        settings,
        space,
        changes,
        argv,
        _train_arguments(overrides, others, settings, space, options),
    )
    return 0


def _parser() -> Parser:
    parser = Parser(
        "smope tune",
        "Search hyper-parameters on validation images of the first tasks, with Optuna.",
        EPILOG,
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="as for `smope train`, and tune.key=value"
    )
    parser.add_argument(
        "--force", action="store_true", help="allow tune.rank_on=test; everything written is marked"
    )
    parser.add_config_dir()
    return parser


def _config(overrides: Overrides, settings: TuneSettings) -> Config:
    """The configuration of the trials: with held-out images, and no record for the analysis."""
    config = compose(overrides)
    fraction = config.stream["validation_fraction"]
    if settings.rank_on == "test" and fraction is not None:
        raise UserError(
            f"{FRACTION}={fraction} has no effect with tune.rank_on=test; leave one of them out"
        )
    if settings.rank_on == "validation" and fraction is None and FRACTION in overrides.given:
        raise UserError(
            f"{FRACTION} must be above 0 for `smope tune`, got null; write {FRACTION}=0.2 or "
            f"leave it out"
        )
    tasks = config.stream["num_tasks"]
    if tasks is not None and settings.first_tasks > tasks:
        raise UserError(
            f"tune.first_tasks={settings.first_tasks}: the stream has stream.num_tasks={tasks}; "
            f"write "
            f"tune.first_tasks={max(1, tasks - 1)}"
        )
    changes: dict[str, Any] = {}
    if settings.rank_on == "validation" and fraction is None:
        changes[FRACTION] = settings.validation_fraction
    if "trainer.record" not in overrides.given:
        changes["trainer.record"] = "nothing"
    return replaced(config, changes)


def _train_arguments(
    overrides: Overrides, others: Sequence[str], settings: TuneSettings, space: Space, options: Any
) -> list[str]:
    """The arguments of `smope train` for the same configuration, without the searched keys."""
    remaining = [
        text for text in others if text.lstrip("+").partition("=")[0] not in {FRACTION, *space}
    ]
    composed = compose_values(read_overrides(remaining, options.config_dir))
    if composed["stream"].get("validation_fraction") is not None:
        remaining.append(f"{FRACTION}=null")
    if settings.rank_on == "test":
        remaining = [text for text in remaining if not text.startswith("name=")] + [
            f"name={composed['name']}_tuned_on_test"
        ]
    return [*remaining, *(["--config-dir", options.config_dir] if options.config_dir else [])]


def _search(
    config: Config,
    settings: TuneSettings,
    space: Space,
    changes: dict[str, Any],
    argv: Sequence[str],
    train: Sequence[str],
) -> None:
    """Start the search. torch and Optuna are imported here, after every check without them."""
    from smope.tuning.search import Search, search

    folder = Path(settings.folder).expanduser() if settings.folder else None
    search(
        Search(
            config, settings, space, changes, folder, shlex.join(["smope", "tune", *argv]), train
        )
    )
