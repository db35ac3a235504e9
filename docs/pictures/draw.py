"""Draw all pictures of the documentation: python docs/pictures/draw.py"""

from __future__ import annotations

from pathlib import Path

import artefact
import expert
import forgetting
import router
import routing
import run
import stream
import task

PICTURES = {
    module.__name__: module.draw
    for module in (artefact, expert, forgetting, router, routing, run, stream, task)
}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        path = Path(__file__).with_name(f"{name}.svg")
        path.write_text(draw(), encoding="utf-8")
        print(path)
