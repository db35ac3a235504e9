"""What several processes exchange that train one model, each with its share of every batch.

All processes draw the same batches in the same order and take consecutive shares. Together they
compute what one process computes with the whole batch:

* A loss is a mean over images plus terms that do not depend on images. The loss of a batch is the
  mean of its shares' losses, weighted by their sizes, and so is its gradient (sum_gradients).
* What a method learns from images otherwise, every process computes from the rows of all shares
  (gathered).

What is trained is mostly small, so all gradients go in one exchange after the backward pass. That
works with several forward passes, with hooks, and with parameters that a phase does not train.

Exchanges are collective: what one process calls, all must call, in the same order. In a single
process, or outside `joined`, each function returns its argument at no cost.
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
# Long enough for a process that downloads or decodes a data set. If a process dies, torchrun ends
# the others.
EXCHANGE_TIMEOUT = timedelta(hours=6)
BACKEND = "cpu:gloo,cuda:nccl"
LOST_PEER = re.compile(
    r"closed by peer|reset by peer|Broken pipe|remote process (exited|has terminated)"
)
_alone = False


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Work together with the other processes of torchrun, if there are any, until the block ends.

    An error does not close the group, so that the first process to fail can say so (torchrun.py)
    before the others notice that it is missing.
    """
    if torchrun.world_size() == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(BACKEND if device.type == "cuda" else "gloo", timeout=EXCHANGE_TIMEOUT)
    try:
        yield
    except BaseException as error:
        if threading.current_thread() is threading.main_thread():
            # torchrun ends the other processes with SIGTERM; the message must come first.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        torchrun.first_to_fail()
        if isinstance(error, RuntimeError) and LOST_PEER.search(str(error)):
            raise ConnectionError(
                "another process of this run has ended without saying why, perhaps for lack of "
                "memory; resume the run"
            ) from error
        raise
    dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """A block in which this process computes without the others and exchanges nothing."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def world() -> int:
    """How many processes work together; 1 outside `joined`."""
    together = dist.is_available() and dist.is_initialized() and not _alone
    return dist.get_world_size() if together else 1


def rank() -> int:
    """The number of this process among them."""
    return dist.get_rank() if world() > 1 else 0


def is_first() -> bool:
    """Whether this process writes and prints."""
    return rank() == 0


@contextmanager
def in_turns() -> Iterator[None]:
    """A block that the first process of each machine finishes before the others begin, so that they
    find on disk what it has downloaded or decoded.
    """
    if torchrun.local_rank() > 0:
        largest([0])  # an exchange waits for all processes
    yield
    if torchrun.local_rank() == 0:
        largest([0])


def share(batch: list[T]) -> list[T]:
    """This process's share of a batch: consecutive, in the order of ranks. Sizes differ by at most
    one.
    """
    return batch[len(batch) * rank() // world() : len(batch) * (rank() + 1) // world()]


def gathered(rows: Tensor) -> Tensor:
    """The rows (n, ...) of all shares, in the order of the batch, without gradient."""
    return rows if world() == 1 else torch.cat(_all_rows(rows.detach()))


def whole_batch(rows: Tensor) -> Tensor:
    """Like `gathered`, with gradient: for a loss that every process computes from the whole batch.

    The losses of a share are later weighted by its size. The gradient of its rows is scaled to
    compensate.
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
    """The rows of each process; padded for the exchange, which needs equal sizes."""
    count = torch.tensor([len(rows)])
    counts = [torch.empty_like(count) for _ in range(world())]
    dist.all_gather(counts, count)
    sizes = [int(size) for size in counts]
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    shares = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(shares, padded)
    return [share[:size] for share, size in zip(shares, sizes, strict=True)]


def summed(tensor: Tensor) -> Tensor:
    """The sum of all processes' tensors, in place."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


@torch.no_grad()
def sum_gradients(
    parameters: Sequence[nn.Parameter], values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Replace each gradient by its sum over all processes, in one exchange.

    A parameter without a gradient in any process gets none, so that the optimizer skips it.

    Args:
        parameters: what is trained.
        values: scalars to sum in the same exchange, by name.

    Returns:
        The sums of `values`.
    """
    if world() == 1:
        return dict(values)
    like = parameters[0]
    has_grad = like.new_tensor([float(parameter.grad is not None) for parameter in parameters])
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    head = torch.stack([value.to(like) for value in values.values()])
    flat = torch.cat([head, has_grad, *(gradient.flatten() for gradient in gradients)])
    dist.all_reduce(flat)
    sizes = [len(head), len(has_grad), *(parameter.numel() for parameter in parameters)]
    head, has_grad, *sums = flat.split(sizes)
    for parameter, exists, gradient in zip(parameters, has_grad.tolist(), sums, strict=True):
        parameter.grad = gradient.view_as(parameter) if exists else None
    return dict(zip(values, head.unbind(), strict=True))


def largest(numbers: Sequence[int]) -> list[int]:
    """The largest value of each number over all processes."""
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
    """Make each tensor bit-equal to that of the first process."""
    if world() == 1:
        return
    for tensor in tensors:
        sent = tensor.contiguous()
        if sent.numel():
            # As bytes, since the backends do not know every dtype.
            dist.broadcast(sent.reshape(-1).view(torch.uint8), src=0)
        if sent is not tensor:
            tensor.copy_(sent)


def require_same(facts: Mapping[str, str]) -> None:
    """Check that all processes have the same values.

    `facts` maps the key that the user can change to the value. UserError if a process has another
    value.
    """
    for key, value in facts.items():
        expected = from_first(value)
        [other] = largest([rank() if value != expected else 0])
        if other:
            raise UserError(
                f"{key}: what process {other} has there is not what process 0 has; give all "
                f"machines the same files and the same versions of everything"
            )
