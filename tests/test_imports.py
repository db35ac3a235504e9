"""Arrows between the packages point one way, and what answers quickly imports nothing heavy. Read from the source."""

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
# What each package (or module) may import of this one, beside itself.
ARROWS = {
    "smope.errors": (),
    "smope.launch": (),
    "smope.parallel": ("smope.errors", "smope.launch"),
    "smope.seeding": (),
    "smope.routers": ("smope.errors",),
    "smope.losses": ("smope.errors", "smope.routers.base"),
    "smope.metrics.accuracy_matrix": (),
    "smope.metrics": ("smope.errors", "smope.methods.base", "smope.experts.inject", "smope.backbones.attention"),
    "smope.backbones": ("smope.errors",),
    "smope.experts": (
        "smope.errors",
        "smope.parallel",
        "smope.routers",
        "smope.backbones.attention",
        "smope.backbones.wrapping",
    ),
    "smope.prompts": ("smope.errors", "smope.backbones.attention", "smope.backbones.wrapping"),
    "smope.methods": (
        "smope.errors",
        "smope.parallel",
        "smope.backbones",
        "smope.experts",
        "smope.prompts",
        "smope.routers",
        "smope.losses",
    ),
    "smope.streams": ("smope.errors", "smope.seeding"),
    "smope.report": ("smope.errors", "smope.runs", "smope.analysis"),
    "smope.runs": ("smope.errors",),
    "smope.sealed": ("smope.errors",),
    "smope.analysis": (
        "smope.errors",
        "smope.runs",
        "smope.config",
        "smope.plain_types",
        "smope.metrics",
    ),
    "smope.serving": (
        "smope.errors",
        "smope.runs",
        "smope.sealed",
        "smope.methods",
        "smope.streams",
        "smope.training",
    ),
    "smope.sweeps": ("smope.errors", "smope.runs", "smope.config", "smope.compose", "smope.cli", "smope.session"),
    "smope.training": (
        "smope.errors",
        "smope.launch",
        "smope.parallel",
        "smope.seeding",
        "smope.runs",
        "smope.sealed",
        "smope.methods",
        "smope.streams",
        "smope.metrics",
        "smope.report",
    ),
}
# One run from its configuration on: above the trainer, beside the commands.
HYDRA_TOO = ("smope.make_source", "smope.cli", "smope.__main__", "smope.commands", "smope.compose", "smope.build")
ABOVE_BUILD = (
    *HYDRA_TOO,
    "smope.session",
    "smope.inventory",
    "smope.tuning",
    "smope.planning",
    "smope.serving.predict",
    "smope.serving.rebuild",
)
HYDRA = (*HYDRA_TOO, "smope.sweeps.task")
# Who may know a library.
KNOWN_BY = {
    "hydra": HYDRA,
    "omegaconf": HYDRA,
    "optuna": ("smope.tuning",),
    "wandb": ("smope.report.trackers",),
    "tensorboard": ("smope.report.trackers",),
    "avalanche": ("smope.streams", "smope.serving"),
    "timm": ("smope.backbones", "smope.experts", "smope.prompts", "smope.methods", "smope.verify"),
    "torchvision": ("smope.streams", "smope.serving"),
    "sklearn": ("smope.streams.digits", "smope.methods.statistics", "smope.analysis"),
    "pandas": ("smope.analysis", "smope.report"),
    "matplotlib": ("smope.report", "smope.streams.glyphs", "smope.streams.glyph_rendering"),
}
QUICK = (
    "smope",
    "smope.cli",
    "smope.config",
    "smope.schema",
    "smope.rules",
    "smope.compose",
    "smope.commands.train",
    "smope.commands.audit",
    "smope.commands.reproduce",
    "smope.reproduction",
    "smope.card",
    "smope.commands.methods",
    "smope.commands.predict",
    "smope.commands.collect",
    "smope.collection",
    "smope.collection_tables",
    "smope.commands.tune",
    "smope.tuning.settings",
    "smope.tuning.space",
    "smope.commands.plan",
    "smope.planning.hardware",
    "smope.collection_comparison",
    "smope.collection_runs",
    "smope.sweeps.driver",
    "smope.sweeps.process",
)
HEAVY = {
    "torch",
    "torchvision",
    "timm",
    "avalanche",
    "wandb",
    "numpy",
    "sklearn",
    "safetensors",
    "pandas",
    "scipy",
    "matplotlib",
    "optuna",
    "sqlalchemy",
}


def inside(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@cache
def imports(module: str, *, at_import: bool = False) -> frozenset[str]:
    """Full names that `module` imports anywhere, type checking included, or only (at_import) when it is imported."""
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
    """Everything that importing `module` imports through modules of this package, and by which of them."""
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
    assert {"smope", "smope.cli", "smope.routers.base", "smope.training.trainer"} <= set(MODULES)
    assert "smope.routers.base" in imports("smope.losses.router")
    assert "torch" in reached_from("smope.training.trainer")
    assert "torch" in imports("smope.commands.verify")
    assert "torch" not in imports("smope.commands.verify", at_import=True)


@pytest.mark.parametrize("package", ARROWS)
def test_arrows_point_one_way(package: str) -> None:
    found = [module for module in MODULES if inside(module, (package,)) and not inside(module, ABOVE_BUILD)]
    assert found, "the package has moved"
    for module in found:
        ours = {name for name in imports(module) if name.startswith("smope.")}
        wrong = sorted(name for name in ours if not inside(name, (package, *ARROWS[package])))
        assert not wrong, f"{module} imports {', '.join(wrong)}"


@pytest.mark.parametrize("library", KNOWN_BY)
def test_who_knows_a_library(library: str) -> None:
    users = {module for module in MODULES if any(inside(name, (library,)) for name in imports(module))}
    assert sorted(module for module in users if not inside(module, KNOWN_BY[library])) == []


def test_torch_alone_is_behind_the_mathematics() -> None:
    for module in (name for name in MODULES if inside(name, ("smope.routers", "smope.losses"))):
        libraries = {name.partition(".")[0] for name in imports(module)} - {"smope", "__future__"}
        assert libraries <= {"torch", "dataclasses", "collections", "typing", "math"}, module


def test_the_accuracy_matrix_is_plain_python() -> None:
    libraries = {name.partition(".")[0] for name in imports("smope.metrics.accuracy_matrix")}
    assert libraries == {"__future__", "collections", "statistics"}


@pytest.mark.parametrize("module", [module for module in MODULES if inside(module, ("smope.analysis",))])
def test_the_analysis_needs_no_torch(module: str) -> None:
    assert not {name for name in reached_from(module) if name.partition(".")[0] in ("torch", "timm", "avalanche")}


@pytest.mark.parametrize("module", QUICK)
def test_quick_answers_need_nothing_heavy(module: str) -> None:
    reached = reached_from(module)
    heavy = {name: by for name, by in reached.items() if name.partition(".")[0] in HEAVY}
    assert not heavy


@pytest.mark.parametrize("package", sorted(module for module, path in MODULES.items() if path.name == "__init__.py"))
def test_packages_are_light(package: str) -> None:
    assert not {name for name in reached_from(package) if name.partition(".")[0] in HEAVY}
