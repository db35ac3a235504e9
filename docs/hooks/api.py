"""Pages of the API whose classes are listed by conf/: a new method or router comes by itself."""

from __future__ import annotations

from pathlib import Path

from smope.config.conf_files import choices
from smope.config.schema import TARGET

CONTRACTS = {
    "method": [
        "smope.methods.base.Method",
        "smope.methods.base.TaskSpan",
        "smope.methods.base.Phase",
    ],
    "router": [
        "smope.routers.base.Router",
        "smope.routers.base.Routing",
        "smope.routers.base.ExpertState",
        "smope.routers.base.choose",
        "smope.routers.base.proxy_scores",
    ],
}
FIRST = {"method": ("smope", "smope_plus"), "router": ("adaptive_noise",)}
INTRODUCTION = """\
# {title}

Chosen by `{group}=NAME`; the arguments of the class are the keys of that group. First come the
classes, then the contract that all of them keep.
"""


def pages(conf: Path) -> dict[str, str]:
    """The Markdown of both pages, by path."""
    return {f"reference/api/{group}s.md": _page(conf, group) for group in CONTRACTS}


def _page(conf: Path, group: str) -> str:
    names = choices(group, [conf])
    ordered = [*FIRST[group], *(name for name in names if name not in FIRST[group])]
    targets = {name: _target(conf / group / f"{name}.yaml") for name in ordered}
    shown = dict.fromkeys([*targets.values(), *CONTRACTS[group]])
    # the hooks of the contract are described once, with the contract
    no_members = "\n    options:\n      members: false"
    blocks = [
        f"::: {target}{'' if target in CONTRACTS[group] else no_members}\n" for target in shown
    ]
    title = f"{group.title()}s"
    return "\n".join([INTRODUCTION.format(title=title, group=group), *blocks])


def _target(path: Path) -> str:
    match = TARGET.search(path.read_text(encoding="utf-8"))
    assert match, f"{path} has no _target_"
    return match[1]
