"""What mkdocs calls: it adds the pages that are generated, and draws pictures into their pages."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import api
import commands
import keys
import scores
import shared_files
from mkdocs.structure.files import File, Files

import notebooks

ROOT = Path(__file__).parents[2]
PICTURE = re.compile(r'<img alt="(?P<alt>[^"]*)" src="[^"]*?pictures/(?P<name>\w+)\.svg"[^>]*>')


def generated_pages() -> dict[str, str]:
    """The Markdown of every page that is not in docs/, by its path there."""
    pages = {"reference/commands.md": commands.page()}
    pages |= keys.pages(ROOT / "conf")
    pages |= api.pages(ROOT / "conf")
    pages |= notebooks.pages(ROOT / "notebooks")
    return pages | shared_files.pages(ROOT)


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, and the files that they show."""
    for path, text in generated_pages().items():
        files.append(File.generated(config, path, content=text))
    for path, source in shared_files.pictures(ROOT).items():
        files.append(File.generated(config, path, abs_src_path=str(source)))
    for path, content in notebooks.pictures(ROOT / "notebooks").items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put tables that are made from the code into the pages that ask for them."""
    return markdown.replace("<!-- scores -->", scores.table())


def on_page_content(content: str, **_: Any) -> str:
    """Put our own drawings into the page itself, where they take the colours of its palette."""
    return PICTURE.sub(lambda match: _drawing(match["name"], html.unescape(match["alt"])), content)


def _drawing(name: str, alt: str) -> str:
    drawing = (ROOT / "docs" / "pictures" / f"{name}.svg").read_text(encoding="utf-8")
    label = html.escape(alt, quote=True)
    svg = drawing.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    return f'<div class="picture">{svg}</div>'
