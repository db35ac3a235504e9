"""Accuracy on the first task after each task, of several methods side by side."""

from __future__ import annotations

from drawing import dot, line, measured, picture, text

METHODS = {
    "ridge": ("ridge", "teal"),
    "smope": ("SMoPE", "orange"),
    "ncm": ("nearest class mean", "blue"),
    "finetune": ("classifier fine-tuned in sequence", "plum"),
}
LEFT, RIGHT, TOP, BOTTOM = 60, 470, 40, 250
LOWEST = 0.5


def draw() -> str:
    """The SVG text."""
    matrices = measured()["accuracy_matrix"]
    parts = [text(LEFT, 20, "accuracy on task 1, in percent", size=13, colour="muted")]
    for percent in range(50, 101, 10):
        y = _y(percent / 100)
        parts += [
            line([(LEFT, y), (RIGHT, y)], width=0.6),
            text(LEFT - 8, y + 4, str(percent), size=12, anchor="end", colour="muted"),
        ]
    for task in range(5):
        parts.append(text(_x(task), BOTTOM + 20, f"task {task + 1}", size=12, anchor="middle",
                          colour="muted"))  # fmt: skip
    label_at = 0.0
    ordered = sorted(METHODS, key=lambda name: -matrices[name][-1][0])
    for name in ordered:
        label, colour = METHODS[name]
        values = [row[0] for row in matrices[name]]
        points = [(_x(task), _y(value)) for task, value in enumerate(values)]
        label_at = max(points[-1][1] + 5, label_at + 20)
        parts += [line(points, colour, width=2.5), *(dot(x, y, colour) for x, y in points)]
        parts.append(text(RIGHT + 14, label_at, f"{label} {100 * values[-1]:.1f}", colour=colour))
    return picture(760, BOTTOM + 32, parts)


def _x(task: int) -> float:
    return LEFT + 10 + task * (RIGHT - LEFT - 20) / 4


def _y(accuracy: float) -> float:
    return BOTTOM - (accuracy - LOWEST) / (1 - LOWEST) * (BOTTOM - TOP)
