"""How features of old classes move while a network goes on learning, estimated from the images of
the current task, and class Gaussians carried along.

`before` and `after` are features of the same images, before and after a task was learned. Nothing
here knows a method: all are functions of tensors.

Shapes: n images, C features, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH, LEARNING_RATE, LAST_RATE = 32, 1e-3, 5e-4  # of fit_weakly_nonlinear, as in SLDC's code


def semantic_shift(before: Tensor, after: Tensor, means: Tensor, width: float) -> Tensor:
    """The shift of each class mean: the mean shift of images, weighted by how close their earlier
    features were to it.

    The weight of an image is exp(-|before - mean|² / (2·width²)) + 1e-5. Source: SDC (Yu et al.
    2020, arXiv 2004.00440), with the constant of SSIAT's code, so that a mean without an image
    nearby moves with all images.

    Args:
        before: (n, C).
        after: (n, C).
        means: (K, C), in the space of `before`.
        width: of the Gaussian; with the features of a ViT-B most weights are 1e-5 for 1.

    Returns:
        (K, C), to be added to `means`.
    """
    # the direct way: a distance from products cancels badly
    distances = torch.cdist(means, before, compute_mode="donot_use_mm_for_euclid_dist")
    weights = (-distances.square() / (2 * width**2)).exp() + 1e-5
    return weights @ (after - before) / weights.sum(-1, keepdim=True)


def linear_map(before: Tensor, after: Tensor, penalty: float, patience: float) -> Tensor:
    """The matrix A of SLDC, which carries a mean m to m·A and a covariance S to Aᵀ·S·A.

    A = (1 - w)·(XᵀX + penalty·I)^-1·XᵀY + w·I, where X and Y are `before` and `after` with rows of
    length 1, and w = exp(-n / (patience·C)): few images leave it near the identity.

    Args:
        before: (n, C).
        after: (n, C).
        penalty: of the ridge regression, gamma_1.
        patience: alpha_temp; how many images are needed, in units of C.

    Returns:
        (C, C).
    """
    x, y = F.normalize(before, dim=-1), F.normalize(after, dim=-1)
    images, features = x.shape
    identity = torch.eye(features, dtype=x.dtype, device=x.device)
    fitted = torch.linalg.solve(x.T @ x + penalty * identity, x.T @ y)
    stay = math.exp(-images / (patience * features))
    return (1 - stay) * fitted + stay * identity


def moved(features: Tensor, before: Tensor, after: Tensor, penalty: float) -> Tensor:
    """Features of other images after a task, by an affine map fitted to the images of the task.

    x becomes x + mean(D) + (x - mean(before))·P, where D = after - before, and P is the ridge
    regression of D on `before`, both centred: P = (XᵀX + penalty·u·I)^-1·XᵀD, with u the mean of
    the eigenvalues of XᵀX. A large penalty leaves the mean shift alone. The idea is feature
    adaptation (Iscen et al. 2020, arXiv 2004.00713), where a network takes the place of the map.

    Args:
        features: (m, C), in the space of `before`.
        before: (n, C).
        after: (n, C).
        penalty: 0 or more; infinity: the mean shift alone.

    Returns:
        (m, C).
    """
    centre, drift = before.mean(0), after - before
    shift = drift.mean(0)
    x = before - centre
    system = x.T @ x
    unit = system.diagonal().mean()
    if math.isinf(penalty) or not unit > 0:
        return features + shift
    system.diagonal().add_(penalty * unit)
    return (
        features + shift + (features - centre) @ torch.linalg.solve(system, x.T @ (drift - shift))
    )


class WeaklyNonlinearMap(nn.Module):
    """SLDC's weakly nonlinear map: w0·x + w1·x·A + w2·MLP(x) on the direction of a feature, whose
    length stays.

    The weights are a softmax of three learned numbers, A starts as the identity, and the MLP has
    one hidden layer of C units.

    Args:
        width: C.
        generator: on the CPU, for the initial weights of the MLP.
    """

    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__()
        bound = width**-0.5
        self.mix = nn.Parameter(torch.tensor([1.0, 0.0, 0.0]))
        self.linear = nn.Parameter(torch.eye(width))
        drawn = [
            torch.empty(shape).uniform_(-bound, bound, generator=generator)
            for shape in ((width, width), (width,), (width, width), (width,))
        ]
        self.inner, self.inner_bias, self.outer, self.outer_bias = map(nn.Parameter, drawn)

    def forward(self, features: Tensor) -> Tensor:
        """features (n, C) -> (n, C)."""
        length = features.norm(dim=-1, keepdim=True)
        return length * self.turned(F.normalize(features, dim=-1))

    def turned(self, x: Tensor) -> Tensor:
        """Directions (n, C) -> (n, C)."""
        stay, turn, bend = self.mix.softmax(0)
        hidden = (x @ self.inner + self.inner_bias).relu()
        return stay * x + turn * (x @ self.linear) + bend * (hidden @ self.outer + self.outer_bias)

    def nonlinearity(self) -> Tensor:
        """(w0 + w1 - 1)², a scalar."""
        return (self.mix.softmax(0)[:2].sum() - 1).square()


def fit_weakly_nonlinear(
    before: Tensor, after: Tensor, penalty: float, steps: int, seed: int
) -> WeaklyNonlinearMap:
    """Fit the map by Adam: mean squared error on batches of 32 images, plus penalty·(w0 + w1 - 1)².

    (SLDC's code computes the penalty and leaves it out of the gradient; its paper has it.) The rate
    follows a cosine from 1e-3 to 5e-4.

    Args:
        before: (n, C).
        after: (n, C).
        penalty: gamma_2.
        steps: 5000 in SLDC's code.
        seed: fixes initial weights and batches.

    Returns:
        The map, without gradient.
    """
    generator = torch.Generator().manual_seed(seed)
    fitted = WeaklyNonlinearMap(before.shape[1], generator).to(before)
    x, y = F.normalize(before, dim=-1), F.normalize(after, dim=-1)
    batches = torch.randint(len(x), (steps, min(BATCH, len(x))), generator=generator).to(x.device)
    optimizer = torch.optim.Adam(fitted.parameters(), lr=LEARNING_RATE, fused=True)
    with torch.enable_grad():
        for step, rows in enumerate(batches):
            share = (1 + math.cos(math.pi * step / steps)) / 2
            optimizer.param_groups[0]["lr"] = LAST_RATE + share * (LEARNING_RATE - LAST_RATE)
            error = F.mse_loss(fitted.turned(x[rows]), y[rows])
            optimizer.zero_grad()
            (error + penalty * fitted.nonlinearity()).backward()
            optimizer.step()
    return fitted.requires_grad_(False)


def carried_by_samples(
    map_features: Callable[[Tensor], Tensor], mean: Tensor, root: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of a Gaussian after a map that is not linear, estimated from samples.

    Args:
        map_features: (n, C) -> (n, C).
        mean: (C,).
        root: R with R·Rᵀ the covariance, (C, C).
        noise: standard normal numbers (n, C).

    Returns:
        (C,) and (C, C).
    """
    samples = map_features(mean + noise @ root.T)
    return samples.mean(0), samples.T.cov(correction=0)
