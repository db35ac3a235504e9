"""Pretrains the small ViT that ships inside the package, on characters rendered from fonts.

    python benchmarks/pretrain_glyphs.py

This takes about a quarter of an hour on one CPU, and writes
smope/backbones/embedded/glyph_vit.safetensors. The task is to recognise printed characters of many
scripts, distorted as by handwriting and coarse scanning. Digits and the characters of the stream
`glyphs` are not among them (smope/streams/pixels/glyph_rendering.py). No image of a digit is used
for training or for choosing weights: the last weights are saved. The nearest-class-mean accuracy on
scikit-learn's handwritten digits at the end is only printed.

The same seed, machine and number of threads give the same file.

Shapes: B batch, M drawings, S = 48 pixels of a drawing, C width of the ViT.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import timm.layers
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from smope.streams.pixels.glyph_rendering import bitmap, pretraining_characters

ARCHITECTURE = "vit_tiny_patch16_224"
OPTIONS: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 4,
    "embed_dim": 128,
    "depth": 8,
    "num_heads": 4,
}
OUTPUT = (
    Path(__file__).resolve().parents[1]
    / "smope"
    / "backbones"
    / "embedded"
    / "glyph_vit.safetensors"
)
BANK_SIZE, INK_SIZE, IMAGE_SIZE = 48, 40, 32


def render_bank(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw every pretraining character once in every font face that has it.

    Returns:
        Bitmaps (M, S, S) in [0, 1], white ink on black, the longer side of the ink `INK_SIZE`;
        class ids (M,); and held out (M,), true for one drawing of each class, which is not trained
        on.
    """
    generator = np.random.default_rng(seed)
    images, labels, held_out = [], [], []
    for label, drawings in enumerate(pretraining_characters()):
        held_out_index = generator.integers(len(drawings))
        for index, (face, character) in enumerate(drawings):
            images.append(centred(bitmap(face, character)))
            labels.append(label)
            held_out.append(index == held_out_index)
    return (
        torch.from_numpy(np.stack(images)).float() / 255,
        torch.tensor(labels),
        torch.tensor(held_out),
    )


def centred(ink: np.ndarray) -> np.ndarray:
    """A cropped bitmap, its longer side scaled to `INK_SIZE`, centred in a `BANK_SIZE` square."""
    scale = INK_SIZE / max(ink.shape)
    width, height = (max(2, round(side * scale)) for side in ink.shape[::-1])
    canvas = Image.new("L", (BANK_SIZE, BANK_SIZE))
    scaled = Image.fromarray(ink).resize((width, height), Image.Resampling.BICUBIC)
    canvas.paste(scaled, ((BANK_SIZE - width) // 2, (BANK_SIZE - height) // 2))
    return np.asarray(canvas)


def uniform(generator: torch.Generator, count: int, low: float, high: float) -> Tensor:
    """Uniform random numbers from `low` to `high`, (count, 1, 1, 1): one for each image."""
    return torch.rand(count, 1, 1, 1, generator=generator) * (high - low) + low


def vary_stroke(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Vary the width of strokes, from half a pixel of erosion to two pixels of dilation.

    Args:
        images: (B, 1, S, S).
        strength: 0 to 1.
        generator: Draws the width for each image.
    """
    half = (len(images) + 1) // 2
    eroded = -F.max_pool2d(-images[:half], 3, 1, 1)
    thinner = torch.lerp(images[:half], eroded, uniform(generator, half, 0, 0.65 * strength))
    rest = images[half:]
    wider = F.max_pool2d(rest, 3, 1, 1)
    amount = uniform(generator, len(rest), 0, 2 * strength)
    thicker = torch.lerp(rest, wider, amount.clamp(max=1))
    thicker = torch.lerp(thicker, F.max_pool2d(wider, 3, 1, 1), (amount - 1).clamp(min=0))
    return torch.cat([thinner, thicker])


def warp(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Apply random affine maps and smooth elastic displacements.

    Args:
        images: (B, 1, S, S).
        strength: 0 to 1.
        generator: Draws a map and a displacement for each image.

    Returns:
        (B, 1, 32, 32).
    """
    count = len(images)
    angle, shear, stretch = (
        strength * uniform(generator, count, -width, width).flatten() for width in (0.3, 0.35, 0.3)
    )
    zoom = strength * uniform(generator, count, -0.2, 0.3).flatten()
    cos, sin = angle.cos(), angle.sin()
    across, down = torch.exp(zoom + stretch), torch.exp(zoom - stretch)  # above 1: smaller
    shift = strength * (torch.rand(2, count, generator=generator) - 0.5) * 0.3
    first = (cos * across, (shear * cos - sin) * down, shift[0])
    second = (sin * across, (shear * sin + cos) * down, shift[1])
    theta = torch.stack(first + second, dim=1).view(count, 2, 3)
    grid = F.affine_grid(theta, [count, 1, IMAGE_SIZE, IMAGE_SIZE], align_corners=False)
    coarse = torch.randn(count, 2, 5, 5, generator=generator) * uniform(
        generator, count, 0, 0.12 * strength
    )
    displacement = F.interpolate(coarse, size=IMAGE_SIZE, mode="bicubic", align_corners=True)
    return F.grid_sample(images, grid + displacement.permute(0, 2, 3, 1), align_corners=False)


def scan(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Scan each quarter of the batch differently: three coarsely (8 to 14 pixels), one sharply.

    Args:
        images: (B, 1, 32, 32).
        strength: 0 to 1.
        generator: Draws the resolutions and the blur.
    """
    parts = list(images.chunk(4))
    for index, sizes in enumerate(((8, 9), (8, 11), (10, 15))):
        size = int(torch.randint(*sizes, (), generator=generator))
        mode = ("bilinear", "bicubic")[int(torch.randint(2, (), generator=generator))]
        if float(torch.rand((), generator=generator)) < strength:
            coarse = F.interpolate(parts[index], size=size, mode="area")
            parts[index] = F.interpolate(coarse, size=IMAGE_SIZE, mode=mode, align_corners=False)
    blurred = F.avg_pool2d(F.pad(parts[3], (1, 1, 1, 1)), 3, 1)
    parts[3] = torch.lerp(parts[3], blurred, uniform(generator, len(blurred), 0, strength))
    return torch.cat(parts)


def expose(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Vary gain, tone curve, background and noise; up to one image in ten is inverted.

    Args:
        images: (B, 1, 32, 32) in [0, 1].
        strength: 0 to 1.
        generator: Draws the values for each image.
    """
    count = len(images)
    images = (
        images.clamp(1e-4, 1) ** uniform(generator, count, -0.5 * strength, 0.5 * strength).exp()
    )
    images = (images * uniform(generator, count, 1 - 0.3 * strength, 1 + 0.3 * strength)).clamp(
        0, 1
    )
    background = uniform(generator, count, -0.2, 0.2 * strength).clamp(min=0)
    images = background + (1 - background) * images
    images = images + torch.randn(images.shape, generator=generator) * uniform(
        generator, count, 0, 0.05 * strength
    )
    negative = uniform(generator, count, 0, 1) < 0.1 * strength
    return torch.where(negative, 1 - images, images).clamp(0, 1)


def as_input(images: Tensor) -> Tensor:
    """The backbone's input (B, 3, 32, 32), with mean = std = 0.5, of (B, 1, 32, 32) in [0, 1]."""
    return ((images - 0.5) / 0.5).expand(-1, 3, -1, -1)


def augment(images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """The whole augmentation of training.

    Parts of the batch get different strokes and scans, so the batch must be in random order.

    Args:
        images: (B, S, S), B at least 4.
        strength: 0 to 1.
        generator: Draws all random numbers.

    Returns:
        (B, 3, 32, 32), the backbone's input.
    """
    drawn = warp(vary_stroke(images[:, None], strength, generator), strength, generator)
    order = torch.randperm(len(drawn), generator=generator)
    seen = expose(scan(drawn[order], strength, generator), strength, generator)
    return as_input(seen[order.argsort()])


def initialise(model: nn.Module) -> None:
    """Set weights that keep the scale of a signal, and sines and cosines as position embeddings.

    timm's initial values (weights of 0.02, random positions) suit long schedules. Here most of the
    training passed before the class token depended on the image.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not model.head:
            nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
    side = OPTIONS["img_size"] // OPTIONS["patch_size"]
    frequencies = 4.0 ** -torch.linspace(0, 1, OPTIONS["embed_dim"] // 4)
    angles = torch.arange(side)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, C / 2)
    rows, columns = waves[:, None].expand(side, side, -1), waves[None, :].expand(side, side, -1)
    with torch.no_grad():
        model.pos_embed[0, 1:] = 0.3 * torch.cat([rows, columns], dim=2).flatten(0, 1)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """The rate in a step: linear warm-up over 200 steps, then half a cosine to peak / 100."""
    progress = max(0, step - 200) / max(1, steps - 200)
    return peak * min(1, (step + 1) / 200) * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)


def make_optimizer(modules: list[nn.Module]) -> torch.optim.Optimizer:
    """AdamW, with weight decay for matrices only."""
    parameters = [p for module in modules for p in module.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, fused=True)


def train(model: nn.Module, bank: Tensor, labels: Tensor, arguments: argparse.Namespace) -> None:
    """Train with cross-entropy; a class is drawn uniformly, then a drawing of it.

    Three things make it learn in minutes. The first `small_fraction` of the steps uses images of 16
    pixels, which have a quarter of the patches. Distortions grow over the first half of the steps.
    And a second classifier on the mean patch token, which is not saved, trains the blocks while the
    class token does not yet depend on the image.

    Args:
        model: A timm ViT with a classifier; changed in place.
        bank: (M, S, S), drawings.
        labels: (M,), their classes.
        arguments: Those of `parse_arguments`.
    """
    generator = torch.Generator().manual_seed(arguments.seed)
    sampling = 1 / torch.bincount(labels).double()[labels]
    pooled_head = nn.Linear(OPTIONS["embed_dim"], int(labels.max()) + 1)
    nn.init.trunc_normal_(pooled_head.weight, std=0.02)
    optimizer = make_optimizer([model, pooled_head])
    started, smooth_loss = time.perf_counter(), 0.0
    for step in range(arguments.steps):
        rows = torch.multinomial(
            sampling, arguments.batch_size, replacement=True, generator=generator
        )
        images = augment(bank[rows], min(1.0, 2 * (step + 1) / arguments.steps), generator)
        if step < arguments.small_fraction * arguments.steps:
            images = F.avg_pool2d(images, 2)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, arguments.steps, arguments.learning_rate)
        with torch.autocast("cpu", torch.bfloat16):
            tokens = model.forward_features(images)
            logits, pooled_logits = model.forward_head(tokens), pooled_head(tokens[:, 1:].mean(1))
        loss = F.cross_entropy(logits.float(), labels[rows])
        optimizer.zero_grad()
        (loss + F.cross_entropy(pooled_logits.float(), labels[rows])).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        smooth_loss += (loss.item() - smooth_loss) / min(step + 1, 100)
        if (step + 1) % 100 == 0:
            seconds = time.perf_counter() - started
            print(
                f"step {step + 1}/{arguments.steps}  loss {smooth_loss:.3f}  {seconds:.0f} s",
                flush=True,
            )


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images (M, 3, 32, 32) whose class, in labels (M,), is ranked first."""
    model.eval()
    hits = [
        (model(part).argmax(1) == truth)
        for part, truth in zip(images.split(256), labels.split(256), strict=True)
    ]
    return torch.cat(hits).float().mean().item()


@torch.no_grad()
def digits_by_class_mean(model: nn.Module) -> float:
    """Accuracy of the nearest class mean (cosine) on scikit-learn's digits, with an 80/20 split."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    scans, truth = load_digits(return_X_y=True)
    pixels = torch.from_numpy(scans).float().view(-1, 1, 8, 8) / 16
    images = as_input(F.interpolate(pixels, size=IMAGE_SIZE, mode="bilinear", align_corners=False))
    model.eval()
    features = torch.cat([model.forward_features(part)[:, 0] for part in images.split(256)])
    fit, test = train_test_split(
        np.arange(len(truth)), test_size=0.2, random_state=0, stratify=truth
    )
    truth = torch.from_numpy(truth)
    means = torch.stack([features[fit][truth[fit] == digit].mean(0) for digit in range(10)])
    guesses = (F.normalize(features[test], dim=1) @ F.normalize(means, dim=1).T).argmax(1)
    return (guesses == truth[test]).float().mean().item()


def save(model: nn.Module, path: Path, seed: int) -> str:
    """Write the backbone without its classifier.

    Args:
        model: The trained ViT.
        path: The file, replaced if it exists.
        seed: For the metadata.

    Returns:
        The sha256 of the file.
    """
    tensors = {
        key: value.contiguous()
        for key, value in model.state_dict().items()
        if not key.startswith("head.")
    }
    metadata = {
        "name": "glyph_vit",
        "architecture": ARCHITECTURE,
        "options": json.dumps(OPTIONS),
        "mean": json.dumps([0.5] * 3),
        "std": json.dumps([0.5] * 3),
        "seed": str(seed),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata)
    sort_metadata(path)
    path.chmod(0o644)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sort_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file, which the library writes in random order."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode().ljust(size)
    path.write_bytes(content[:8] + text + content[8 + size :])


def parse_arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument(
        "--small-fraction", type=float, default=0.85, help="first share of steps at 16 pixels"
    )
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Train, print accuracies, and write the file."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    timm.layers.set_fused_attn(False)  # the fused kernel is half as fast in bfloat16 on a CPU
    started = time.perf_counter()
    bank, labels, held_out = render_bank(arguments.seed)
    classes = int(labels.max()) + 1
    print(
        f"{classes} classes, {len(bank)} drawings, {int(held_out.sum())} of them held out",
        flush=True,
    )
    model = timm.create_model(ARCHITECTURE, num_classes=classes, dynamic_img_size=True, **OPTIONS)
    print(f"digits, nearest class mean, timm's random weights: {digits_by_class_mean(model):.4f}")
    initialise(model)
    print(
        f"digits, nearest class mean, our random weights:    {digits_by_class_mean(model):.4f}",
        flush=True,
    )
    model.train()
    train(model, bank[~held_out], labels[~held_out], arguments)
    generator = torch.Generator().manual_seed(arguments.seed + 1)
    plain = as_input(F.interpolate(bank[held_out][:, None], size=IMAGE_SIZE, mode="area"))
    print(f"held-out drawings, clean:     {accuracy(model, plain, labels[held_out]):.4f}")
    varied = augment(bank[held_out], 1.0, generator)
    print(f"held-out drawings, augmented: {accuracy(model, varied, labels[held_out]):.4f}")
    print(f"digits, nearest class mean, pretrained: {digits_by_class_mean(model):.4f}")
    print(f"sha256 {save(model, arguments.output, arguments.seed)}")
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
