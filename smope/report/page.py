"""One self-contained HTML page out of sections: no script, no network, light and dark, print."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path

from smope.analysis.run import Run
from smope.report.figures import Figure
from smope.report.sections.accuracy import accuracy, comparison, forgetting, overview
from smope.report.sections.base import Section
from smope.report.sections.calibration import confidence, unknown
from smope.report.sections.confusion import mistakes
from smope.report.sections.cost import configuration, cost, definitions
from smope.report.sections.experts import examples, experts
from smope.report.style import inline_svg
from smope.version import __version__

GENERATOR = "smope report"
HERE = Path(__file__).parent
# The sections of a page, in reading order; each gives None if the runs have nothing for it.
SECTIONS = (
    overview, accuracy, forgetting, mistakes, experts, examples, confidence, unknown, comparison,
    cost, configuration, definitions,
)  # fmt: skip


def sections(runs: Sequence[Run]) -> list[Section]:
    """The sections about these runs, in reading order."""
    made = [make(runs) for make in SECTIONS]
    return [section for section in made if section is not None]


def page(
    runs: Sequence[Run], parts: Sequence[Section], drawings: Mapping[str, str], assets: str
) -> str:
    """The HTML text of a page.

    Args:
        runs: The runs that the page is about.
        parts: Its sections.
        drawings: The SVG of each figure, by the figure's name.
        assets: The name of the folder beside the page that has the figures as files.
    """
    from jinja2 import Environment, FileSystemLoader

    def draw(figure: Figure) -> str:
        return inline_svg(drawings[figure.name], figure.name, figure.title, figure.text)

    loader = FileSystemLoader(HERE)
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html.jinja").render(
        title=_title(runs),
        css=(HERE / "page.css").read_text(encoding="utf-8"),
        generator=f"{GENERATOR} {__version__}",
        sections=parts,
        assets=assets,
        runs=runs,
        draw=draw,
        data_uri=lambda content: f"data:image/png;base64,{b64encode(content).decode()}",
    )


def _title(runs: Sequence[Run]) -> str:
    labels = list(dict.fromkeys(run.label for run in runs))
    streams = sorted({run.record["stream"]["name"] for run in runs})
    shown = ", ".join(labels[:3]) + (f" and {len(labels) - 3} more" if len(labels) > 3 else "")
    return f"{shown} on {', '.join(streams)}"
