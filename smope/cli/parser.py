"""The argument parser that all subcommands share."""

from __future__ import annotations

import argparse
import difflib
import re
from typing import NoReturn

from smope.errors import UserError


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

    def add_config_dir(self) -> None:
        """The option --config-dir of every command that composes a configuration."""
        self.add_argument(
            "--config-dir",
            metavar="DIR",
            help="a folder of your own laid out like conf/, searched as well",
        )

    def error(self, message: str) -> NoReturn:
        options = [option for action in self._actions for option in action.option_strings]
        hints = []
        for word in (
            re.findall(r"--?\w[\w-]*", message) if message.startswith("unrecognized") else []
        ):
            hints += difflib.get_close_matches(word, options, n=1)
        hint = f"did you mean {hints[0]}?" if hints else f"see `{self.prog} --help`"
        raise UserError(f"{self.prog}: {message}; {hint}")
