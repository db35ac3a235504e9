"""The licence of a backbone's weights, as timm records it."""

from __future__ import annotations

from typing import NamedTuple

EMBEDDED = "apache-2.0"  # the small ViT that ships with this package


class Origin(NamedTuple):
    """Where weights are from; each None where that is not known.

    Attributes:
        licence: as the Hugging Face Hub writes it.
        hub_id: their repository on the Hub.
    """

    licence: str | None
    hub_id: str | None


def origin(name: str, source: str) -> Origin:
    """Where the weights of a backbone are from.

    Args:
        name: the timm model with its tag.
        source: of BackboneIdentity. A file may hold other weights than those of the name, so that
            its licence is not known.
    """
    if source == "embedded":
        return Origin(EMBEDDED, None)
    if not source.startswith("hub:"):
        return Origin(None, None)
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name)
    if config is None:
        return Origin(None, None)
    return Origin(config.license, config.hf_hub_id)
