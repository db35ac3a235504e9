"""The counts of the shipped methods, from a file that comes with the package.

Counting takes half a minute and gives the same numbers everywhere. A method is counted anew only
where its settings are not those of the file. `smope methods --count --json` prints the content of
the file; a test compares the two.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smope.config.conf_files import conf_dir, config_folders, files_of_choice, read_mapping

TABLE = Path(__file__).with_name("method_table.json")
DEFAULT_ROUTER = "adaptive_noise"


def stored_rows(names: Sequence[str], config_dir: str | None = None) -> dict[str, dict[str, Any]]:
    """The rows of the file for methods whose settings are those of the file.

    Args:
        names: of conf/method.
        config_dir: a folder like conf/ that is searched as well; none of the rows is used if one of
            its files replaces a file of conf/.

    Returns:
        A row, see `method_costs.method_rows`, by name.
    """
    if config_dir is not None and _replaces(Path(config_dir).expanduser()):
        return {}
    rows = {row["name"]: row for row in json.loads(TABLE.read_text(encoding="utf-8"))}
    fresh = [name for name in names if name in rows]
    return {name: rows[name] for name in fresh if rows[name]["settings"] == settings_digest(name)}


def settings_digest(name: str, config_dir: str | None = None) -> str:
    """SHA-256 (12 hex digits) of the values, not the comments, of a method and its router.

    Args:
        name: of conf/method.
        config_dir: a folder like conf/ that is searched as well.

    Returns:
        The digest.
    """
    folders = config_folders(config_dir)
    files = [
        *files_of_choice("method", name, folders),
        *files_of_choice("router", DEFAULT_ROUTER, folders),
    ]
    values = [read_mapping(path, resolve=False) for path in files]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def _replaces(folder: Path) -> bool:
    """Whether a folder has a file in the place of one of conf/."""
    files = [path.relative_to(folder) for path in folder.rglob("*.yaml")]
    return any((conf_dir() / path).is_file() for path in files)
