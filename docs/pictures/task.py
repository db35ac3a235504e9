"""Tasks come one after the other; after each the model chooses among all classes seen so far."""

from __future__ import annotations

from drawing import arrow, box, line, measured, picture, scan, text

WIDTH, GAP, SIDE = 124, 24, 48
SEEN = 3


def draw() -> str:
    """The SVG text."""
    data = measured()
    pixels = {entry["digit"]: entry["pixels"] for entry in data["digits"]}
    order = data["class_order"]
    parts = []
    for task in range(5):
        x = 12 + task * (WIDTH + GAP)
        parts += [
            text(x + WIDTH / 2, 22, f"task {task + 1}", anchor="middle", bold=True),
            box(x, 32, WIDTH, 70, radius=8, stroke="orange" if task == SEEN - 1 else "none"),
        ]
        for place, digit in enumerate(order[2 * task : 2 * task + 2]):
            parts.append(scan(pixels[digit], x + 10 + place * 56, 43, SIDE, frame="card"))
        if task < 4:
            parts.append(arrow((x + WIDTH + 3, 67), (x + WIDTH + GAP - 3, 67)))
    right = 12 + SEEN * (WIDTH + GAP) - GAP
    accuracy = data["accuracy_matrix"]["smope"][SEEN - 1]
    mean = 100 * sum(accuracy) / len(accuracy)
    parts += [
        line([(12, 116), (12, 126), (right, 126), (right, 116)], "orange", width=2),
        text(12, 150, f"after task {SEEN}: tested on all six digits seen, without their task, "
             f"{mean:.1f} % are right", size=14),
        text(12, 172, "the training images of tasks 1 and 2 are gone", size=13, colour="muted"),
    ]  # fmt: skip
    return picture(760, 184, parts)
