"""SMoPE in a plain PyTorch loop: scanned digits, two new ones a task, on the ViT of the package.

    python examples/plain_pytorch.py

It needs no download and takes some seconds on two CPU cores.
"""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader, TensorDataset

import smope
from smope.streams.digits import load

EPOCHS, IMAGES_OF_A_CLASS = 3, 40
TASKS = [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]


def digits(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, 3, 32, 32) in [0, 1], and their class ids (n,)."""
    images = getattr(load(), split)
    chosen = range(min(len(images), 10 * IMAGES_OF_A_CLASS))
    pixels = torch.stack([torch.from_numpy(images.pixels(index)) for index in chosen])
    return pixels.permute(0, 3, 1, 2) / 255, torch.tensor([images.targets[i] for i in chosen])


def of(
    classes: tuple[int, ...], images: torch.Tensor, labels: torch.Tensor, batch_size: int = 32
) -> DataLoader:
    """The images of some classes, in batches."""
    chosen = torch.isin(labels, torch.tensor(classes))
    return DataLoader(TensorDataset(images[chosen], labels[chosen]), batch_size, shuffle=True)


def accuracy(learner: smope.Learner, loader: DataLoader) -> float:
    """The share of images that are classified right, all classes so far competing."""
    right = [learner.predict(images) == labels for images, labels in loader]
    return torch.cat(right).double().mean().item()


def main() -> list[float]:
    """Learn all tasks; the accuracies on each of them at the end."""
    train, test = digits("train"), digits("test")
    learner = smope.SMoPE(backbone="glyph_vit", num_classes=10, seed=0)
    torch.manual_seed(0)
    for number, classes in enumerate(TASKS, start=1):
        loader = of(classes, *train)
        learner.begin_task(classes)
        for phase in learner.phases(EPOCHS):
            optimizer = torch.optim.AdamW(learner.parameter_groups(lr=5e-3))
            steps = phase.epochs * len(loader)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            for images, labels in (batch for _ in learner.epochs() for batch in loader):
                optimizer.zero_grad()
                learner.loss(images, labels).backward()
                optimizer.step()
                schedule.step()
        learner.end_task(loader, alignment_learning_rate=1e-3)
        accuracies = [accuracy(learner, of(task, *test)) for task in TASKS[:number]]
        print(f"task {number}: " + "  ".join(f"{value:.3f}" for value in accuracies))
    return accuracies


if __name__ == "__main__":
    main()
