"""The fenced blocks of the README, CONTRIBUTING and docs/, and the commands in them.

One rule for all documents:

- ```bash, ```console or a block without a language holds commands; ```text right after it is what
  they print, where ... stands for anything. With {.numbers-vary} after the language, numbers and
  units of time may be others: those of the machine, or of the smaller images of the tests.
- ```python is run, ```yaml is read; with a title that is a file name they are written to that file.
- `{.not-run title="Not run by the tests: REASON"}` after the language: the block is only parsed.
"""

from __future__ import annotations

import doctest
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[ ]?(?P<options>\{[^}\n]*\})?\n"
    r"(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
TITLE = re.compile(r'title="([^"]*)"')
REASON = "Not run by the tests: "
COMMANDS = ("bash", "console", "")
COMPARED = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
LANGUAGES = (*COMMANDS, "python", "yaml", "text", "toml", "json")


@dataclass(frozen=True)
class Fence:
    """One fenced block.

    Attributes:
        document: The file, relative to the repository.
        line: The line of its first fence, from 1.
        language: What follows the fence; "" where nothing does.
        options: What stands in braces after the language.
        text: The lines between the fences, without the indent of the fence.
        follows_commands: Whether nothing but blank lines stands between it and a block of commands.
    """

    document: str
    line: int
    language: str
    options: str
    text: str
    follows_commands: bool

    @property
    def title(self) -> str:
        """The title that the page shows above the block."""
        match = TITLE.search(self.options)
        return match[1] if match else ""

    @property
    def runs(self) -> bool:
        """Whether the block is more than parsed."""
        return ".not-run" not in self.options

    @property
    def numbers_vary(self) -> bool:
        """Whether the numbers that are printed may differ from those that are shown."""
        return ".numbers-vary" in self.options

    @property
    def where(self) -> str:
        """For messages: the file and the line."""
        return f"{self.document}:{self.line}"

    def commands(self) -> list[str]:
        """One command for each line, continued lines joined, comments left out."""
        joined = self.text.replace("\\\n", " ")
        lines = (line.strip().removeprefix("$ ") for line in joined.splitlines())
        return [line for line in lines if line and not line.startswith("#")]


def documents() -> list[str]:
    """The files whose blocks are checked."""
    pages = sorted((ROOT / "docs").rglob("*.md"))
    return ["README.md", "CONTRIBUTING.md", *(str(page.relative_to(ROOT)) for page in pages)]


def fences(document: str) -> Iterator[Fence]:
    """The fenced blocks of a document, in their order."""
    text = (ROOT / document).read_text(encoding="utf-8")
    end, language = 0, "none"
    for match in FENCE.finditer(text):
        between = text[end : match.start()]
        indent = len(match["indent"])
        lines = [line[indent:] for line in match["text"].splitlines()]
        yield Fence(
            document=document,
            line=text.count("\n", 0, match.start()) + 1,
            language=match["language"],
            options=match["options"] or "",
            text="\n".join(lines) + "\n",
            follows_commands=language in COMMANDS and not between.strip(),
        )
        end, language = match.end(), match["language"]


def smope_calls(command: str) -> list[list[str]]:
    """The words of each call of smope in a command line: variables, pipes and other programs are
    left out, and so are placeholders such as `...`.
    """
    calls = []
    for part in re.split(r"\s(?:\||\|\||&&?)\s", command):
        words = shlex.split(part, comments=True)
        start = next((i for i, word in enumerate(words) if "=" not in word), len(words))
        words = [word for word in words[start:] if word != "..."]
        if words[:1] == ["torchrun"] and "-m" in words:
            words = words[words.index("-m") + 1 :]
        if words[:1] == ["smope"]:
            calls.append([word for word in words if word not in ("&", ">")])
    return calls


def without_numbers(text: str) -> str:
    """A text in which all numbers are the same, and all units of time."""
    text = re.sub(r"(second|minute|hour)s?\b", "minutes", text)
    return re.sub(r"\d+(?:[.,]\d+)*", "0", text)


def compare(fence: Fence, printed: str) -> None:
    """The lines that a document shows are those that were printed; ... stands for anything.

    Args:
        fence: A block of what commands print.
        printed: What they printed.

    Raises:
        AssertionError: They differ.
    """
    shown, compared = fence.text, printed
    if fence.numbers_vary:
        shown, compared = without_numbers(shown), without_numbers(compared)
    matches = doctest.OutputChecker().check_output(shown, compared, COMPARED)
    assert matches, f"{fence.where} shows\n{fence.text}\nand this was printed:\n{printed}"
