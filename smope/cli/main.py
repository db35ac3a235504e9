"""The `smope` command: import the subcommand alone, and turn errors into one line and an exit code.

Exit codes: 0 done; 1 failed, such as a job of a multirun or a file that cannot be written; 2 a
mistake of the user; 130 interrupted; 143 terminated. SMOPE_FULL_ERROR=1 shows the traceback.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from smope.console.encoding import print_any_name
from smope.distributed import torchrun
from smope.errors import UserError, one_line
from smope.storage.commands import command
from smope.storage.launch import launched_by
from smope.version import __version__

COMMANDS = {
    "train": "train a method on a stream of tasks and evaluate it after each",
    "eval": "evaluate a finished run again from its run directory",
    "predict": "classify images with what a run has learned",
    "learn": "teach a trained model more classes, without the images of before",
    "forget": "withdraw classes from a trained model, or undo its last lesson",
    "pack": "write the model of a run to a file, for classifying or for learning more classes",
    "serve": "serve a trained model as a web page and as JSON, and teach it there",
    "export": "write a trained model as a graph for other programs: ONNX, torch.export",
    "import": "make a model of a class.pth that the authors' code wrote",
    "push": "put a trained model with its model card on the Hugging Face Hub",
    "audit": "check whether the numbers of a run can be trusted",
    "report": "write a page about one run, or a comparison of many",
    "reproduce": "run a row of the paper for several seeds and compare it with the published "
    "numbers",
    "collect": "put finished runs into one table: methods by scores, mean and spread over seeds",
    "methods": "list the methods: where they are from, what they train, what an image costs",
    "tune": "search hyper-parameters on validation images of the first tasks",
    "plan": "estimate time, memory and cost of a run or a sweep before it is started",
    "verify": "recompute a file of reference numbers with this installation",
    "data": "look through a data set before training: what is in it, what of it is wrong",
    "doctor": "show versions and devices, and what is missing",
}
SHELL_COMPLETION = {"-sc", "--shell-completion"}
EXAMPLES = """\
examples:
  smope train                                      the embedded demo: SMoPE on handwritten digits
  smope train method=ncm seed=1                    another method, another seed
  smope train stream=folder stream.root=~/photos stream.num_tasks=5 backbone=vit_small
                                                   your own images in class folders
  smope data check ~/photos                        what is wrong with them, before training
  smope train --help                               every group, choice and key"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Only bugs leave it as exceptions."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    print_any_name()
    try:
        with launched_by(command(*arguments)):
            code = _dispatch(arguments)
        sys.stdout.flush()
        return code
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except BrokenPipeError:
        # The reader, such as head, has ended: the buffered rest must not fail when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt as stop:
        if torchrun.first_to_fail():
            print("smope: interrupted", file=sys.stderr)
        return getattr(stop, "exit_code", 130)
    except (UserError, OSError, MemoryError, ModuleNotFoundError) as error:
        code = 2 if isinstance(error, UserError) else 1
        if not torchrun.first_to_fail():
            return code
        if os.environ.get("SMOPE_FULL_ERROR") or _is_ours(error):
            raise
        hint = (
            "; `smope doctor` shows what is missing"
            if isinstance(error, ModuleNotFoundError)
            else ""
        )
        print(f"smope: error: {one_line(error)}{hint}", file=sys.stderr)
        return code
    except Exception:
        if torchrun.first_to_fail():
            raise
        return 1  # another process of torchrun has printed the error


def _is_ours(error: Exception) -> bool:
    """Whether a module of this package is missing, which is a bug, and not a dependency."""
    return (
        isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == "smope"
    )


def _dispatch(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name in ("-V", "--version"):
        print(f"smope {__version__}")
        return 0
    if not SHELL_COMPLETION.isdisjoint(arguments):
        from smope.cli import shell_completion

        words = [word for word in arguments if word not in (*SHELL_COMPLETION, *COMMANDS)]
        return shell_completion.run(words, list(COMMANDS))
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, [*COMMANDS, "--help", "--version"], n=1)
        hint = (
            f"did you mean `smope {near[0]}`?" if near else f"choose one of {', '.join(COMMANDS)}"
        )
        if "=" in name:
            hint = f"overrides follow a command: `{command('train', *arguments)}`"
        raise UserError(f"unknown command {name!r}; {hint}")
    if torchrun.world_size() > 1 and name != "train":
        raise UserError(f"`smope {name}` works in one process; start it without torchrun")
    return importlib.import_module(f"smope.cli.{name}").run(arguments[1:])


def _help() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        "usage: smope COMMAND [...]\n\n"
        "SMoPE: sparse mixture of prompt experts for continual learning with frozen vision "
        "transformers.\n\n"
        f"commands (each with its own --help):\n{rows}\n\n"
        "options:\n  -h, --help     this help\n  -V, --version  the version\n"
        "  -sc, --shell-completion install=SHELL  print the completion script of bash, zsh or "
        "fish\n\n"
        f"{EXAMPLES}"
    )
