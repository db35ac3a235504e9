"""The gallery: the notebooks as they were executed and stored."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

INDEX = """\
# Gallery

Notebooks as they were executed on what comes with the package. Each one is a file of `notebooks/`,
and `python notebooks/execute.py` executes them again.
"""


def pages(folder: Path) -> dict[str, str]:
    """The Markdown of the gallery and of each notebook, by path."""
    made, lines = {}, [INDEX]
    for path in sorted(folder.glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        made[f"gallery/{path.stem}.md"] = "\n\n".join(_cells(path.stem, notebook)) + "\n"
        title, summary = _title_and_summary(notebook)
        lines.append(f"- [{title}]({path.stem}.md): {summary}")
    return {"gallery/index.md": "\n".join(lines) + "\n"} | made


def pictures(folder: Path) -> dict[str, bytes]:
    """The pictures that notebooks show, by path."""
    made = {}
    for path in sorted(folder.glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for name, data in _pictures(path.stem, notebook):
            made[f"gallery/{name}"] = data
    return made


def _title_and_summary(notebook: Any) -> tuple[str, str]:
    text = "".join(notebook["cells"][0]["source"])
    title, _, rest = text.partition("\n")
    return title.lstrip("# "), rest.strip().split("\n\n")[0].replace("\n", " ")


def _pictures(stem: str, notebook: Any) -> Iterator[tuple[str, bytes]]:
    for number, cell in enumerate(notebook["cells"]):
        for index, output in enumerate(cell.get("outputs", [])):
            if "image/png" in output.get("data", {}):
                data = "".join(output["data"]["image/png"])
                yield _picture_name(stem, number, index), b64decode(data)


def _picture_name(stem: str, cell: int, output: int) -> str:
    return f"{stem}-{cell}-{output}.png"


def _cells(stem: str, notebook: Any) -> Iterator[str]:
    for number, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            yield source
            continue
        yield f"```python\n{source}\n```"
        for index, output in enumerate(cell["outputs"]):
            yield _output(output, _picture_name(stem, number, index))


def _output(output: Any, picture: str) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        return f"![What the cell above draws]({picture}){{.from-notebook}}"
    if "text/html" in data:
        table = re.sub(r"(?s)<style.*?</style>", "", "".join(data["text/html"]))
        table = " ".join(table.split())
        return f'<div class="from-notebook">{table}</div>'
    text = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
    return f"```text\n{text}\n```"
