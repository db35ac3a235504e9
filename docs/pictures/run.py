"""The accuracy matrix of one run, and how scores are read from it."""

from __future__ import annotations

from drawing import box, measured, picture, text

LEFT, TOP, WIDTH, HEIGHT = 110, 52, 74, 34


def draw() -> str:
    """The SVG text."""
    matrix = measured()["accuracy_matrix"]["smope"]
    parts = [text(LEFT + 2.5 * WIDTH, 20, "accuracy on the test images of", anchor="middle",
                  size=13, colour="muted")]  # fmt: skip
    parts += [
        text(LEFT + (task + 0.5) * WIDTH, 42, f"task {task + 1}", size=13, anchor="middle")
        for task in range(5)
    ]
    for row, values in enumerate(matrix):
        y = TOP + row * HEIGHT
        parts.append(text(LEFT - 12, y + 22, f"after task {row + 1}", size=13, anchor="end"))
        for column, value in enumerate(values):
            parts += _cell(column, y, value)
    y = TOP + 4 * HEIGHT
    parts.append(box(LEFT, y, 5 * WIDTH - 3, HEIGHT - 3, fill="none", stroke="orange"))
    return picture(760, TOP + 5 * HEIGHT + 14, [*parts, *_scores(matrix)])


def _cell(column: int, y: float, value: float) -> list[str]:
    x = LEFT + column * WIDTH
    opacity = 0.08 + 0.5 * max(0.0, (value - 0.85) / 0.15)
    return [
        box(x, y, WIDTH - 3, HEIGHT - 3, fill="blue", opacity=opacity),
        text(x + WIDTH / 2, y + 21, f"{100 * value:.1f}", size=13, anchor="middle"),
    ]


def _scores(matrix: list[list[float]]) -> list[str]:
    x, last = LEFT + 5 * WIDTH + 24, matrix[-1]
    final = sum(last) / 5
    best = [max(matrix[row][task] for row in range(task, 4)) for task in range(4)]
    forgetting = sum(before - after for before, after in zip(best, last, strict=False)) / 4
    learned = sum(matrix[task][task] for task in range(5)) / 5
    return [
        text(x, TOP + 22, f"learning accuracy {100 * learned:.1f}", bold=True),
        text(x, TOP + 42, "mean of the diagonal", size=13, colour="muted"),
        text(x, TOP + 76, f"forgetting {100 * forgetting:.1f}", bold=True),
        text(x, TOP + 96, "best of a column minus its last", size=13, colour="muted"),
        text(x, TOP + 4 * HEIGHT + 12, f"final average accuracy {100 * final:.1f}", bold=True,
             colour="orange"),
        text(x, TOP + 4 * HEIGHT + 31, "mean of the last row", size=13, colour="muted"),
    ]  # fmt: skip
