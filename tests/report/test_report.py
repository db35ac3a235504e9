"""The report: what is in it, and that it needs nothing from elsewhere; see test_in_a_browser.py."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy
import pytest
from PIL import Image

from smope.cli.main import main
from smope.report.style import filling, series
from tests.analysis.made_runs import (
    LABELS,
    expert_snapshots,
    logits_for,
    usual_snapshots,
    with_top_logits,
    write_run,
)

MAXIMUM = 3_000_000
SECTIONS = [
    "verdict",
    "scores",
    "accuracy",
    "forgetting",
    "mistakes",
    "confusion",
    "gallery",
    "classes",
    "experts",
    "examples",
    "confidence",
    "unknown",
    "comparison",
    "training",
    "cost",
    "configuration",
    "launch",
    "audit",
    "definitions",
]


class Page(HTMLParser):
    """Elements of a page with their attributes, and the text of it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods of two seeds: one routes, one recorded the task to come."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        write_run(folder / f"smope-{seed}", snapshots=expert_snapshots(), seed=seed)
        config = {
            "seed": seed,
            "name": "made",
            "method": {"_target_": "smope.methods.ncm.NearestClassMean"},
        }
        ahead = usual_snapshots()
        ahead[1]["logits"] = numpy.concatenate([ahead[1]["logits"], 0.5 * ahead[1]["logits"]])
        ahead[1]["predicted"] = numpy.concatenate([ahead[1]["predicted"]] * 2)
        matrix = [[1.0, None], [0.25 + 0.25 * seed, 1.0]]
        write_run(
            folder / f"ncm-{seed}",
            snapshots=ahead,
            seed=seed,
            method="ncm",
            config=config,
            accuracy_matrix=matrix,
        )
    return folder


@pytest.fixture(scope="module")
def report(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "compare.html"
    assert main(["report", str(runs), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    return Page(report.read_text(encoding="utf-8"))


def test_runs_that_are_left_out_of_means_are_counted(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"done-{seed}", seed=seed)
    write_run(
        tmp_path / "early", seed=2, status="running", accuracy_matrix=[[1.0, None], [None, None]]
    )
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
    words = " ".join(Page((tmp_path / "page.html").read_text(encoding="utf-8")).words)
    assert "Left out: 1 run, each with fewer tasks than others of its configuration." in words


def words_of(runs: Path, out: Path) -> str:
    assert main(["report", str(runs), "--out", str(out)]) == 0
    return " ".join(" ".join(Page(out.read_text(encoding="utf-8")).words).split())


def test_a_page_of_the_largest_logits_alone_says_the_same(tmp_path: Path) -> None:
    """Only the Brier score and probabilities may differ in their last digits."""
    texts = []
    for name, change in (("all", dict), ("top", with_top_logits)):
        write_run(tmp_path / name / "run", snapshots=change(expert_snapshots()))
        texts.append(words_of(tmp_path / name, tmp_path / name / "page.html"))
    assert "calibration error" in texts[0]
    assert texts[0].replace("/all/", "/top/") == texts[1]


def test_snapshots_count_for_the_runs_that_scores_count(tmp_path: Path) -> None:
    """A run under way, which is right in all it has seen and comes first, does not count."""
    early = {"status": "running", "accuracy_matrix": [[1.0, None], [None, None]]}
    write_run(tmp_path / "early", snapshots=usual_snapshots(), seed=0, **early)
    write_run(tmp_path / "b", snapshots=usual_snapshots(), seed=1)
    words = words_of(tmp_path, tmp_path / "page.html")
    assert "method accuracy if the task is known smope 75.0 75.0" in words
    assert "smope makes 12.5 percent errors within and 12.5 percent between tasks" in words
    assert "The largest confusion: 25.0 percent of task 1 are taken for task 2." in words
    assert "Accuracy matrix: smope after task / task 1 2 1 100.0 2 50.0 100.0" in words


def test_scores_on_different_streams_are_not_ranked(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    tasks = [{"name": "task 0", "classes": [0, 1], "train": 4, "test": 4}]
    stream = {"name": "other", "content_hash": "d", "identity": "j"}
    changes = {
        "stream": stream,
        "tasks": tasks,
        "class_names": ["a", "b"],
        "accuracy_matrix": [[0.9]],
    }
    write_run(tmp_path / "b", **changes)
    words = words_of(tmp_path, tmp_path / "page.html")
    assert "2 runs of 2 configurations on " in words
    assert "made: 4 classes in 2 tasks, evaluated on test images" in words
    assert "other: 2 classes in 1 task, evaluated on test images" in words
    assert "Scores on different streams do not compare." in words
    assert "The highest final average accuracy" not in words
    (ends,) = re.findall(r"After the last task: .*? %\. Mean", words)
    assert " at 75.0 %" in ends and " at 90.0 %" in ends, "each after its own last task"


def test_different_numbers_of_tasks_name_no_best(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(
        tmp_path / "b", method="ncm", status="running", accuracy_matrix=[[0.95, None], [None, None]]
    )
    words = words_of(tmp_path, tmp_path / "page.html")
    assert "Scores over different numbers of finished tasks do not compare." in words
    assert "The highest final average accuracy" not in words


def test_several_runs_have_it_in_the_folder_that_holds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not in the current folder, which has nothing to do with them."""
    for seed, name in enumerate(("x/a", "x/deep/b", "y/c")):
        write_run(tmp_path / "runs" / name, seed=seed)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["report", "../runs/x"]) == 0
    assert (tmp_path / "runs/x/report.html").is_file() and (tmp_path / "runs/x/report").is_dir()
    assert main(["report", "../runs/x/a", "../runs/y"]) == 0
    assert (tmp_path / "runs/report.html").is_file()
    assert not list(Path().iterdir())
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["report", "runs/x"]) == 0
    assert capsys.readouterr().out.startswith("report on 2 runs: runs/x/report.html\n")
    assert main(["report", "runs/x", "--out", "here.html"]) == 0
    assert Path("here.html").is_file()


def test_runs_that_kept_no_logits_are_named(tmp_path: Path) -> None:
    write_run(tmp_path / "a", snapshots=expert_snapshots())
    write_run(tmp_path / "b", seed=1)
    words = words_of(tmp_path, tmp_path / "page.html")
    assert words.count("Without runs that kept no logits (trainer.record): smope, seed 1.") == 5


@pytest.mark.filterwarnings("error::UserWarning")
def test_long_names_have_room_below_a_figure(tmp_path: Path) -> None:
    """Matplotlib warns where a legend leaves the axes none."""
    for count in range(20):
        weights = dict.fromkeys(
            ("router_loss_weight", "prototype_loss_weight", "expert_rate_factor"), 1 / (count + 3)
        )
        config = {
            "seed": 0,
            "name": "made",
            "method": {"_target_": "smope.methods.smope.SMoPE", **weights},
        }
        write_run(tmp_path / str(count), snapshots=expert_snapshots(), config=config)
    words = words_of(tmp_path, tmp_path / "page.html")
    assert "20 runs of 20 configurations" in words


def test_where_nothing_is_confused_or_varies_the_words_say_so(tmp_path: Path) -> None:
    for seed in range(3):
        snapshots = expert_snapshots()
        snapshots[2] |= {
            "logits": logits_for(LABELS, 4),
            "predicted": numpy.array(LABELS, numpy.uint16),
        }
        write_run(
            tmp_path / str(seed),
            snapshots=snapshots,
            seed=seed,
            accuracy_matrix=[[1.0, None], [1.0, 1.0]],
        )
    words = words_of(tmp_path, tmp_path / "page.html")
    assert "All images of all 2 tasks are taken for one of their own." in words
    assert (
        "smope: in all 3 pairs the same share of choices changed, or the same accuracy was lost."
        in words
    )
    assert "nan" not in words.split() and "0.0 percent of task 1" not in words


def test_maps_that_are_left_out_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "accuracy.MAX_MAPS",
        "confusion.MAX_MAPS",
        "classes.MAX_MAPS",
        "experts.MAX_CONFIGURATIONS",
    ):
        monkeypatch.setattr(f"smope.report.sections.{name}", 1)
    for count in (1, 2):
        config = {
            "seed": 0,
            "name": "made",
            "method": {"_target_": "smope.methods.smope.SMoPE", "num_experts": count},
        }
        write_run(tmp_path / str(count), snapshots=expert_snapshots(), config=config)
    words = words_of(tmp_path, tmp_path / "page.html")
    for what in ("matrices", "maps of confusion", "load, overlap, drift and use"):
        assert (
            f"Without {what}, to keep the page small: smope (num_experts=2). Make a report of "
            f"these alone." in words
        )
    assert not list((tmp_path / "page").glob("*-2.svg"))


def test_a_report_leaves_no_figure_of_the_one_before(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert main(["report", str(runs), "--out", str(out)]) == 0
    (out.with_suffix("") / "mine.png").write_bytes(b"not of the report")
    assert main(["report", str(runs / "smope-0"), "--out", str(out)]) == 0
    left = {path.name for path in out.with_suffix("").glob("*.*g")}
    assert "matrix-1.png" in left and "mine.png" in left
    assert not left & {"matrix-2.png", "matrix-2.svg", "unknown-classes.png"}


def test_no_two_of_many_lines_or_bars_are_alike_in_grayscale() -> None:
    lines = [series(number) for number in range(36)]
    assert len({(line["marker"], line["linestyle"]) for line in lines}) == 36
    assert len({(bar["color"], bar["hatch"]) for bar in map(filling, range(36))}) == 36
    assert lines[0] == {"color": "#0072b2", "marker": "o", "linestyle": "-"}


def test_every_section_is_there_and_can_be_reached(page: Page) -> None:
    assert [section["id"] for section in page.all("section")] == SECTIONS
    targets = {link["href"] for link in page.all("a")}
    assert {f"#{name}" for name in SECTIONS} <= targets
    identifiers = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert [name for name, count in identifiers.items() if count > 1] == []
    assert {target[1:] for target in targets if target.startswith("#")} <= set(identifiers)


def test_it_refers_to_nothing_elsewhere(report: Path, page: Page) -> None:
    text = report.read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^\"' <]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert page.all("script") == []
    assert "@import" not in text
    for _, attributes in page.elements:
        for key in ("src", "href", "xlink:href"):
            value = attributes.get(key, "#")
            assert value.startswith(("#", "data:")) or (report.parent / value).is_file(), value
    assert report.stat().st_size < MAXIMUM


def test_every_figure_has_a_text_alternative_and_its_numbers(report: Path, page: Page) -> None:
    drawings = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert len(drawings) == len(page.all("svg")) == len(page.all("figure")) > 8
    identifiers = {attributes.get("id") for _, attributes in page.elements}
    assert all(set(svg["aria-labelledby"].split()) <= identifiers for svg in drawings)
    assert all(image["alt"] for image in page.all("img"))
    folded = [item for item in page.all("details") if item.get("class") == "folded"]
    assert len(page.all("details")) == len(page.all("figure")) + 1 + len(folded), (
        "a table under each figure, and the run directories"
    )
    assert len(folded) == 4 + 2, "how each run was run, and the files of mistakes of two methods"
    described = re.findall(r"<desc[^>]*>(.*?)</desc>", report.read_text(encoding="utf-8"))
    assert len(described) == len(drawings)
    assert all(re.search(r"\d", text) for text in described), "each says a number"


def test_the_numbers_are_those_of_the_runs(page: Page) -> None:
    words = " ".join(" ".join(page.words).split())
    assert (
        "4 runs of 2 configurations on made: 4 classes in 2 tasks, evaluated on test images."
        in words
    )
    assert (
        "smope 2 2 75.00 ± 0.00 87.50 ± 0.00 87.50 ± 0.00 50.00 ± 0.00 -50.00 ± 0.00 "
        "100.00 ± 0.00 75.00 ± 0.00" in words
    )
    assert "ncm 2 2 68.75 ± 6.25" in words
    assert "it cannot be below 0.5, however large the difference" in words
    assert "p smallest p p, Holm effect size d" in words
    assert "Each image chooses 2 of 4 experts" in words
    assert "rank correlation" not in words, "a single pair of tasks correlates with nothing"


def test_figures_and_tables_lie_beside_it(report: Path) -> None:
    folder = report.with_suffix("")
    drawings = sorted(path.stem for path in folder.glob("*.svg"))
    assert drawings == sorted(path.stem for path in folder.glob("*.png"))
    assert {
        "accuracy-curves",
        "matrix-1",
        "matrix-2",
        "load-1",
        "overlap-1",
        "errors",
        "unknown-classes",
    } <= set(drawings)
    for name in drawings:
        assert ET.parse(folder / f"{name}.svg").getroot().tag.endswith("svg")
        assert Image.open(folder / f"{name}.png").size[0] > 600
    assert "| smope | 2 | 2 | 75.00 ± 0.00 |" in (folder / "scores.md").read_text(encoding="utf-8")
    assert r"smope & 2 & 2 & 75.00 $\pm$ 0.00" in (folder / "scores.tex").read_text(
        encoding="utf-8"
    )


def test_the_same_runs_give_the_same_page(runs: Path, report: Path, tmp_path: Path) -> None:
    assert main(["report", str(runs), "--out", str(tmp_path / "compare.html")]) == 0
    assert (tmp_path / "compare.html").read_bytes() == report.read_bytes()


def test_one_run_has_its_report_in_its_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", snapshots=expert_snapshots())
    assert main(["report", str(run)]) == 0
    assert f"report on 1 run: {run / 'report.html'}" in capsys.readouterr().out
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    found = [section["id"] for section in page.all("section")]
    assert found == [
        name for name in SECTIONS if name not in ("unknown", "comparison", "configuration")
    ]
    assert main(["report", str(run)]) == 0, "a report may be written again"


def test_runs_that_kept_no_logits_have_a_report_too(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    assert main(["report", str(tmp_path / "run")]) == 0
    page = Page((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert [section["id"] for section in page.all("section")] == [
        "verdict",
        "scores",
        "accuracy",
        "forgetting",
        "classes",
        "training",
        "cost",
        "launch",
        "audit",
        "definitions",
    ]


def test_names_are_text_not_markup(tmp_path: Path) -> None:
    names = ["<script>alert(1)</script>", "b & c", "c", "d"]
    write_run(tmp_path / "run", snapshots=expert_snapshots(), class_names=names)
    assert main(["report", str(tmp_path / "run")]) == 0
    page = Page((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert page.all("script") == []
    assert "<script>alert(1)</script>" in "".join(page.words)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{runs}/nowhere"], r"RUN=.*nowhere: no such directory"),
        (
            ["{runs}", "--out", "{out}/page.pdf"],
            r"--out=.*page\.pdf: must be an HTML file; write for example --out page\.h",
        ),
        (
            ["{runs}", "--out", "{out}/mine.html"],
            r"mine\.html: exists and was not written by smope report",
        ),
        (["{runs}", "--ou", "x.html"], r"did you mean --out\?"),
    ],
)
def test_mistakes(
    arguments: list[str],
    message: str,
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "mine.html").write_text("<h1>mine</h1>", encoding="utf-8")
    assert main(["report", *(text.format(runs=runs, out=tmp_path) for text in arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.html"]
