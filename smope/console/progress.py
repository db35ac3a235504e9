"""Lines and progress bars: bars only on a terminal, lines everywhere and in the run's log."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tqdm import tqdm

from smope.console.colour import has_colour
from smope.console.encoding import SHOW_ANY_NAME

BAR_DELAY_SECONDS = 1.0  # what takes less shows no bar of images


class Bar:
    """A progress bar, or nothing if the output is not a terminal."""

    def __init__(self, bar: tqdm | None) -> None:
        self._bar = bar

    def update(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def skip(self) -> None:
        """Count a step that was done before and takes no time now."""
        if self._bar is not None:
            self._bar.initial += 1
            self._bar.update()

    def note(self, text: str) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(text)


class Progress:
    """Prints lines, also to `log` if given, and bars on a terminal.

    `brief` prints no details, and `quiet` nothing.
    """

    def __init__(self, log: Path | None, *, quiet: bool = False, brief: bool = False) -> None:
        self._log = log
        self._quiet = quiet
        self._brief = brief or quiet
        self._bars = not quiet and sys.stdout.isatty()

    def line(self, text: str, coloured: str | None = None) -> None:
        """Print one or several lines; a terminal with colours shows `coloured`, if given."""
        if not self._quiet:
            tqdm.write(
                coloured if coloured is not None and has_colour(sys.stdout) else text,
                file=sys.stdout,
            )
            sys.stdout.flush()
        self._write(text)

    def detail(self, text: str) -> None:
        """Print one or several lines, unless it has to be brief; the log has them in any case."""
        if self._brief:
            self._write(text)
        else:
            self.line(text)

    def epoch(self, text: str) -> None:
        """Print a detail, unless a bar shows the same; the log has it in any case."""
        if self._bars:
            self._write(text)
        else:
            self.detail(text)

    def _write(self, text: str) -> None:
        if self._log is not None:
            with self._log.open("a", encoding="utf-8", errors=SHOW_ANY_NAME) as file:
                file.write(text + "\n")

    @contextmanager
    def bar(self, total: int, description: str, done: int = 0) -> Iterator[Bar]:
        """A bar that disappears when it ends.

        Args:
            total: Number of steps.
            description: The text in front of the bar.
            done: Steps that are done already.
        """
        if not self._bars:
            yield Bar(None)
            return
        with tqdm(
            total=total,
            initial=done,
            desc=description,
            leave=False,
            file=sys.stdout,
            dynamic_ncols=True,
        ) as bar:
            yield Bar(bar)


@contextmanager
def image_bar(total: int, description: str) -> Iterator[Bar]:
    """A bar with images a second, beside output: on standard error, if that is a terminal.

    It appears after a second and stays when it ends. Where standard output is piped into another
    program, which may use the terminal as well, there is none.

    Args:
        total: Number of images.
        description: The text in front of the bar.
    """
    if not sys.stderr.isatty() or _is_pipe(sys.stdout):
        yield Bar(None)
        return
    with tqdm(
        total=total,
        desc=description,
        unit=" images",
        delay=BAR_DELAY_SECONDS,
        file=sys.stderr,
        dynamic_ncols=True,
    ) as bar:
        yield Bar(bar)


def above_bars() -> AbstractContextManager[None]:
    """Within it, what is printed stands above the bars on the terminal."""
    return tqdm.external_write_mode(file=sys.stdout)


def _is_pipe(file: object) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(file.fileno()).st_mode)  # pyright: ignore[reportAttributeAccessIssue]
    except (AttributeError, OSError, ValueError):  # no file of the operating system's
        return False
