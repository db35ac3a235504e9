"""A training step and a forward pass of the authors' code, from a checkout of it, for speed.py.

Nothing of it is copied: its modules are imported from the checkout and combined as its ViTZoo does,
optionally with the sizes of another ViT. As in that code, the backbone is not frozen, but left out
of the optimizer.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AuthorsProgram(nn.Module):
    """The ViT, prompts and classifier of the authors' code.

    Args:
        checkout: The folder of their repository.
        width: Of the ViT.
        heads: Of the ViT.
        num_experts: In each head.
        top_k: Experts chosen for each head and image.
        task: From 0; with 1 it runs with the prototypes of the first task.
    """

    def __init__(
        self, checkout: Path, *, width: int, heads: int, num_experts: int, top_k: int, task: int
    ) -> None:
        super().__init__()
        vit, zoo = _modules(checkout)
        self.feat = vit.VisionTransformer(
            img_size=224, patch_size=16, embed_dim=width, depth=12, num_heads=heads
        )
        parameters = [2 * num_experts, top_k, 1e-5, 1e-5, 0.4]
        self.prompt = zoo.OnePrompt(width, 10, parameters, key_dim=width, num_heads=heads)
        self.last = nn.Linear(width, 100)
        self.task, self.top_k, self.heads = task, top_k, heads
        if task > 0:
            self._use_experts()
        trained = [
            {"params": self.prompt.parameters(), "lr": 2.5e-2},
            {"params": self.last.parameters(), "lr": 5e-3},
        ]
        self.optimizer = torch.optim.AdamW(trained, weight_decay=0)

    def _use_experts(self) -> None:
        """Set counts as after a task, about half of them above the mean; begin the next task."""
        draw = torch.Generator().manual_seed(0)
        for name in list(vars(self.prompt)):
            if name.startswith("e_freq_"):
                setattr(self.prompt, name, int(torch.randint(9, (), generator=draw)))
        with redirect_stdout(StringIO()):
            self.prompt.process_task_count()

    def features(self, images: Tensor, *, train: bool) -> tuple[Tensor, Tensor]:
        """The CLS features (B, C) and the loss of the prompts, of images (B, 3, S, S)."""
        with _cuda_is_where_the_images_are(images):
            out, loss, _ = self.feat(
                images,
                prompt=self.prompt,
                train=train,
                task_id=self.task,
                topk=self.top_k,
                reduce_query=True,
            )
        return out[:, 0], loss

    def step(self, images: Tensor, labels: Tensor) -> Callable[[], None]:
        """A training step, ready to be called; labels (B,) are in 10·task to 10·task + 9."""

        def run() -> None:
            features, prompt_loss = self.features(images, train=True)
            logits = self.last(features)[:, : 10 * self.task + 10]
            logits[:, : 10 * self.task] = -float("inf")
            loss = F.cross_entropy(logits, labels) + prompt_loss.sum()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

        return run

    def inference(self, images: Tensor) -> Callable[[], None]:
        """A forward pass without gradients, ready to be called."""

        def run() -> None:
            with torch.no_grad():
                self.last(self.features(images, train=False)[0])

        return run


def _modules(checkout: Path) -> tuple[Any, Any]:
    sys.path.insert(0, str(checkout))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("models.vit"), importlib.import_module("models.zoo")
    finally:
        sys.path.remove(str(checkout))


@contextmanager
def _cuda_is_where_the_images_are(images: Tensor) -> Iterator[None]:
    """The authors' code always calls .cuda(); on a CPU this makes a copy instead."""
    if images.device.type == "cuda":
        yield
        return
    original = Tensor.cuda
    Tensor.cuda = lambda self, *_, **__: self.clone()
    try:
        yield
    finally:
        Tensor.cuda = original
