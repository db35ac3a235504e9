"""One self-contained HTML page out of sections: no script, no network, light and dark, print."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path

from smope.analysis.runs import SCORES, Run, costs, differences
from smope.report.figures import Figure
from smope.report.sections.accuracy import HEADINGS, accuracy, comparison, forgetting, overview
from smope.report.sections.base import Section, Table, plural
from smope.report.sections.experts import examples, experts
from smope.report.sections.mistakes import confidence, mistakes, unknown
from smope.report.style import inline_svg
from smope.version import __version__

GENERATOR = "smope report"
HERE = Path(__file__).parent


def sections(runs: Sequence[Run]) -> list[Section]:
    """What there is to say about these runs, in reading order."""
    makers = (
        overview, accuracy, forgetting, mistakes, experts, examples, confidence, unknown, comparison, cost, changed,
        definitions,
    )  # fmt: skip
    return [section for section in (maker(runs) for maker in makers) if section is not None]


def cost(runs: Sequence[Run]) -> Section:
    frame = costs(runs)
    head = ["run", "prompt parameters", "classifier parameters", "training, s", "alignment, s", "evaluation, s",
            "images a second", "device"]  # fmt: skip
    rows = [
        [f"{row['label']}, seed {row['seed']}", f"{row['prompt_parameters']:,}", f"{row['classifier_parameters']:,}",
         *(f"{row[f'seconds_{what}']:.1f}" for what in ("train", "align", "eval")),
         f"{row['images_per_second']:.0f}" if row["images_per_second"] else "",
         f"{row['device']}, {plural(row['threads'], 'thread')}"]
        for row in frame.to_dict("records")
    ]  # fmt: skip
    lead = (
        "What was trained and how long it took; images a second are those of training steps. "
        "Times of different "
        "machines, or of a busy one, do not compare."
    )
    return Section("cost", "Cost", lead, [Table("Trained parameters and seconds", [head, *rows])])


def changed(runs: Sequence[Run]) -> Section | None:
    frame = differences(runs)
    if frame.empty:
        return None
    head = ["key", *map(str, frame.columns)]
    rows = [
        [str(key), *map(str, row)] for key, row in zip(frame.index, frame.to_numpy(), strict=True)
    ]
    lead = "Keys in which the configurations differ; seeds, places and devices left out. Empty: there is no such key."
    return Section(
        "configuration",
        "What was configured differently",
        lead,
        [Table("Configuration", [head, *rows])],
    )


def definitions(runs: Sequence[Run]) -> Section:
    pairs = [(HEADINGS[name], text) for name, text in SCORES.items()]
    lead = "A[t, j] is the accuracy on task j after learning task t, all classes seen so far competing."
    return Section("definitions", "Definitions", lead, definitions=pairs)


def page(
    runs: Sequence[Run], parts: Sequence[Section], drawings: Mapping[str, str], assets: str
) -> str:
    """The HTML text; drawings: SVGs by their figures' names; assets: the folder beside it with the
    figures as files.
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
