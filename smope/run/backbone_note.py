"""A line for those who are about to train photographs on the ViT of printed characters."""

from __future__ import annotations

from smope.config.config import Config

CHARACTER_STREAMS = ("digits", "glyphs")  # what the embedded backbone is meant for


def backbone_note(config: Config) -> str:
    """That the embedded backbone was trained on characters, and which others there are; "" where
    another backbone is chosen or the stream consists of characters.
    """
    is_embedded = config.backbone.get("weights") == "embedded"
    if not is_embedded or config.stream["name"] in CHARACTER_STREAMS:
        return ""
    pixels = config.backbone.get("image_size")
    return (
        f"backbone: the small ViT that ships with smope was trained on printed characters and "
        f"sees {pixels} pixels a side; for photographs choose another, such as backbone=sup21k "
        "(downloaded from the Hub, or backbone.weights=FILE)"
    )
