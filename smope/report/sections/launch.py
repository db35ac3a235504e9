"""The section on how runs were made: command, commit, environment, and the whole configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from smope.analysis.run import Run
from smope.console.markup import Grid
from smope.report.sections.base import Folded, Section, Table, plural
from smope.storage.run_directory import RunDirectory

MAX_RUNS = 12  # that are described, so that the page stays small
MAX_CONFIGURATION_BYTES = 40_000
UNKNOWN = "not recorded"


def launch(runs: Sequence[Run]) -> Section:
    """For each run the command, the commit, the machine and the versions; config.yaml, folded."""
    shown = runs[:MAX_RUNS]
    folded = []
    for run in shown:
        title = "config.yaml" if len(runs) == 1 else run.name
        tables = [] if len(runs) == 1 else [Table(run.name, _grid(run), words=True)]
        folded.append(Folded(title, tables, _configuration(run)))
    tables = [Table("Run", _grid(runs[0]), words=True)] if len(runs) == 1 else []
    note = ""
    if len(runs) > len(shown):
        note = f"Without {plural(len(runs) - len(shown), 'more run')}, to keep the page small."
    lead = "What repeats a run: its command, code and environment, and all of its configuration."
    return Section("launch", "How it was run", lead, tables, folded=folded, note=note)


def _grid(run: Run) -> Grid:
    record = run.record
    launches = record.get("launches") or []
    first: Mapping[str, Any] = launches[0] if launches else {}
    versions: Mapping[str, str] = record.get("versions") or {}
    rows = [
        ["command", first.get("command") or UNKNOWN],
        *(["resumed by", str(later.get("command") or UNKNOWN)] for later in launches[1:]),
        ["started in", first.get("directory") or UNKNOWN],
        ["started at", _time(first)],
        ["git commit", _commit(first, bool(launches))],
        ["seed", str(run.seed)],
        ["device", _device(record, first)],
        ["host", first.get("host") or UNKNOWN],
        ["platform", versions.get("platform") or UNKNOWN],
        ["versions", _versions(versions)],
        ["configuration hash", str(record.get("config_hash", UNKNOWN))],
        ["images, sha256", str(record["stream"].get("content_hash", UNKNOWN))],
        ["backbone", _backbone(record)],
        ["run directory", str(run.path)],
    ]
    return [["item", "value"], *rows]


def _time(first: Mapping[str, Any]) -> str:
    time = first.get("time")
    return time.replace("T", " ").replace("+00:00", " UTC") if time else UNKNOWN


def _commit(first: Mapping[str, Any], recorded: bool) -> str:
    git = first.get("git")
    if git is None:
        return "none: not started in a git repository" if recorded else UNKNOWN
    branch = f" on {git['branch']}" if git.get("branch") not in (None, "HEAD") else ""
    changed = {True: ", with changes that are not committed", None: ", changes unknown"}
    return f"{git['commit']}{branch}{changed.get(git.get('changed'), '')}"


def _device(record: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    device, name = str(record.get("device", UNKNOWN)), record.get("device_name")
    if device == "cpu":
        name = first.get("processor")
    text = f"{device} ({name})" if name and name != device else device
    threads, world = record.get("threads"), record.get("world_size", 1)
    text += f", {plural(threads, 'thread')}" if threads else ""
    return text + (f", {plural(world, 'process', 'processes')}" if world > 1 else "")


def _versions(versions: Mapping[str, str]) -> str:
    named = [f"{name} {value}" for name, value in versions.items() if name != "platform"]
    return ", ".join(named) or UNKNOWN


def _backbone(record: Mapping[str, Any]) -> str:
    backbone = record.get("backbone") or {}
    if "name" not in backbone:
        return UNKNOWN
    digest = f", sha256 {backbone['sha256']}" if backbone.get("sha256") else ""
    return f"{backbone['name']}{digest}"


def _configuration(run: Run) -> str:
    """The text of config.yaml; a sentence if it is missing."""
    try:
        text = RunDirectory(run.path).config.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return f"# {run.path} has no config.yaml"
    if len(text) > MAX_CONFIGURATION_BYTES:
        return f"{text[:MAX_CONFIGURATION_BYTES]}\n# and so on: the rest is in the file"
    return text
