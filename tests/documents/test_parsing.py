"""Every block of a document is understood: commands parse, overrides compose, Python compiles."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from smope.cli import main
from smope.cli.parser import Parser
from smope.config.hydra import compose
from smope.config.overrides import combinations, read_overrides
from tests.documents.fences import (
    COMMANDS,
    LANGUAGES,
    REASON,
    ROOT,
    Fence,
    compare,
    documents,
    fences,
    smope_calls,
)

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TARGETS = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
ALL = [fence for document in documents() for fence in fences(document)]
# What a document may call beside smope, and how much of it is checked here
OTHER_PROGRAMS = {
    "python", "source", "find", "torchrun", "wandb", "eval", "command", "echo", "curl", "uv",
}  # fmt: skip


class Parsed(Exception):
    """A command was parsed; its options are the argument."""


@pytest.mark.parametrize("fence", ALL, ids=lambda fence: fence.where)
def test_a_block_has_a_known_language_and_a_reason_where_it_does_not_run(fence: Fence) -> None:
    assert fence.language in LANGUAGES, f"{fence.where}: say bash, python, yaml or text"
    if not fence.runs:
        assert fence.title.startswith(REASON), f"{fence.where}: title={REASON!r}..."


@pytest.mark.parametrize(
    "fence", [fence for fence in ALL if fence.language == "python"], ids=lambda fence: fence.where
)
def test_python_compiles(fence: Fence) -> None:
    compile(fence.text, fence.where, "exec")


@pytest.mark.parametrize(
    "fence", [fence for fence in ALL if fence.language == "yaml"], ids=lambda fence: fence.where
)
def test_yaml_is_a_mapping(fence: Fence) -> None:
    assert isinstance(yaml.safe_load(fence.text), dict)


@pytest.mark.parametrize(
    "fence", [fence for fence in ALL if fence.language in COMMANDS], ids=lambda fence: fence.where
)
def test_commands_parse(fence: Fence, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("parse_args", "parse_intermixed_args"):
        monkeypatch.setattr(Parser, name, _stopping(getattr(Parser, name)))
    for command in fence.commands():
        calls = smope_calls(command)
        for words in calls:
            _check_call(words, tmp_path)
        if not calls:
            _check_other(command)


@pytest.mark.parametrize(
    "fence", [fence for fence in ALL if fence.language in COMMANDS], ids=lambda fence: fence.where
)
def test_what_a_shell_expands_is_quoted(fence: Fence) -> None:
    """zsh refuses a bare word with ?, * or [ that fits no file."""
    for command in fence.commands():
        bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", command)
        assert not re.search(r"[?*\[]", bare.partition(" #")[0]), command


def _stopping(parse: Any) -> Any:
    def parse_and_stop(self: Parser, args: Any = None, namespace: Any = None) -> Any:
        raise Parsed(parse(self, args, namespace))

    return parse_and_stop


def _check_call(words: list[str], images: Path) -> None:
    """The command is known, its options parse, and the overrides of a run compose."""
    _, name, *rest = words
    if name.startswith("-") or {"-h", "--help", "-sc"} & set(rest):
        return
    assert name in main.COMMANDS, f"smope {name} is no command"
    with pytest.raises(Parsed) as parsed:
        importlib.import_module(f"smope.cli.{name}").run(rest)
    options = parsed.value.args[0]
    own_files = getattr(options, "config_dir", None)  # written by another block of the page
    if name in ("train", "plan") and not own_files:
        _compose(options.overrides, images, multirun=name == "plan" or options.multirun)


def _compose(texts: list[str], images: Path, *, multirun: bool) -> None:
    """The first run of the overrides, where a data set's folder is one that exists."""
    texts = [f"stream.root={images}" if "stream.root=" in text else text for text in texts]
    left_out = ("resume=", "hydra/launcher=ray", "hydra.launcher.ray.")  # Ray is not installed
    overrides = read_overrides(
        [text for text in texts if not text.startswith(left_out)], multirun=multirun
    )
    if "sweep" not in overrides.given:  # what a sweep runs is in its file
        compose(next(combinations(overrides)))


def _check_other(command: str) -> None:
    """pip installs extras that exist, make makes targets that exist."""
    program, _, rest = command.partition(" ")
    if "pip install" in command:
        named = [
            extra for group in re.findall(r"\[(\w[\w,]*)\]", command) for extra in group.split(",")
        ]
        assert set(named) <= EXTRAS.keys(), command
    elif program == "make":
        assert rest.split()[0] in TARGETS, command
    elif "/" in program:
        assert program.startswith(".venv/") or (ROOT / program).is_file(), command
    else:
        assert program in OTHER_PROGRAMS, f"{command}: a program that these tests do not know"


@pytest.mark.parametrize(
    ("options", "printed", "equal"),
    [
        ("", "loss 0.5\nafter 2 minutes: 94.7 %\n", True),
        ("", "loss 0.5\nafter 2 minutes: 94.6 %\n", False),
        ("{.numbers-vary}", "loss 0.5\nafter 40\nseconds: 100 %\n", True),
        ("{.numbers-vary}", "loss 0.5\nafter 40 seconds: all\n", False),
        ("{.numbers-vary}", "after 2 minutes: 94.7 %\n", False),
    ],
)
def test_what_a_document_shows_was_printed(options: str, printed: str, equal: bool) -> None:
    text = "...0.5\nafter 2 minutes: 94.7 %\n"
    fence = Fence("made.md", 1, "text", options, text, follows_commands=True)
    if equal:
        compare(fence, printed)
    else:
        with pytest.raises(AssertionError, match=r"made\.md:1 shows"):
            compare(fence, printed)
