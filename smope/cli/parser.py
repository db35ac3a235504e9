"""One subcommand a file, each with `run(argv) -> int`; and the argument parser that they share."""

from __future__ import annotations

import argparse
import difflib
import re
from typing import NoReturn

from smope.errors import UserError


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are UserErrors: one line, with the nearest option if there
    is one.
    """

    def __init__(self, prog: str, description: str, epilog: str = "") -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
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
