"""Photograph the top of a run's report for the documentation, with a headless Chromium:

    smope train --report run_dir=runs/pictured
    python docs/pictures/report_page.py runs/pictured

The picture holds the version and the headings of its page as a text chunk; a test compares them
with the headings that reports have today.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

FILE = Path(__file__).with_name("report_page.png")
WIDTH, HEIGHT = 1100, 1500  # pixels of the window, from the top of the page
COLOURS = 64  # text and figures need no more, and the file is a third


def photograph(page: Path) -> Image.Image:
    """The top of a page, as a window of WIDTH x HEIGHT pixels shows it."""
    browser = shutil.which("chromium") or shutil.which("google-chrome") or "chromium-browser"
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        subprocess.run(
            [
                browser,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--hide-scrollbars",
                f"--user-data-dir={folder}/profile",
                f"--window-size={WIDTH},{HEIGHT}",
                f"--screenshot={shot}",
                page.absolute().as_uri(),
            ],
            check=True,
            capture_output=True,
        )
        return Image.open(io.BytesIO(shot.read_bytes())).convert("RGB")


def facts(page: Path) -> PngInfo:
    """What made the page, and its headings."""
    text = page.read_text(encoding="utf-8")
    generator = re.search(r'<meta name="generator" content="([^"]*)"', text)
    info = PngInfo()
    info.add_text("Software", generator[1] if generator else "")
    info.add_text("Headings", json.dumps(re.findall(r"<h2[^>]*>([^<]+)", text)))
    return info


if __name__ == "__main__":
    report = Path(sys.argv[1]) / "report.html"
    photograph(report).quantize(COLOURS).save(FILE, optimize=True, pnginfo=facts(report))
    print(f"{FILE}: {FILE.stat().st_size:,} bytes")
