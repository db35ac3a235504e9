"""A ViT, a stream and settings so small that a test can train on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from smope.backbones.vit import Backbone, BackboneIdentity
from smope.methods.base import Method
from smope.streams.source import ImageSet, Source
from smope.streams.stream import Stream, build_stream
from smope.training.settings import TrainerSettings

torch.set_num_threads(1)

COLOURS = ((200, 60, 60), (60, 200, 60), (60, 60, 200), (190, 190, 60))


def tiny_vit(seed: int = 0, **options: Any) -> VisionTransformer:
    """A ViT of 32 pixels with random weights, depth 7, 2 heads of 16; draws nothing from torch's
    own generator.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = {
            "img_size": 32,
            "patch_size": 8,
            "embed_dim": 32,
            "depth": 7,
            "num_heads": 2,
            "num_classes": 0,
        }
        return shake(VisionTransformer(**{**sizes, "global_pool": "token", **options}))


def shake(vit: VisionTransformer) -> VisionTransformer:
    """Weights of the size that training gives them: timm's own start is so close to zero that
    little can be seen.
    """
    for name, parameter in vit.named_parameters():
        nn.init.normal_(
            parameter, mean=1.0 if "norm" in name and name.endswith("weight") else 0.0, std=0.2
        )
    return vit


class PassedImages:
    """Counts the images that pass through a method's network, until `close`. A copy of the method
    counts its own.
    """

    def __init__(self, method: Method) -> None:
        self.images = 0
        self.close = method.backbone.vit.patch_embed.register_forward_hook(self._note).remove

    def _note(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.images += len(output)

    def during(self, call: Callable[..., Any], counts: list[int]) -> Callable[..., Any]:
        """The same function; each call of it adds its number of images to `counts`."""

        def counted(*arguments: Any) -> Any:
            before = self.images
            result = call(*arguments)
            counts.append(self.images - before)
            return result

        return counted


def tiny_backbone(seed: int = 0, **options: Any) -> Backbone:
    """tiny_vit frozen, with the pixel statistics mean = std = 0.5."""
    return frozen(tiny_vit(seed, **options))


def frozen(vit: VisionTransformer, mean: float = 0.5, std: float = 0.5) -> Backbone:
    return Backbone(vit, BackboneIdentity("tiny", "random", "0" * 64, (mean,) * 3, (std,) * 3))


def tiny_source(classes: int = 4, train: int = 12, test: int = 5) -> Source:
    """Images of 32 pixels, a noisy colour for each class; `train` and `test` images of each."""
    draw = numpy.random.default_rng(0)

    def images(number: int) -> ImageSet:
        targets = [index % classes for index in range(number * classes)]
        noise = draw.normal(0, 25, (len(targets), 32, 32, 3))
        pixels = numpy.clip(noise + numpy.array(COLOURS)[targets][:, None, None], 0, 255).astype(
            numpy.uint8
        )
        return ImageSet(targets, list(pixels))

    return Source("colours", tuple("abcdefgh"[:classes]), images(train), images(test))


# height and width; two are very long, so that the part of them that is shown is cut out
UNEVEN = [(32, 32), (48, 40), (33, 90), (360, 40), (40, 400), (32, 32)]


def uneven_source() -> Source:
    """Pictures of noise in several sizes, of four classes."""
    draw = numpy.random.default_rng(0)

    def images(number: int) -> ImageSet:
        shapes = [UNEVEN[index % len(UNEVEN)] for index in range(4 * number)]
        pixels = [draw.integers(0, 256, (*shape, 3), dtype=numpy.uint8) for shape in shapes]
        return ImageSet([index % 4 for index in range(4 * number)], pixels)

    return Source("uneven", tuple("abcd"), images(12), images(5))


def shades(source: Source, tasks: int = 2) -> Source:
    """The images of each class dealt out to so many domains, each darker than the one before."""

    def dealt(images: ImageSet) -> ImageSet:
        numbers = [index // len(source.class_names) % tasks for index in range(len(images))]
        pixels = [
            (image * (1 - 0.2 * n)).astype("uint8")
            for image, n in zip(images.images, numbers, strict=True)
        ]
        return replace(images, images=pixels, tasks=numbers)

    return Source(
        "shades", source.class_names, dealt(source.train), dealt(source.test), tuple("abc"[:tasks])
    )


def tiny_stream(
    seed: int = 0, num_tasks: int = 2, source: Source | None = None, **options: Any
) -> Stream:
    keys = {
        "class_order": "sorted",
        "classes_per_task": None,
        "crop_scale": None,
        "flip": False,
        "eval_crop": 1.0,
    }
    source = source or tiny_source()
    return build_stream(
        source, image_size=32, seed=seed, num_tasks=num_tasks, **{**keys, **options}
    )


def tiny_settings(**changes: Any) -> TrainerSettings:
    """Three steps an epoch on tiny_source: quick, and enough to learn it."""
    values = {
        "batch_size": 8,
        "eval_batch_size": 8,
        "epochs": 4,
        "dense_epochs": 1,
        "learning_rate": 1e-2,
        "frozen_steps": 0,
        "alignment_epochs": 3,
        "alignment_samples_per_class": 8,
        "alignment_learning_rate": 1e-3,
        "device": "cpu",
    }
    return TrainerSettings(**{**values, **changes})
