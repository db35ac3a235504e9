"""Pages whose one copy is elsewhere in the repository: results, changelog, contributing."""

from __future__ import annotations

import os
import re
from pathlib import Path

PAGES = {
    "benchmarks/README.md": "results/index.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "SECURITY.md": "project/security.md",
    "CODE_OF_CONDUCT.md": "project/conduct.md",
}
LINK = re.compile(r"(?P<mark>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def published(root: Path) -> dict[str, str]:
    """Where each shared file is on the site, both relative."""
    results = sorted((root / "benchmarks" / "results").glob("*.md"))
    return PAGES | {f"benchmarks/results/{path.name}": f"results/{path.name}" for path in results}


def pages(root: Path) -> dict[str, str]:
    """The Markdown of each page, by its path on the site."""
    where = published(root)
    where |= {f"docs/{path}": path for path in _pages_of(root / "docs")}
    where |= {f"benchmarks/{name}": name for name in pictures(root)}
    where |= {
        f"notebooks/{path.name}": f"gallery/{path.stem}.md"
        for path in (root / "notebooks").glob("*.ipynb")
    }
    return {
        page: with_links_of_site((root / source).read_text(encoding="utf-8"), source, page, where)
        for source, page in published(root).items()
    }


def pictures(root: Path) -> dict[str, Path]:
    """The pictures of the results, by their path on the site."""
    return {
        f"results/{path.name}": path for path in sorted((root / "benchmarks/results").glob("*.svg"))
    }


def with_links_of_site(text: str, source: str, page: str, where: dict[str, str]) -> str:
    """The text with links between files of the repository as links between pages.

    A link to a file that the site does not have becomes its text alone.
    """

    def replace(match: re.Match[str]) -> str:
        if re.match(r"\w+:", match["target"]):
            return match[0]
        path = os.path.normpath(os.path.join(os.path.dirname(source), match["target"]))
        if path not in where:
            return match["text"]
        target = os.path.relpath(where[path], os.path.dirname(page))
        return f"{match['mark']}[{match['text']}]({target}{match['anchor'] or ''})"

    return LINK.sub(replace, text)


def _pages_of(docs: Path) -> list[str]:
    return [str(path.relative_to(docs)) for path in docs.rglob("*.md")]
