"""The graph of a trained model: images -> logits of the classes seen, for other programs.

Routing is part of the graph, and so are the pixel statistics of the backbone. It computes in
float32, whatever the run's own precision was.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smope.methods.base import Method
from smope.serving.resize_graph import ResizeAndCrop
from smope.streams.pixels.transforms import Evaluation


class Graph(nn.Module):
    """What is exported.

    Args:
        method: In evaluation mode, in float32 and on the CPU.
        num_classes: Classes seen; the method's logits of later ones are cut off.
        transform: Resizes and crops within the graph; None: whoever runs the graph does that.
    """

    def __init__(self, method: Method, num_classes: int, transform: Evaluation | None) -> None:
        super().__init__()
        self.method = method
        self.num_classes = num_classes
        self.preprocessing = None if transform is None else ResizeAndCrop(transform)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes seen) of images.

        Args:
            images: (B, 3, S, S) float32 in [0, 1]; with preprocessing (B, H, W, 3) uint8.
        """
        if self.preprocessing is not None:
            images = self.preprocessing(images)
        return self.method(images)[:, : self.num_classes]

    def example(self, side: int, batch: int = 2) -> Tensor:
        """Drawn images in the shape that `forward` takes, others for each size of a batch.

        Args:
            side: S.
            batch: Images.
        """
        draw = torch.Generator().manual_seed(batch)
        if self.preprocessing is None:
            return torch.rand(batch, 3, side, side, generator=draw)
        shape = (batch, side + 5, side + 3, 3)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)
