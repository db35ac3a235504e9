"""Several processes that train one model, each with its share of every batch: what they exchange.

All of them draw the same batches, in the same order, and take consecutive shares, so that together
they compute what one process computes with the whole batch. A loss is a mean over images, plus
terms that no image has part in: the loss of a batch is the mean of its shares' losses, weighted by
their sizes, and so is its gradient (sum_gradients). What a method learns from images otherwise it
computes from the rows of all shares (gathered), in every process alike. What is trained is mostly
small: gradients go in one exchange after the backward pass, which needs to know nothing of several
forward passes, of hooks, or of parameters that a phase leaves alone.

Exchanges are collective: what one process calls, all must call, in the same order. In a single
process, or outside `joined`, each of them gives back what it was given, at no cost.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from smope.distributed import torchrun
from smope.errors import UserError

T = TypeVar("T")
# for one that reads or fetches a data set; torchrun itself ends all where one is gone
PATIENCE = timedelta(hours=6)
BACKEND = "cpu:gloo,cuda:nccl"
GONE = re.compile(
    r"closed by peer|reset by peer|Broken pipe|remote process (exited|has terminated)"
)
_alone = False


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Work together, in the block, with the other processes that torchrun has started; nothing
    where there are none.

    An error leaves the group as it is: the first to fail must say so (torchrun.py) before the
    others miss it.
    """
    if torchrun.world_size() == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(BACKEND if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield
    except BaseException as error:
        if threading.current_thread() is threading.main_thread():
            # torchrun ends all that are left: words come first
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        torchrun.first_to_fail()
        if isinstance(error, RuntimeError) and GONE.search(str(error)):
            raise ConnectionError(
                "another process of this run has ended without saying why, perhaps for lack of "
                "memory; resume the run"
            ) from error
        raise
    dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """A block in which this process exchanges nothing."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def world() -> int:
    """How many processes work together; 1 outside `joined`."""
    return (
        dist.get_world_size() if dist.is_available() and dist.is_initialized() and not _alone else 1
    )


def rank() -> int:
    return dist.get_rank() if world() > 1 else 0


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


@contextmanager
def in_turns() -> Iterator[None]:
    """A block that the first process of each machine is through with before the others begin: they
    find on disk what it has fetched or decoded.
    """
    if torchrun.local_rank() > 0:
        largest([0])  # whoever asks waits for all
    yield
    if torchrun.local_rank() == 0:
        largest([0])


def share(batch: list[T]) -> list[T]:
    """This process's part of a batch: consecutive, in the order of ranks, sizes that differ by one
    at most.
    """
    return batch[len(batch) * rank() // world() : len(batch) * (rank() + 1) // world()]


def gathered(rows: Tensor) -> Tensor:
    """The rows (n, ...) of all shares, in the order of the batch; without gradient."""
    return rows if world() == 1 else torch.cat(_all_rows(rows.detach()))


def whole_batch(rows: Tensor) -> Tensor:
    """As `gathered`, with gradient: for a loss that every process computes from the whole batch.

    A share's losses are weighted by its size; the gradient of its own rows makes up for that.
    """
    return rows if world() == 1 else _WholeBatch.apply(rows)


class _WholeBatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        shares = _all_rows(rows)
        ctx.first = sum(len(other) for other in shares[: rank()])
        ctx.own = len(rows)
        return torch.cat(shares)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad[ctx.first : ctx.first + ctx.own] * (len(grad) / ctx.own)


def _all_rows(rows: Tensor) -> list[Tensor]:
    """Each process's rows; filled up on the way, as collectives want equal sizes."""
    count = torch.tensor([len(rows)])
    counts = [torch.empty_like(count) for _ in range(world())]
    dist.all_gather(counts, count)
    sizes = [int(size) for size in counts]
    filled = rows.new_zeros(max(sizes), *rows.shape[1:])
    filled[: len(rows)] = rows
    shares = [torch.empty_like(filled) for _ in sizes]
    dist.all_gather(shares, filled)
    return [some[:size] for some, size in zip(shares, sizes, strict=True)]


def summed(tensor: Tensor) -> Tensor:
    """The sum of all processes' tensors, in place."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


@torch.no_grad()
def sum_gradients(
    parameters: Sequence[nn.Parameter], values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Make each gradient the sum over all processes; returns the sums of `values`. One exchange for
    all of it.

    A parameter that has a gradient nowhere is left without, as the optimizer then leaves it alone.
    """
    if world() == 1:
        return dict(values)
    like = parameters[0]
    there = like.new_tensor([float(parameter.grad is not None) for parameter in parameters])
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    head = torch.stack([value.to(like) for value in values.values()])
    flat = torch.cat([head, there, *(gradient.flatten() for gradient in gradients)])
    dist.all_reduce(flat)
    sizes = [len(head), len(there), *(parameter.numel() for parameter in parameters)]
    head, there, *parts = flat.split(sizes)
    for parameter, known, part in zip(parameters, there.tolist(), parts, strict=True):
        parameter.grad = part.view_as(parameter) if known else None
    return dict(zip(values, head.unbind(), strict=True))


def largest(numbers: Sequence[int]) -> list[int]:
    """Of each number the largest among all processes."""
    if world() == 1:
        return list(numbers)
    tensor = torch.tensor(numbers, dtype=torch.int64)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


def from_first(value: T) -> T:
    """The first process's value."""
    values = [value]
    if world() > 1:
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


@torch.no_grad()
def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Make each tensor bit for bit what it is in the first process."""
    if world() == 1:
        return
    for tensor in tensors:
        sent = tensor.contiguous()
        if sent.numel():
            # bytes: not every kind of number is known
            dist.broadcast(sent.reshape(-1).view(torch.uint8), src=0)
        if sent is not tensor:
            tensor.copy_(sent)


def require_same(facts: Mapping[str, str]) -> None:
    """UserError where a process has another value of one of these, by the key that the user can
    put it right with.
    """
    for key, value in facts.items():
        expected = from_first(value)
        odd, *_ = largest([rank() if value != expected else 0])
        if odd:
            raise UserError(
                f"{key}: what process {odd} has there is not what process 0 has; give all "
                f"machines the same files and "
                "the same versions of everything"
            )
