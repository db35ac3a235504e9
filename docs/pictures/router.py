"""The scores of the 25 experts of one head for one image, and the five that were chosen."""

from __future__ import annotations

from drawing import box, line, measured, picture, scan, text

DIGIT, BASE, TALL, STEP = 4, 190, 140, 21
LEFT = 150


def draw() -> str:
    """The SVG text."""
    data = measured()
    entry = data["digits"][DIGIT]
    low, high = min(entry["scores"]), max(entry["scores"])
    parts = [
        scan(entry["pixels"], 24, 76, 84),
        text(66, 182, "an image", size=13, colour="muted", anchor="middle"),
        text(LEFT, 24, "score of each expert: its key times the mean query of the image", size=13,
             colour="muted"),
        line([(LEFT, BASE), (LEFT + 25 * STEP, BASE)]),
    ]  # fmt: skip
    for expert, score in enumerate(entry["scores"]):
        tall = 8 + (score - low) / (high - low) * (TALL - 8)
        chosen = expert in entry["experts"]
        x = LEFT + 3 + expert * STEP
        parts += [
            box(x, BASE - tall, STEP - 6, tall, fill="orange" if chosen else "line", radius=2),
            text(x + (STEP - 6) / 2, BASE + 16, str(expert + 1), size=10, anchor="middle",
                 colour="orange" if chosen else "muted", bold=chosen),
        ]  # fmt: skip
    words = f"the {len(entry['experts'])} best are used (top_k)"
    parts.append(text(LEFT, BASE + 40, words, colour="orange", bold=True))
    words = f"head {data['head'] + 1} of block {data['block'] + 1}"
    parts.append(text(LEFT + 25 * STEP, BASE + 40, words, size=13, anchor="end", colour="muted"))
    return picture(760, BOTTOM, parts)


BOTTOM = BASE + 52
