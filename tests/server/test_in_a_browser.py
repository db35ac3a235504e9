"""The page in a real browser: images are classified, a class is taught and taken back."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from smope.server.application import web_application
from smope.server.listen import address_of, open_socket
from smope.server.session import Session
from tests.report.browser import CHROMIUM, Browser, browser

from .conftest import HOSTILE

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: apt-get install chromium")
WIDTHS = {"desktop": 1200, "phone": 360}
# where to put pictures of the page, for people who want to look at it
PICTURES = os.environ.get("SMOPE_PAGE_PICTURES")


WIDER = """[...document.querySelectorAll('main *')]
    .filter(x => !x.closest('pre, summary') && x.parentElement.clientWidth)
    .filter(x => x.getBoundingClientRect().right
                 > x.parentElement.getBoundingClientRect().right + 0.5)
    .map(x => x.outerHTML.slice(0, 80))"""

# an image is added while those that are there are classified again
LATE = """{
    const usual = classify;
    let isFirst = true;
    classify = async (card) => {
        await usual(card);
        if (isFirst) add([new File(["no image"], "late.png")]);
        isFirst = false;
    };
}"""


@pytest.fixture
def address(session_of: Callable[..., Session]) -> Iterator[str]:
    """Where a server that learns answers."""
    listening = open_socket("127.0.0.1", 0)
    application = web_application(session_of("smope", teaches=True))
    config = uvicorn.Config(application, log_config=None, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        while not server.started:
            time.sleep(0.05)
        yield address_of(listening)
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture
def images(colours: Path, tmp_path: Path) -> list[Path]:
    """Images to ask about, one of them with a hostile name and one that is none."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("amber", "emerald"):
        shutil.copy(colours / "test" / name / "0.png", folder / f"{name}.png")
    hostile = folder / "<img src=x onerror=document.title='hacked'>.png"
    shutil.copy(colours / "test" / "blue" / "0.png", hostile)
    (folder / "broken.png").write_text("no image")
    return sorted(folder.iterdir())


def texts(page: Browser, selector: str) -> list[str]:
    return page.run(f"[...document.querySelectorAll('{selector}')].map(x => x.textContent)")


def classified(page: Browser, answers: int) -> None:
    """Wait until each image that can be read has so many answers."""
    page.wait_for(f"document.querySelectorAll('.card .answer').length === {answers}")


def look(page: Browser, name: str, address: str) -> None:
    """It fits a phone, and people may look at pictures of it."""
    for scheme in ("light", "dark"):
        for size, width in WIDTHS.items():
            metrics: dict[str, Any] = {"height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
            page.call("Emulation.setDeviceMetricsOverride", width=width, **metrics)
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            page.call("Emulation.setEmulatedMedia", features=features)
            assert page.run("document.documentElement.scrollWidth") <= width, (size, "scrolls down")
            assert page.run(WIDER) == [], "nothing is wider than what it is in"
            if PICTURES:
                Path(PICTURES, f"{name}-{size}-{scheme}.png").write_bytes(page.picture())


def test_a_class_is_taught_and_taken_back(
    address: str, images: list[Path], colours: Path, tmp_path: Path
) -> None:
    with browser(tmp_path / "profile") as page:
        page.open(address)
        assert page.run("document.querySelector('h1').textContent") == "SMoPE, 4 classes"
        assert HOSTILE in texts(page, "#classes li")

        page.choose_files("#images", images)
        classified(page, 3)
        assert "not a known image format" in texts(page, ".card .problem")[0]
        assert set(texts(page, "figcaption")) == {path.name for path in images}
        assert all(text.endswith(" %") for text in texts(page, ".guesses span:nth-child(2)"))
        assert len(texts(page, ".guesses li")) == 3 * 4
        assert page.run("document.querySelectorAll('.experts').length") == 3
        chosen = page.run("document.querySelectorAll('.experts rect.chosen').length")
        assert chosen > 0
        assert any(text.startswith("nearest: ") for text in texts(page, ".card .soft"))
        page.run("document.querySelectorAll('details').forEach(x => x.open = true)")
        look(page, "asked", address)

        page.run("document.querySelector('#name').value = 'emerald'")
        page.choose_files("#pictures", sorted((colours / "train" / "emerald").iterdir()))
        page.run("document.querySelector('#learn').click()")
        classified(page, 6)
        assert page.run("document.querySelector('h1').textContent") == "SMoPE, 5 classes"
        assert texts(page, "#taught")[0].startswith("learned; ")
        assert len(texts(page, ".answer.earlier")) == 3, "what the same images were before"
        assert "emerald" in " ".join(texts(page, ".guesses"))
        look(page, "taught", address)

        page.run(LATE)
        page.run("document.querySelector('#undo').click()")
        page.wait_for("document.querySelector('h1').textContent === 'SMoPE, 4 classes'")
        page.wait_for("document.querySelectorAll('#versions li').length === 3")
        page.wait_for("document.querySelector('#undo').disabled")
        page.wait_for("document.querySelectorAll('.card .problem').length === 2")
        assert texts(page, "#taught") == ["took back emerald"]
        assert page.run("document.title") == "SMoPE: 4 classes", "no name ran as a script"
        # the answer 422 about the broken image is in the console; nothing else is
        assert all("422" in text for text in page.complaints())
