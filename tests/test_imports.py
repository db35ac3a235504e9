"""Arrows between the packages point one way, and what answers quickly imports nothing heavy.

Read from the source.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

import smope

ROOT = Path(smope.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}
# Every room of the house, lowest first: what it may import of this package, beside itself.
ROOMS: dict[str, tuple[str, ...]] = {
    "errors": (),
    "seeding": (),
    "version": (),
    # what signatures declare beside types; it imports nothing, so the mathematics may use it
    "declare": (),
    "storage": ("errors",),
    "distributed": ("errors",),
    "routers": ("errors", "declare", "distributed"),
    "losses": ("errors", "routers.base"),
    "backbones": ("errors", "declare"),
    "prompts": ("errors", "backbones.attention", "backbones.wrapping"),
    "experts": ("errors", "distributed", "routers", "backbones.attention", "backbones.wrapping"),
    "methods": (
        "errors",
        "declare",
        "distributed",
        "backbones",
        "experts",
        "prompts",
        "routers",
        "losses",
    ),
    "metrics": ("errors", "methods.base", "experts.inject", "backbones.attention"),
    "console": ("metrics.scores",),  # the terminal prints every score
    "streams": ("errors", "declare", "seeding"),
    "config": (
        "errors",
        "declare",
        "backbones.files",
        "backbones.options",
        "backbones.patches",
    ),
    "trackers": ("storage", "config.run_identity"),  # W&B groups runs as results do
    "training": (
        "errors",
        "declare",
        "seeding",
        "console",
        "storage",
        "distributed",
        "backbones.wrapping",  # the reference uses the backbone without what a method put in
        "backbones.known_features",  # features of a batch that the trainer knows already
        "methods",
        "metrics",
        "routers.base",  # margins are in units of the score range that routers use
        "streams",
        "trackers",
    ),
    # methods for loops of other people: plain modules, so it knows no stream and no run
    "loops": (
        "errors",
        "seeding",
        "backbones",
        "routers",
        "methods",
        "config",  # the names of backbones and routers, and the checks of arguments
        "training",
    ),
    # the strategy; Avalanche itself is imported by its absolute name
    "avalanche": ("errors", "seeding", "loops", "methods", "metrics", "streams", "training"),
    "analysis": ("errors", "console", "storage", "config", "metrics"),
    "report": ("errors", "version", "console", "storage", "metrics.scores", "analysis"),
    "run": (
        "errors",
        "seeding",
        "console",
        "storage",
        "distributed",
        "backbones",
        "routers.base",
        "methods",
        "metrics",
        "streams",
        "config",
        "trackers",
        "training",
        "report.live_pictures",
    ),
    "reproduction": (
        "errors",
        "console",
        "storage",
        "config",
        "metrics.scores",
        "backbones",
        "routers",
        "methods",
        "run",
    ),
    "serving": (
        "errors",
        "version",  # which smope imported or taught a model
        "seeding",
        "declare",
        "console",  # learning shows its progress
        "storage",  # which run a folder or the word `latest` means
        "metrics.expert_use",  # the numbers of the blocks with experts
        "backbones",
        "routers",
        "experts.bank",  # the authors' code has experts of one kind alone
        "methods",
        "streams",
        "config",
        "training",
        "run",
    ),
    "server": (
        "errors",
        "version",
        "storage",
        "streams",  # uploads are decoded as images for training are
        "run.artefact",
        "serving",
    ),
    "audit": (
        "errors",
        "storage",
        "methods",
        "metrics",
        "streams",
        "config",
        "training",
        "run",
    ),
    "planning": (
        "errors",
        "console",
        "backbones",
        "methods",
        "metrics",
        "streams",
        "config",
        "training",
        "run",
    ),
    "tuning": (
        "errors",
        "declare",
        "seeding",
        "console",
        "storage",
        "metrics",
        "config",
        "training",
        "run",
    ),
    "sweeps": ("errors", "storage", "config", "run", "planning.memory"),  # runs that share a GPU
    "cli": (
        "errors",
        "version",
        "metrics.scores",
        "console",
        "storage",
        "distributed",
        "streams",
        "config",
        "training",
        "analysis",
        "report",
        "reproduction",
        "run",
        "serving",
        "server",
        "audit",
        "planning",
        "tuning",
        "sweeps",
    ),
    "__init__": (
        "storage.launch",
        "version",
        "config.overrides",
        "run",
        "serving",
        "loops",
        "training",
    ),
    "__main__": ("cli",),
}
# Who may know a library.
HYDRA = ("smope.config", "smope.run.build", "smope.run.build_source", "smope.sweeps.job_runner")
KNOWN_BY = {
    "hydra": HYDRA,
    "omegaconf": HYDRA,
    "optuna": ("smope.tuning",),
    "wandb": ("smope.trackers.wandb",),
    "tensorboard": ("smope.trackers.tensorboard",),
    "avalanche": ("smope.streams", "smope.avalanche"),
    "timm": (
        "smope.backbones", "smope.experts", "smope.prompts", "smope.methods",
        "smope.reproduction.reference_numbers", "smope.run.quick_import",
    ),
    "torchvision": ("smope.streams",),
    "sklearn": ("smope.streams.digits", "smope.methods._shared.class_statistics", "smope.analysis"),
    "pandas": ("smope.analysis", "smope.report"),
    "starlette": ("smope.server",),
    "uvicorn": ("smope.server",),
    "matplotlib": ("smope.report", "smope.streams.glyphs", "smope.streams.pixels.glyph_rendering"),
}  # fmt: skip
# What is imported before the first answer of a command.
QUICK = (
    "smope.config", "smope.cli", "smope.console", "smope.sweeps.driver",
    "smope.sweeps.process", "smope.tuning.settings", "smope.tuning.space", "smope.run.plan",
    "smope.planning.hardware", "smope.reproduction.published", "smope.reproduction.report",
    "smope.reproduction.rows", "smope.reproduction.run", "smope.analysis.run",
    "smope.analysis.loading", "smope.analysis.labels", "smope.analysis.tables",
    "smope.analysis.rendering", "smope.analysis.run_list", "smope.trackers.base",
    "smope.trackers.wandb",
)  # fmt: skip
# Imported by a command once its arguments are checked.
LATE = ("smope.cli.data_report", "smope.cli.predict_output")
HEAVY = {
    "torch", "torchvision", "timm", "avalanche", "wandb", "numpy", "sklearn", "safetensors",
    "pandas", "scipy", "matplotlib", "optuna", "sqlalchemy",
}  # fmt: skip


def inside(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@cache
def imports(module: str, *, at_import: bool = False) -> frozenset[str]:
    """Full names that `module` imports anywhere, type checking included, or only (at_import) when
    it is imported.
    """
    body = ast.parse(MODULES[module].read_text(encoding="utf-8")).body
    return frozenset(name for node in body for name in _names(node, at_import))


def _names(node: ast.AST, at_import: bool) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute here"
        inner = {f"{node.module}.{alias.name}" for alias in node.names}
        return {str(node.module)} | {name for name in inner if name in MODULES}
    if at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return set()
    if at_import and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return set()
    return {name for child in ast.iter_child_nodes(node) for name in _names(child, at_import)}


def reached_from(module: str) -> dict[str, str]:
    """Everything that importing `module` imports through modules of this package, and by which of
    them.
    """
    reached: dict[str, str] = {}
    waiting = [module]
    while waiting:
        current = waiting.pop()
        parts = current.split(".")
        packages = {".".join(parts[:end]) for end in range(1, len(parts))}
        for name in imports(current, at_import=True) | packages:
            if name not in reached:
                reached[name] = current
                waiting += [name] if name in MODULES else []
    return reached


def test_the_source_is_found() -> None:
    assert {"smope", "smope.cli.main", "smope.routers.base", "smope.training.trainer"} <= set(
        MODULES
    )
    assert "smope.routers.base" in imports("smope.losses.router")
    assert "torch" in reached_from("smope.training.trainer")
    assert "torch" in imports("smope.cli.verify")
    assert "torch" not in imports("smope.cli.verify", at_import=True)


def room_of(module: str) -> str:
    """The folder, or the loose file, of a module: what it is a row of ROOMS by."""
    return module.removeprefix("smope").removeprefix(".").partition(".")[0] or "__init__"


def test_every_room_has_a_row() -> None:
    assert {room_of(module) for module in MODULES} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_point_one_way(room: str) -> None:
    allowed = tuple(f"smope.{name}" for name in (room, *ROOMS[room]))
    for module in (module for module in MODULES if room_of(module) == room):
        ours = {name for name in imports(module) if name.startswith("smope.")}
        wrong = sorted(name for name in ours if not inside(name, allowed))
        assert not wrong, f"{module} imports {', '.join(wrong)}"


def test_a_room_imports_only_rooms_below_it() -> None:
    rooms = list(ROOMS)
    for room, allowed in ROOMS.items():
        above = [
            name for name in allowed if rooms.index(name.partition(".")[0]) > rooms.index(room)
        ]
        assert not above, f"{room} may import {', '.join(above)}, which are above it"


def test_few_modules_are_loose() -> None:
    loose = {path.stem for path in ROOT.glob("*.py")}
    assert loose == {"__init__", "__main__", "errors", "seeding", "version"}


@pytest.mark.parametrize("library", KNOWN_BY)
def test_who_knows_a_library(library: str) -> None:
    users = {
        module for module in MODULES if any(inside(name, (library,)) for name in imports(module))
    }
    assert sorted(module for module in users if not inside(module, KNOWN_BY[library])) == []


def test_torch_alone_is_behind_the_mathematics() -> None:
    for module in (name for name in MODULES if inside(name, ("smope.routers", "smope.losses"))):
        libraries = {name.partition(".")[0] for name in imports(module)} - {"smope", "__future__"}
        assert libraries <= {"torch", "dataclasses", "collections", "typing", "math"}, module


def test_scores_are_plain_python() -> None:
    libraries = {name.partition(".")[0] for name in imports("smope.metrics.accuracy_matrix")}
    assert libraries == {"__future__", "collections", "statistics"}
    libraries = {name.partition(".")[0] for name in imports("smope.metrics.scores")}
    assert libraries == {"__future__", "collections", "dataclasses", "typing", "smope"}


@pytest.mark.parametrize(
    "module", [module for module in MODULES if inside(module, ("smope.analysis",))]
)
def test_the_analysis_needs_no_torch(module: str) -> None:
    assert not {
        name
        for name in reached_from(module)
        if name.partition(".")[0] in ("torch", "timm", "avalanche")
    }


@pytest.mark.parametrize(
    "module", [name for name in MODULES if inside(name, QUICK) and name not in LATE]
)
def test_quick_answers_need_nothing_heavy(module: str) -> None:
    reached = reached_from(module)
    heavy = {name: by for name, by in reached.items() if name.partition(".")[0] in HEAVY}
    assert not heavy


@pytest.mark.parametrize(
    "package", sorted(module for module, path in MODULES.items() if path.name == "__init__.py")
)
def test_packages_are_light(package: str) -> None:
    assert not {name for name in reached_from(package) if name.partition(".")[0] in HEAVY}
