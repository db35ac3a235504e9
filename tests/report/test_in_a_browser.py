"""The report in a real browser: it opens without complaint, a keyboard is enough for it, and paper
has room for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

from smope.cli.main import main
from tests.analysis.made_runs import expert_snapshots, write_run

from .browser import CHROMIUM, SHIFT, Browser, browser

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: apt-get install chromium")

PAPER = 718  # pixels of A4's width within the margins
# What one can do something with, in the order of the page, and which of these has the focus.
SCRIPT = """
controls = () => [...document.querySelectorAll('a[href], summary, [tabindex="0"]')]
    .filter(x => x.checkVisibility());
focused = () => {
  const element = document.activeElement, box = element.getBoundingClientRect();
  return {number: controls().indexOf(element), outline: getComputedStyle(element).outlineStyle,
          shown: box.bottom > 0 && box.top < innerHeight,
          region: element.classList.contains('scroll')};
};
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of two methods, 25 experts: the widest table that the default has."""
    folder = tmp_path_factory.mktemp("runs")
    snapshots = expert_snapshots()
    for arrays in snapshots.values():
        arrays |= {key: numpy.ones((1, 25, 2), numpy.float32) for key in ("keys.0", "values.0")}
        arrays["counts.0"] = numpy.ones((1, 25), numpy.int64)
    long = {"backbone": {"name": "vit_tiny_patch16_224.augreg_in21k_ft_in1k_and_one_word_more"}}
    for seed in (0, 1):
        write_run(folder / f"smope-{seed}", snapshots=snapshots, seed=seed, **long)
        config = {
            "seed": seed,
            "name": "made",
            "method": {"_target_": "smope.methods.ncm.NearestClassMean"},
        }
        write_run(folder / f"ncm-{seed}", seed=seed, method="ncm", config=config, **long)
    out = folder.parent / "page" / "compare.html"
    out.parent.mkdir(exist_ok=True)
    assert main(["report", str(folder), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def each(page: Browser, selector: str, value: str) -> list[float]:
    """The value of JavaScript for each element x."""
    return page.run(f"[...document.querySelectorAll('{selector}')].map(x => {value})")


def controls_in_tab_order(page: Browser) -> list[dict[str, Any]]:
    """Where Tab leads from the top of the page, until it leaves the page."""
    found = []
    for _ in range(page.run("controls().length") + 1):
        page.press("Tab")
        focus = page.run("focused()")
        if focus["number"] < 0 or (found and focus["number"] == found[0]["number"]):
            break
        found.append(focus)
    return found


def test_it_opens_without_complaint(window: Browser, report: Path, tmp_path: Path) -> None:
    for scheme in ("light", "dark"):
        window.open(report, prefers_color_scheme=scheme)
        assert window.complaints() == []
    assert window.run("document.querySelectorAll('section').length") >= 8
    assert window.run(
        "document.querySelectorAll('svg').length === document.querySelectorAll('figure').length"
    )
    broken = tmp_path / "broken.html"
    broken.write_text(
        "<!DOCTYPE html><script>console.error('seen'); nothing()</script>", encoding="utf-8"
    )
    window.open(broken)
    assert len(window.complaints()) == 2, "this test sees what a console says"


def test_a_phone_scrolls_down_only(window: Browser, report: Path) -> None:
    window.open(report, width=360, height=700)
    assert window.run("document.documentElement.scrollWidth") == 360
    assert max(each(window, "svg", "x.getBoundingClientRect().right")) <= 360


@pytest.mark.parametrize("width", [1200, 360])
def test_tab_reaches_every_control_in_order(width: int, window: Browser, report: Path) -> None:
    window.open(report, width=width, prefers_reduced_motion="reduce")
    window.run(SCRIPT)
    for opened in (False, True):
        window.run(
            f"document.querySelectorAll('details').forEach(x => x.open = {str(opened).lower()})"
        )
        window.run(
            "document.activeElement.blur(); getSelection().collapse(document.body, 0); "
            "scrollTo(0, 0)"
        )
        found = controls_in_tab_order(window)
        assert [focus["number"] for focus in found] == list(range(window.run("controls().length")))
        assert all(focus["outline"] == "solid" and focus["shown"] for focus in found), (
            "one sees where one is"
        )
    assert sum(focus["region"] for focus in found) == window.run(
        "document.querySelectorAll('table').length"
    )
    window.press("Tab", SHIFT)
    assert window.run("focused().number") == len(found) - 1, "and back from the end of the page"


def test_keys_do_what_a_mouse_does(window: Browser, report: Path) -> None:
    window.open(report, width=360, height=700)
    window.run(SCRIPT)
    window.press("Tab")
    assert window.run("document.activeElement.className") == "skip"
    assert window.run("document.activeElement.getBoundingClientRect().left") >= 0, (
        "shown where it has the focus"
    )
    window.press("Enter")
    assert window.run("location.hash") == "#scores"
    window.press("Tab")
    assert window.run("document.activeElement.closest('section').id") == "scores", (
        "the sections' links are skipped"
    )

    window.run("document.querySelector('nav a[href=\"#experts\"]').focus()")
    window.press("Enter")
    assert window.run("location.hash") == "#experts"

    for name in window.run("[...document.querySelectorAll('figure')].map(x => x.id)"):
        window.run(
            f"details = document.querySelector('#{name} details'); "
            f"details.querySelector('summary').focus()"
        )
        for key, opened in (("Enter", True), (" ", False), (" ", True)):
            window.press(key)
            assert window.run("details.open") is opened, (name, key)
        window.press("Tab")
        assert window.run("document.activeElement === details.querySelector('.scroll')"), name

    window.run("document.querySelector('#load-1 .scroll').focus({preventScroll: true})")
    assert window.run("document.activeElement.scrollWidth > document.activeElement.clientWidth"), (
        "wider than a phone"
    )
    for _ in range(3):
        window.press("ArrowRight")
    moved = "new Promise(done => setTimeout(() => done(document.activeElement.scrollLeft), 500))"
    assert (
        window.call("Runtime.evaluate", expression=moved, awaitPromise=True)["result"]["value"] > 0
    )


def test_paper_has_all_of_it_in_black_on_white(window: Browser, report: Path) -> None:
    window.open(report, width=PAPER, prefers_color_scheme="dark")
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    window.call("Emulation.setEmulatedMedia", media="print", features=[dark])
    try:
        assert window.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert window.run("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
        assert window.run("document.querySelector('nav').checkVisibility()") is False
        heights = each(window, "table", "x.clientHeight")
        assert len(heights) > 8
        assert min(heights) > 20, "numbers under a figure too, though they are folded"
        assert max(each(window, "table, svg, img", "x.getBoundingClientRect().right")) <= PAPER, (
            "nothing is cut off"
        )
        assert min(each(window, "td, p", "parseFloat(getComputedStyle(x).fontSize)")) > 7.9, (
            "6 points"
        )
    finally:
        window.call("Emulation.setEmulatedMedia", media="")
    pages = re.findall(rb"/Type\s*/Page\b", window.pdf())
    assert 3 <= len(pages) <= 15
