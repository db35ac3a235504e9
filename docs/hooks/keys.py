"""The reference of every key: groups and choices from conf/, types and ranges from signatures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from smope.config.conf_files import GROUPS, SETTINGS, choices, files_of_choice
from smope.config.schema import TARGET, TOP_LEVEL, group_keys
from smope.config.signatures import Key
from smope.config.value_types import describe

LINE = re.compile(r"^(?P<key>\w+):(?P<value> .*?)??(?:\s+#\s*(?P<comment>.*))?$")
MORE_COMMENT = re.compile(r"^\s{8,}#\s*(?P<comment>.*)$")
ABOUT = {
    "backbone": "The frozen vision transformer, its weights and its pixel statistics.",
    "stream": "The data set and how it is divided into tasks.",
    "method": "What learns: prompt experts, prompts, or a classifier on frozen features.",
    "router": "Which experts an image uses, for the methods `smope` and `smope_plus`.",
    "trainer": "Batches, epochs, rates, precision, checkpoints and what is recorded.",
    "tracker": "Where scores and losses are logged beside the run directory.",
    "benchmark": "Data, tasks, backbone and published settings of the paper's benchmarks.",
    "experiment": "Complete settings of one experiment.",
    "variant": "One step of an ablation or a sensitivity study.",
    "sweep": "Values for `smope train -m`.",
    "recipe": "Published settings of a method on each benchmark, chosen by `benchmark=`.",
    "tune": "The default search space and protocol of `smope tune`.",
}
SETTINGS_PAGE = """\
# Experiments, benchmarks, variants, sweeps

A file of these groups sets keys of several other groups. `smope train experiment=NAME` chooses one;
`key=value` on the command line comes after it. Each file is shown as it is.
"""


class Row(NamedTuple):
    """One key as its YAML file has it."""

    key: str
    value: str
    comment: str


def pages(conf: Path) -> dict[str, str]:
    """The Markdown of each page, by its path."""
    made = {"reference/keys/index.md": _index(conf)}
    for group in GROUPS:
        made[f"reference/keys/{group}.md"] = _group_page(conf, group)
    made["reference/keys/settings.md"] = _settings_page(conf)
    return made


def rows(text: str) -> list[Row]:
    """The lines `key: value  # comment` of a YAML file; a comment may go over several lines."""
    read: list[Row] = []
    for line in text.splitlines():
        match, more = LINE.match(line), MORE_COMMENT.match(line)
        if match and match["key"] not in ("defaults", "_target_", "hydra"):
            read.append(Row(match["key"], (match["value"] or "").strip(), match["comment"] or ""))
        elif more and read:
            read[-1] = read[-1]._replace(comment=f"{read[-1].comment} {more['comment']}")
    return read


def heading(text: str) -> str:
    """The comment at the top of a YAML file, as one paragraph."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.lstrip("# "))
    return " ".join(lines)


def _index(conf: Path) -> str:
    parts = [
        "# Keys\n",
        "`group=choice` chooses a file of `conf/`; `group.key=value` changes one key of it. "
        "A wrong key, type, range or combination is answered in one line before anything is "
        "loaded. `smope train --cfg job` prints the composed configuration.\n",
        "| group | what it decides | choices |\n|---|---|---|",
    ]
    for group in (*GROUPS, *SETTINGS, "recipe", "tune"):
        page = f"{group}.md" if group in GROUPS else f"settings.md#{group}"
        names = ", ".join(f"`{name}`" for name in choices(group, [conf]))
        parts.append(f"| [{group}]({page}) | {ABOUT[group]} | {names} |")
    text = (conf / "train.yaml").read_text(encoding="utf-8").partition("_self_")[2]
    own = [row for row in rows(text) if row.key in TOP_LEVEL]
    parts += ["\n## Keys of the run\n", _table("", own, TOP_LEVEL)]
    return "\n".join(parts)


def _group_page(conf: Path, group: str) -> str:
    parts = [f"# {group}\n", f"{ABOUT[group]} `smope train {group}=NAME` chooses one.\n"]
    parts += [_choice(conf, group, name) for name in choices(group, [conf])]
    return "\n".join(parts)


def _choice(conf: Path, group: str, name: str) -> str:
    texts = [path.read_text(encoding="utf-8") for path in files_of_choice(group, name, [conf])]
    merged: dict[str, Row] = {}
    for text in texts:
        for row in rows(text):
            merged.setdefault(row.key, row)
    target = next((match[1] for text in texts if (match := TARGET.search(text))), None)
    declared = group_keys(group, target) if target else {}
    title = f"## {group}={name}\n\n{_plain(heading(texts[0]))}\n"
    made_of = f"\nIt is `{target}`.\n" if target else ""
    return title + made_of + "\n" + _table(f"{group}.", list(merged.values()), declared)


def _table(prefix: str, read: list[Row], declared: dict[str, Key]) -> str:
    if not read:
        return "No keys.\n"
    lines = ["| key | default | takes | |", "|---|---|---|---|"]
    for key, value, comment in read:
        takes = _takes(declared[key]) if key in declared else ""
        cells = (f"`{prefix}{key}`", f"`{value}`" if value else "", takes, _plain(comment))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _takes(key: Key) -> str:
    rules = [rule.text for rule in key.constraints if rule.text and not rule.word]
    kind = re.sub(r"one of (\w+)$", r"\1", describe(key.kind))  # of a single word
    return _plain("; ".join([kind, *rules]))


def _plain(text: str) -> str:
    """Text for a cell of a table: no character has a meaning of its own."""
    return re.sub(r"([\\`*_{}\[\]<>|])", r"\\\1", text)


def _settings_page(conf: Path) -> str:
    parts = [SETTINGS_PAGE]
    for group in (*SETTINGS, "recipe", "tune"):
        parts.append(f"## {group}\n\n{ABOUT[group]}\n")
        for name in choices(group, [conf]):
            text = (conf / group / f"{name}.yaml").read_text(encoding="utf-8").rstrip()
            parts.append(f"### {group}={name}\n\n```yaml\n{text}\n```\n")
    return "\n".join(parts)
