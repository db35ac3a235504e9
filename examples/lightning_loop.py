"""Any method in a Lightning module: scanned digits, five new ones a task, one Trainer.fit a task.

    pip install lightning && python examples/lightning_loop.py

It needs no download and takes some seconds on two CPU cores.
"""

from __future__ import annotations

import lightning
import torch
from plain_pytorch import EPOCHS, accuracy, digits, of
from torch.optim import Optimizer

import smope

TASKS = [(0, 1, 2, 3, 4), (5, 6, 7, 8, 9)]


class ContinualModule(lightning.LightningModule):
    """One task for each call of Trainer.fit: begin_task before it, end_task after it."""

    def __init__(self, learner: smope.Learner, lr: float) -> None:
        super().__init__()
        self.learner = learner
        self.lr = lr

    def configure_optimizers(self) -> Optimizer | None:
        """A new optimizer for each task; None where the method takes no steps."""
        if not self.learner.trains:
            return None
        return torch.optim.AdamW(self.learner.parameter_groups(self.lr))

    def on_train_epoch_start(self) -> None:
        """Some methods change from epoch to epoch."""
        self.learner.begin_epoch(self.current_epoch)

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor | None:
        """The loss of a batch; Lightning steps and zeroes gradients. Its parts are logged."""
        if not self.learner.trains:
            return None
        losses = self.learner.losses(*batch)
        self.log_dict(losses)
        return torch.stack(list(losses.values())).sum()


def main() -> list[float]:
    """Learn both tasks; the accuracies on each of them at the end."""
    train, test = digits("train"), digits("test")
    lightning.seed_everything(0, verbose=False)
    module = ContinualModule(smope.SMoPE(backbone="glyph_vit", num_classes=10, seed=0), lr=5e-3)
    for classes in TASKS:
        loader = of(classes, *train)
        module.learner.begin_task(classes)
        trainer = lightning.Trainer(
            max_epochs=EPOCHS,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loader)
        module.learner.end_task(loader, alignment_learning_rate=1e-3)
    accuracies = [accuracy(module.learner, of(classes, *test)) for classes in TASKS]
    print("  ".join(f"{value:.3f}" for value in accuracies))
    return accuracies


if __name__ == "__main__":
    main()
