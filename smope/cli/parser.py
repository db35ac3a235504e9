"""The argument parser that all subcommands share."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from smope.errors import UserError

# What programs call some options that are keys here.
OTHER_NAMES = {
    "lr": "trainer.learning_rate",
    "bs": "trainer.batch_size",
    "data": "stream",
    "dataset": "stream",
    "model": "backbone",
    "output_dir": "run_dir",
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are UserErrors of one line, with the nearest option."""

    def __init__(self, prog: str, description: str, epilog: str = "") -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._takes_overrides = False
        self._words: Sequence[str] = ()

    def parse_intermixed_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Any = None, namespace: Any = None
    ) -> Any:
        """As argparse does it; errors know the words."""
        self._words = list(args or ())
        return super().parse_intermixed_args(args, namespace)

    def add_config_dir(self) -> None:
        """The option --config-dir of every command that composes a configuration."""
        self._takes_overrides = True
        self.add_argument(
            "--config-dir",
            metavar="DIR",
            help="a folder of your own laid out like conf/, searched as well",
        )

    def add_device(self) -> None:
        """The option --device of commands that compute with a trained model."""
        self.add_argument(
            "--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: auto)"
        )

    def add_weights(self) -> None:
        """The option --weights of commands that read a trained model."""
        self.add_argument(
            "--weights",
            metavar="FILE",
            help="where the backbone's weights are now (default: where the run found them)",
        )

    def add_min_probability(self) -> None:
        """The option --min-probability of commands that classify; check_min_probability() checks
        its value.
        """
        self.add_argument(
            "--min-probability",
            metavar="P",
            type=float,
            help="an image whose best class is less probable is unknown (0 to 1; default: none is)",
        )

    def error(self, message: str) -> NoReturn:
        unknown = message.startswith("unrecognized")
        for word in re.findall(r"--?\w[\w.-]*", message) if unknown else []:
            key = _key_of(word, self._words) if self._takes_overrides else None
            if key is not None:
                raise UserError(
                    f"{self.prog}: {_as_given(word, self._words)} is no option; keys are set "
                    f"without dashes: write {key}={_value(word, self._words)}"
                )
        options = [option for action in self._actions for option in action.option_strings]
        hints = []
        for word in re.findall(r"--?\w[\w-]*", message) if unknown else []:
            hints += difflib.get_close_matches(word, options, n=1, cutoff=0.7)
        hint = f"did you mean {hints[0]}?" if hints else f"see `{self.prog} --help`"
        raise UserError(f"{self.prog}: {message}; {hint}")


def check_min_probability(lowest: float | None) -> None:
    """UserError for a value of --min-probability that is no probability."""
    if lowest is not None and not 0 <= lowest <= 1:
        raise UserError(
            f"--min-probability={lowest:g}: must be in 0..1; write for example "
            "--min-probability 0.8 for 80 %"
        )


def _key_of(option: str, words: Sequence[str]) -> str | None:
    """The key that an option of another program stands for: --epochs is trainer.epochs.

    Args:
        option: The option, without a value.
        words: The command line; its overrides decide which keys there are.
    """
    from smope.config.conf_files import ALL_GROUPS
    from smope.config.config import known_keys
    from smope.config.hydra import compose_values
    from smope.config.overrides import read_overrides

    name = option.lstrip("-").replace("-", "_")
    if name in OTHER_NAMES or name.partition(".")[0] in ALL_GROUPS:
        return OTHER_NAMES.get(name, name)
    given = [word for word in words if "=" in word and not word.startswith("-")]
    try:
        data = compose_values(read_overrides(given, multirun=True), multirun=True)
    except UserError:  # another mistake, which is named once this one is put right
        data = compose_values(read_overrides([]))
    keys = known_keys(data)
    return next((key for key in keys if name in (key, key.rpartition(".")[2])), None)


def _as_given(option: str, words: Sequence[str]) -> str:
    return next((word for word in words if word.partition("=")[0] == option), option)


def _value(option: str, words: Sequence[str]) -> str:
    """The value that was given with an option, after = or as the next word."""
    word = _as_given(option, words)
    if "=" in word:
        return word.partition("=")[2]
    following = list(words[words.index(word) + 1 :][:1]) if word in words else []
    return following[0] if following and "=" not in following[0] else "VALUE"
