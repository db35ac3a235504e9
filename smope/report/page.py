"""One self-contained HTML page out of sections: no script, no network, light and dark, print."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path

from smope.analysis.run import Run
from smope.report.figures import Figure
from smope.report.sections.accuracy import accuracy, comparison, forgetting, overview
from smope.report.sections.audit import audit
from smope.report.sections.base import Picture, Section, stream_title
from smope.report.sections.calibration import confidence, unknown
from smope.report.sections.classes import classes, confused_classes
from smope.report.sections.confusion import mistakes
from smope.report.sections.cost import configuration, cost, definitions
from smope.report.sections.experts import examples, experts
from smope.report.sections.gallery import gallery
from smope.report.sections.launch import launch
from smope.report.sections.training import training
from smope.report.sections.verdict import verdict
from smope.report.style import inline_svg
from smope.version import __version__

GENERATOR = "smope report"
HERE = Path(__file__).parent
# The sections of a page, in reading order; each gives None if the runs have nothing for it.
SECTIONS = (
    verdict, overview, accuracy, forgetting, mistakes, confused_classes, gallery, classes, experts,
    examples, confidence, unknown, comparison, training, cost, configuration, launch, audit,
    definitions,
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
        data_uri=_data_uri,
    )


def _data_uri(picture: Picture) -> str:
    return f"data:{picture.media};base64,{b64encode(picture.file).decode()}"


def _title(runs: Sequence[Run]) -> str:
    labels = list(dict.fromkeys(run.label for run in runs))
    streams = sorted({stream_title(run) for run in runs})
    shown = ", ".join(labels[:3]) + (f" and {len(labels) - 3} more" if len(labels) > 3 else "")
    return f"{shown} on {', '.join(streams)}"
