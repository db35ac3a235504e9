"""One data set divided in three ways."""

from __future__ import annotations

from drawing import box, measured, picture, scan, text

SIDE, GAP = 38, 6
DIVISIONS = (
    ("stream.num_tasks=5", "equal tasks", (2, 2, 2, 2, 2)),
    ("stream.classes_per_task=[6,2,2]", "a large first task", (6, 2, 2)),
)
LOOKS = (("ink", "card"), ("card", "blue"), ("orange", "card"))  # ink and ground of each domain


def draw() -> str:
    """The SVG text."""
    data = measured()
    pixels = {entry["digit"]: entry["pixels"] for entry in data["digits"]}
    order, parts, top = data["class_order"], [], 10.0
    for key, title, sizes in DIVISIONS:
        parts += _heading(top, key, title)
        x, first = 12.0, 0
        for size in sizes:
            parts.append(
                _task([pixels[digit] for digit in order[first : first + size]], x, top + 26)
            )
            x, first = x + size * (SIDE + GAP) + GAP + 18, first + size
        top += 100
    parts += _heading(top, "stream=domains", "the same classes, another look in each task")
    for number, (ink, ground) in enumerate(LOOKS):
        images = [pixels[digit] for digit in sorted(order)[:4]]
        parts.append(_task(images, 12 + number * 206, top + 26, ink, ground))
    return picture(760, int(top) + 90, parts)


def _heading(top: float, key: str, title: str) -> list[str]:
    return [text(12, top + 14, title, bold=True),
            text(748, top + 14, key, size=13, colour="muted", anchor="end")]  # fmt: skip


def _task(images: list, x: float, y: float, ink: str = "ink", ground: str = "card") -> str:
    width = len(images) * (SIDE + GAP) + GAP
    parts = [box(x, y, width, SIDE + 2 * GAP, fill="none", stroke="line", radius=6)]
    for number, pixels in enumerate(images):
        left = x + GAP + number * (SIDE + GAP)
        parts.append(scan(pixels, left, y + GAP, SIDE, colour=ink, frame=ground))
    return "".join(parts)
