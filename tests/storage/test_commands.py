"""Commands in messages can be copied: a shell and Hydra read the very path that was meant."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from smope.analysis.loading import read_finished
from smope.cli.main import main
from smope.config.overrides import read_overrides
from smope.errors import UserError
from smope.reproduction.run import read_finished_runs
from smope.run.artefact import read_model
from smope.run.plan import override_value
from smope.storage.commands import command, resume_command
from smope.storage.run_directory import RunDirectory
from tests.analysis.made_runs import write_run

NAMES = [
    "plain", "two words", "it's", "'quoted'", '"quoted"', "a=b, [c]", "{x:1}", "$HOME", "a;b|c&d",
    "null", "*", "é ü", "back\\slash", "'a'b'", "choice(a)", "#1",
]  # fmt: skip


def resumed(words: list[str]) -> str:
    """The run that `smope train WORDS` would continue."""
    assert words[:2] == ["smope", "train"]
    value = override_value(read_overrides(words[2:]), "resume")
    return str(getattr(value, "text", value))


@pytest.mark.parametrize("name", NAMES)
def test_a_shell_and_hydra_read_the_path(name: str) -> None:
    assert resumed(shlex.split(resume_command(Path(name)))) == name
    assert resumed(shlex.split(resume_command(Path("runs") / name))) == f"runs/{name}"
    assert shlex.split(command("report", Path(name))) == ["smope", "report", name]


def of_a_directory_in_use(path: Path) -> str:
    with pytest.raises(UserError) as error:
        RunDirectory.check_free(path)
    return str(error.value)


def of_a_damaged_record(path: Path) -> str:
    (path / "run.json").write_text("{")
    with pytest.raises(UserError) as error:
        RunDirectory(path).read_record()
    return str(error.value)


def of_an_unfinished_run(path: Path) -> str:
    (line,) = read_finished([path])[1]
    return line


def of_a_run_without_a_model(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_model(path)
    return str(error.value)


def of_a_run_to_reproduce(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_finished_runs([path])
    return str(error.value)


@pytest.mark.parametrize("name", ["two words", "it's [a], b"])
@pytest.mark.parametrize(
    "message",
    [
        of_a_directory_in_use,
        of_a_damaged_record,
        of_an_unfinished_run,
        of_a_run_without_a_model,
        of_a_run_to_reproduce,
    ],
)
def test_every_message_quotes_it(message: Callable[[Path], str], name: str, tmp_path: Path) -> None:
    path = write_run(tmp_path / name, status="interrupted")
    text = message(path)
    words = shlex.split(text[text.index("smope train") :])
    assert resumed(words) == str(path)


@pytest.mark.parametrize("words", [["eval"], ["audit"]])
def test_so_do_commands(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "it's [a], b"
    (run_dir / "checkpoints").mkdir(parents=True)
    config = tmp_path / "config.yaml"
    assert main(["train", "--cfg", "job", "--resolve"]) == 0
    config = capsys.readouterr().out
    (run_dir / "config.yaml").write_text(config)
    assert main([*words, str(run_dir)]) == 2
    text = capsys.readouterr().err
    found_words = shlex.split(re.search("smope train.*", text)[0])  # pyright: ignore
    assert resumed(found_words) == str(run_dir)


def test_what_was_typed_is_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["name=my run", "-m"]) == 2
    assert "overrides follow a command: `smope train 'name=my run' -m`" in capsys.readouterr().err


def test_the_source_prints_no_path_unquoted() -> None:
    """Every `smope ... resume={...}` of a message goes through `resume_command`."""
    root = Path(main.__code__.co_filename).parents[1]
    pattern = re.compile(r"(?:smope train\s*\"?\s*\n?\s*f?\"?resume=|smope \w+ )\{")
    sources = {path: path.read_text() for path in root.rglob("*.py")}
    unquoted = [str(path) for path, text in sources.items() if pattern.search(text)]
    assert not unquoted
