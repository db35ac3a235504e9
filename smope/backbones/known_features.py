"""Features of the batch of images that is in use, so that nobody computes them a second time.

Shapes: B batch, C width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class KnownFeatures:
    """CLS features by the frozen backbone, with nothing put into it.

    Attributes:
        images: the batch, (B, 3, S, S).
        features: (B, C); None until they are computed.
    """

    images: Tensor
    features: Tensor | None = None

    def of(self, images: Tensor) -> Tensor | None:
        """The features of the batch or of a part of it; None if they are not known."""
        rows = rows_within(images, self.images)
        return None if rows is None or self.features is None else self.features[rows]

    def note(self, images: Tensor, features: Tensor) -> None:
        """Remember the features of the whole batch; those of anything else are not needed.

        Args:
            images: what they are of.
            features: their features.
        """
        if images is self.images:
            self.features = features


def rows_within(part: Tensor, whole: Tensor) -> slice | None:
    """Find the rows of a batch that a tensor holds.

    Args:
        part: perhaps some consecutive rows of the batch, as Tensor.split gives.
        whole: the batch.

    Returns:
        The rows; None if `part` is anything else.
    """
    if part is whole:
        return slice(0, len(whole))
    same = part.dtype == whole.dtype and part.device == whole.device
    if not same or part.shape[1:] != whole.shape[1:] or part.stride() != whole.stride():
        return None
    row_bytes = max(1, whole.stride(0) * whole.element_size())
    first, rest = divmod(part.data_ptr() - whole.data_ptr(), row_bytes)
    if rest or not 0 <= first <= len(whole) - len(part):
        return None
    return slice(first, first + len(part))
