"""A model and its versions: each lesson writes a new file, which names its parent."""

from __future__ import annotations

from drawing import arrow, box, line, picture, text

WIDTH = 196
VERSIONS = (
    ("model.safetensors", ("6 classes", "experts, classifier, names"), "teal"),
    ("model-v2.safetensors", ("8 classes", "+ beaver, + binocular"), "blue"),
    ("model-v3.safetensors", ("7 classes", "− beaver"), "plum"),
)
STEPS = ("learn", "forget")


def draw() -> str:
    """The SVG text."""
    parts = []
    for number, (name, facts, colour) in enumerate(VERSIONS):
        x = 12 + number * (WIDTH + 80)
        parts += [
            box(x, 20, WIDTH, 92, radius=8, stroke=colour),
            text(x + 14, 46, name, bold=True, size=14),
            *(text(x + 14, 72 + 22 * row, fact, size=13) for row, fact in enumerate(facts)),
        ]
        if number:
            parts += [
                arrow((x - 76, 66), (x - 6, 66)),
                text(x - 41, 58, STEPS[number - 1], anchor="middle", size=13, colour="muted"),
            ]
    parts += [
        line([(12 + WIDTH / 2, 112), (12 + WIDTH / 2, 148)]),
        box(12, 148, WIDTH, 44, fill="none", stroke="line", radius=8),
        text(26, 175, "backbone, by its sha256", size=13, colour="muted"),
        text(12 + WIDTH + 24, 175, "the frozen weights are in no model file; every version names "
             "the same ones", size=13, colour="muted"),
    ]  # fmt: skip
    return picture(760, 204, parts)
