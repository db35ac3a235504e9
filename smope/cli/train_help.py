"""The text of `smope train --help`: groups, choices, and keys with the comments of conf/."""

from __future__ import annotations

import argparse
import re
import textwrap
from pathlib import Path
from typing import Any

from smope.config.conf_files import ALL_GROUPS, choices, conf_dir, files_of_choice

INDENT: Any = {"initial_indent": "  ", "subsequent_indent": "      ", "break_on_hyphens": False}
EXAMPLES = """\
examples:
  smope train                                         SMoPE on handwritten digits, embedded backbone
  smope train experiment=smoke                        the same in seconds
  smope train router.top_k=3 trainer.epochs=10        change keys
  smope train benchmark=cifar100 method=coda stream.root=~/cifar100
                                                      published settings of a method
  smope train -m method=smope,ncm seed=0,1,2          six runs; repeat the command for missing ones
  smope train -m sweep=ablation_small hydra/launcher=joblib
                                                      a sweep of conf/sweep/, two runs at once
  smope train stream=folder stream.root=~/photos stream.num_tasks=5 backbone=vit_small
                                                      images in train/<class>/ and test/<class>/
  smope train resume=runs/digits/2026-01-31_12-00-00  continue from its last checkpoint
  smope train experiment=smoke --dry-run              look before training"""


def train_help(parser: argparse.ArgumentParser) -> str:
    folder = conf_dir()
    main = (folder / "train.yaml").read_text(encoding="utf-8")
    defaults = dict(re.findall(r"^\s+- (\w+): (\w+)", main, flags=re.MULTILINE))
    sections = [
        parser.format_help().rstrip(),
        "groups (group=choice) and, below the default choice, its keys (group.key=value):",
    ]
    sections += [_group(folder, group, defaults.get(group, "null")) for group in ALL_GROUPS]
    sections += ["keys of the run:\n" + _keys(main.partition("_self_")[2]), EXAMPLES]
    return "\n\n".join(sections)


def _group(folder: Path, group: str, default: str) -> str:
    names = choices(group, [folder])
    heading = textwrap.fill(f"{group}={default}   choices: {', '.join(names)}", 100, **INDENT)
    texts = [path.read_text(encoding="utf-8") for path in files_of_choice(group, default, [folder])]
    return "\n".join([heading, _keys("\n".join(texts))]).rstrip()


def _keys(text: str) -> str:
    """The lines `key: value  # comment` of YAML files, the first one of each key.

    Lines for Hydra itself and comment lines are left out. A choice's own file comes before the
    files that it includes, so that the first line holds the value of the choice.
    """
    lines: dict[str, str] = {}
    for line in text.splitlines():
        key = re.match(r"(?!_target_:|hydra:|defaults:)(\w+):", line)
        if key:
            lines.setdefault(key[1], f"    {line}")
    return "\n".join(lines.values())
