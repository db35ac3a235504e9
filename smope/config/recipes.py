"""Published settings: conf/recipe/<method>.yaml has a section for each benchmark, and one for all.

Hydra chooses whole files. So each recipe is handed to it as one file for each benchmark,
`recipe/<benchmark>/<method>`, and conf/train.yaml includes the one of the chosen benchmark and
method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smope.config.conf_files import choice_file, choices, read_mapping
from smope.errors import UserError

if TYPE_CHECKING:
    from hydra.core.config_store import ConfigNode

GROUP = "recipe"
ALL_BENCHMARKS = "all"  # section whose values hold unless the benchmark's own section replaces them


class Files(dict[str, dict[str, "ConfigNode"]]):
    """Recipes as files, for each benchmark by name.

    Hydra copies its store for each configuration that it composes, and a file of it again before
    it uses it. The second copy is enough: the first one would take a fifth of the time.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> Files:
        return self


def store_recipes(config_dirs: Sequence[Path]) -> None:
    """Put the recipes of `config_dirs` into Hydra's store, in place of any that it has."""
    from hydra.core.config_store import ConfigStore

    paths = [choice_file(GROUP, method, config_dirs) for method in choices(GROUP, config_dirs)]
    versions = tuple((path, path.stat().st_mtime_ns) for path in paths)
    ConfigStore.instance().repo[GROUP] = _files(tuple(choices("benchmark", config_dirs)), versions)


@lru_cache(maxsize=8)
def _files(benchmarks: tuple[str, ...], versions: tuple[tuple[Path, int], ...]) -> Files:
    """A file for each benchmark and method; `versions`: paths and times of modification.

    Cached, because a sweep composes hundreds of configurations from the same files.
    """
    files = Files((benchmark, {}) for benchmark in benchmarks)
    for path, _ in versions:
        sections = _sections(path, benchmarks)
        for benchmark in benchmarks:
            files[benchmark][path.name] = _file(path.name, benchmark, sections)
    return files


def _file(name: str, benchmark: str, sections: Mapping[str, Any]) -> ConfigNode:
    from hydra.core.config_store import ConfigNode
    from omegaconf import OmegaConf

    node = OmegaConf.create({})
    node.merge_with(*(sections[key] for key in (ALL_BENCHMARKS, benchmark) if key in sections))
    return ConfigNode(
        name=name,
        node=node,
        group=f"{GROUP}/{benchmark}",
        package="_global_",
        provider=None,
    )


def _sections(path: Path, benchmarks: Sequence[str]) -> dict[str, Any]:
    """The sections of a recipe by name.

    Raises:
        UserError: A section has another name than the benchmarks, or holds no mapping.
    """
    sections = read_mapping(path, resolve=False)
    known = (ALL_BENCHMARKS, *benchmarks)
    for name, section in sections.items():
        if name not in known:
            raise UserError(
                f"{path}: section {name} is no benchmark; write one of {', '.join(known)}"
            )
        if not isinstance(section, dict):
            raise UserError(f"{path}: section {name} must be a mapping of groups to their keys")
    return sections
