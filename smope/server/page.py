"""The one page: what it shows at first is written into it, the rest is page.js."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smope.server.answers import model_document
from smope.server.session import Session
from smope.version import __version__

if TYPE_CHECKING:
    from jinja2 import Template


def page(session: Session) -> str:
    """The HTML text of the page."""
    model: dict[str, Any] = model_document(session)
    return _template().render(model=model, version=__version__)


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html.jinja")
