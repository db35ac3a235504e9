"""What users of Hydra expect of `smope train`: --cfg, --info, completion, keys for flags."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from smope.cli.main import COMMANDS, main
from smope.cli.shell_completion import next_words
from smope.config.config import validate

NO_OPTION = "is no option; keys are set without dashes: write"
Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--epochs=3"], f"--epochs=3 {NO_OPTION} trainer.epochs=3"),
        (["--epochs", "3"], f"--epochs {NO_OPTION} trainer.epochs=3"),
        (["--epochs"], "write trainer.epochs=VALUE"),
        (["-epochs=3"], "write trainer.epochs=3"),
        (["--stream.root", "photos"], "write stream.root=photos"),
        (["--trainer.epochs=3", "seed=1"], "write trainer.epochs=3"),
        (["--top-k=3"], "write router.top_k=3"),
        (["method=coda", "--pool-size", "3"], "write method.pool_size=3"),
        (["--method=coda"], "write method=coda"),
        (["--lr", "0.1"], "write trainer.learning_rate=0.1"),
        (["--seed", "4", "router.topk=1"], "write seed=4"),
        (["--dryrun"], "unrecognized arguments: --dryrun; did you mean --dry-run?"),
        (["--mutlirun"], "did you mean --multirun?"),
        (["--frobnicate=2"], "unrecognized arguments: --frobnicate=2; see `smope train --help`"),
    ],
)  # fmt: skip
def test_a_flag_that_is_a_key(words: list[str], answer: str, mistake: Any) -> None:
    assert mistake("train", *words).endswith(answer)


@pytest.mark.parametrize("command", ["plan", "tune"])
def test_so_do_the_other_commands_with_overrides(command: str, mistake: Any) -> None:
    assert mistake(command, "--epochs=3").startswith(
        f"smope: error: smope {command}: --epochs=3 is"
    )
    assert mistake(command, "--epochs=3").endswith("write trainer.epochs=3")


def test_an_option_of_another_command_is_no_key(mistake: Any) -> None:
    assert "did you mean --top?" in mistake("predict", "run", "image", "--tpo=3")
    assert "write" not in mistake("predict", "run", "image", "--epochs=3")


def test_cfg_prints_the_composed_configuration(capsys: Capture) -> None:
    words = ["method=ncm", "trainer.epochs=7", "name=my run"]
    assert main(["train", *words, "--cfg", "job", "--resolve"]) == 0
    data = yaml.safe_load(capsys.readouterr().out)
    assert (data["trainer"]["epochs"], data["name"]) == (7, "my run")
    assert validate(data).method["_target_"] == "smope.methods.ncm.NearestClassMean"
    assert main(["train", "-c", "job", "-p", "trainer", *words]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# @package trainer\n") and yaml.safe_load(text)["epochs"] == 7
    assert main(["train", "--cfg", "job"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["name"] == "${stream.name}"
    assert main(["train", "--cfg", "hydra"]) == 0
    assert list(yaml.safe_load(capsys.readouterr().out)) == ["hydra"]


def test_cfg_needs_no_data_and_knows_typing_errors(mistake: Any, capsys: Capture) -> None:
    assert main(["train", "--cfg", "job", "stream=folder", "--package", "stream"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["root"] == "???"
    assert mistake("train", "--cfg", "job", "router.topk=3").endswith("did you mean router.top_k?")
    assert "--package belongs to --cfg; add --cfg job" in mistake("train", "-p", "trainer")
    assert "--resolve belongs to --cfg; add --cfg job" in mistake("train", "--resolve")
    assert "--cfg shows the configuration of one new run" in mistake("train", "--cfg", "all", "-m")
    assert "--info shows the conf" in mistake("train", "resume=x", "--info", "defaults")
    assert "invalid choice: 'jobs'" in mistake("train", "--cfg", "jobs")
    assert main(["train", "--cfg", "job", "-p", "nowhere"]) == 1


def test_info_prints_how_it_is_composed(capsys: Capture) -> None:
    handlers = logging.getLogger().handlers[:]
    assert main(["train", "--info", "defaults", "method=coda"]) == 0
    text = capsys.readouterr().out
    assert "method/coda" in text and "stream/digits" in text
    assert main(["train", "--info", "searchpath"]) == 0
    assert "conf" in capsys.readouterr().out
    assert main(["train", "--info"]) == 0
    assert "Installed Hydra Plugins" in capsys.readouterr().out
    assert logging.getLogger().handlers == handlers


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("smope tr", ["train"]),
        ("smope ", [*COMMANDS, "--help", "--version"]),
        ("smope train method=sm", ["method=smope", "method=smope_plus"]),
        ("smope train trainer.ep", ["trainer.epochs="]),
        ("smope train method=coda method.pool", ["method.pool_size="]),
        ("smope train -m --dry-run seed=0,1 method=co", ["method=coda"]),
        ("smope plan method=coda method.pool", ["method.pool_size="]),
        ("smope train --dr", ["--dry-run"]),
        ("smope predict --c", ["--csv"]),
        ("smope predict la", ["latest"]),
        ("smope predict ", []),
        ("smope doctor x", []),
        ("smope train no=such=thing[ trainer.ep", []),
    ],
)
def test_what_can_come_next(line: str, expected: list[str]) -> None:
    assert next_words(line, list(COMMANDS)) == expected


def test_private_files_are_no_choices_and_files_are(tmp_path: Path) -> None:
    assert all("_shared" not in word for word in next_words("smope train stream=", [*COMMANDS]))
    (tmp_path / "photos").mkdir()
    line = f"smope train stream=folder stream.root={tmp_path}/ph"
    assert next_words(line, list(COMMANDS)) == [f"stream.root={tmp_path}/photos"]


def test_the_user_s_own_choices_are_completed(tmp_path: Path) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "own.yaml").write_text("_target_: smope.methods.ncm.NCM\n")
    line = f"smope train --config-dir {tmp_path} method=ow"
    assert next_words(line, list(COMMANDS)) == ["method=own"]


@pytest.mark.parametrize(
    ("shell", "program"),
    [
        (
            "bash",
            'eval "$(smope train -sc install=bash)"; COMP_LINE="smope train method=sm"; '
            'COMP_CWORD=2; COMP_POINT=20; hydra_bash_completion; printf "%s\\n" "${COMPREPLY[@]}"',
        ),
        (
            "fish",
            "smope train --shell-completion install=fish | source; "
            'complete -C "smope train method=sm"',
        ),
        (
            "zsh",
            'eval "$(smope train -sc install=zsh)"; '
            'emulate ksh -c \'COMP_LINE="smope train method=sm";'
            ' COMP_CWORD=2; compgen -F hydra_bash_completion -- "method=sm"\'',
        ),
    ],
)
def test_a_shell_completes(shell: str, program: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    folder = Path(sys.executable).parent
    if not (folder / "smope").exists():
        pytest.skip("the command smope is not installed beside python")
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    words = [shell, *(["-f"] if shell == "zsh" else []), "-c", program]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.split() == ["method=smope", "method=smope_plus"], done.stderr


def test_other_shells_are_named(mistake: Any) -> None:
    for words in (["install=tcsh"], [], ["install"], ["install=bash", "seed=1"]):
        assert "write install=SHELL, with one of bash, zsh, fish" in mistake("train", "-sc", *words)


def test_completion_is_taken_back(capsys: Capture) -> None:
    assert main(["--shell-completion", "uninstall=bash"]) == 0
    assert "unset hydra_bash_completion" in capsys.readouterr().out
