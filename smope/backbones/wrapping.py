"""Wrappers around a timm ViT's blocks or parts of them, and how they are put in and taken out.

A part is named by its path in the block: the attention `attn`, its projection `attn.qkv`, `mlp`, or
one of the linear layers of that, `mlp.fc1` and `mlp.fc2`; the whole block is `block`.

Shapes: B batch, N tokens, C width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, cast

from timm.models.vision_transformer import Attention, VisionTransformer  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn

from smope.backbones.held import is_linear
from smope.errors import UserError

Part = Literal["block", "attn", "attn.qkv", "mlp", "mlp.fc1", "mlp.fc2"]
# A block comes before what is in it.
PARTS: tuple[Part, ...] = ("block", "attn", "attn.qkv", "mlp", "mlp.fc1", "mlp.fc2")


class Wrapper(nn.Module):
    """Stands where `layer`, a part of a block, was, and keeps it unchanged.

    Attributes:
        token_by_token: its output for a token does not depend on the other tokens.
    """

    token_by_token: bool = False

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer


class AttentionWrapper(Wrapper):
    """Stands where the attention of a block was; subclasses define `attended`."""

    @property
    def attention(self) -> Attention:
        """The wrapped attention."""
        return cast(Attention, self.layer)

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """x (B, N, C) -> (B, N, C). UserError for the masks that timm's blocks may pass."""
        if attn_mask is not None or is_causal:
            raise UserError(
                "attn_mask / is_causal: a block with prompts attends to all tokens; pass neither"
            )
        return self.attended(x)

    def attended(self, x: Tensor) -> Tensor:
        """x (B, N, C) -> (B, N, C)."""
        raise TypeError(f"{type(self).__name__} does not define attended(x)")


class BlockWrapper(Wrapper):
    """Stands where a block was, and changes each token of its output by itself."""

    def after(self, x: Tensor) -> Tensor:
        """The block's output (B, R, C), for all tokens or the first ones -> (B, R, C)."""
        raise TypeError(f"{type(self).__name__} does not define after(x)")

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, C) -> (B, N, C). backbones/forward.py computes the same with fewer rows."""
        return self.after(self.layer(x))


W = TypeVar("W", bound=Wrapper)


def plain_attention(attention: object, where: str) -> Attention:
    """`attention` itself if prompts can join it.

    Args:
        attention: The module of a block.
        where: Its place, for the error message.

    Raises:
        UserError: It is not timm's plain Attention.
    """
    if type(attention) is not Attention:
        raise UserError(
            f"backbone: {where} is a {type(attention).__name__}; prompts need timm's plain "
            f"Attention (one qkv "
            "projection, softmax over all tokens, no rotary positions); choose a plain ViT such "
            "as vit_base_patch16_224"
        )
    return attention


def wrap(
    vit: VisionTransformer,
    blocks: Sequence[int],
    make: Callable[[Any], W],
    key: str = "method.blocks",
    part: Part = "attn",
) -> list[W]:
    """Wrap a part of some blocks of a timm ViT.

    Args:
        vit: Changed in place.
        blocks: Numbers of the blocks, from 0.
        make: Builds the wrapper of a part.
        key: The configuration key that lists the blocks, for error messages.
        part: Which part of each block.

    Returns:
        The wrappers, in the order of `blocks`.

    Raises:
        UserError: A block does not exist, is listed twice, is already wrapped, or has a part that
            cannot be wrapped. The ViT is then unchanged.
    """
    depth = len(vit.blocks)
    if len(set(blocks)) != len(blocks) or any(not 0 <= block < depth for block in blocks):
        raise UserError(
            f"{key} must be different numbers in 0..{depth - 1} (the backbone has {depth} "
            f"blocks), got {list(blocks)}"
        )
    layers = [_plain_part(vit, block, part) for block in blocks]
    wrappers = [make(layer) for layer in layers]
    for block, wrapper in zip(blocks, wrappers, strict=True):
        holder, name = _holder(vit, block, part)
        setattr(holder, name, wrapper)
    return wrappers


def _plain_part(vit: VisionTransformer, number: int, part: Part) -> nn.Module:
    """The part of block `number`; UserError if it cannot be wrapped."""
    block = vit.blocks[number]
    if part == "block":
        if isinstance(block, Wrapper):
            raise UserError(f"backbone: block {number} has a module around it already; put in one")
        return block
    # Blocks of other kinds, such as timm's parallel ones, have no such parts: the error names them.
    if part == "mlp":
        mlp = getattr(block, "mlp", block)
        if mlp is block or isinstance(mlp, Wrapper):
            raise UserError(
                f"backbone: the MLP of block {number} is a {type(mlp).__name__}; experts beside an "
                f"MLP need a block that has an MLP of its own; choose a plain ViT such as "
                f"vit_base_patch16_224"
            )
        return mlp
    if part in ("mlp.fc1", "mlp.fc2"):
        holder, name = _holder(vit, number, part)
        return _plain_linear(getattr(holder, name, holder), f"{part} of block {number}")
    attention = plain_attention(getattr(block, "attn", block), f"the attention of block {number}")
    if part == "attn":
        return attention
    return _plain_linear(attention.qkv, f"the qkv projection of block {number}")


def _plain_linear(layer: object, where: str) -> nn.Module:
    """`layer` itself if LoRA can join it; UserError if it is no plain linear layer."""
    if not (isinstance(layer, nn.Module) and is_linear(layer)):
        raise UserError(
            f"backbone: {where} is a {type(layer).__name__}; LoRA experts need a plain linear "
            f"layer; choose a plain ViT such as vit_base_patch16_224"
        )
    return layer


def _holder(vit: VisionTransformer, number: int, part: Part) -> tuple[nn.Module | None, str]:
    """The module that has a part of a block as an attribute, None if there is none, and the
    attribute.
    """
    if part == "block":
        return vit.blocks, str(number)
    block = vit.blocks[number]
    inner, _, name = part.rpartition(".")
    return (getattr(block, inner, None) if inner else block), name


def unwrap(vit: VisionTransformer) -> None:
    """Put the original parts back; outputs are then as before `wrap`, bit for bit."""
    _take_out(vit)


def _take_out(vit: VisionTransformer) -> list[tuple[nn.Module, str, Wrapper]]:
    """Put the original parts back. Returns each wrapper, after the module and attribute that it
    was in.
    """
    taken = []
    for number in range(len(vit.blocks)):
        for part in PARTS:
            holder, name = _holder(vit, number, part)
            wrapper = getattr(holder, name, None)
            if holder is not None and isinstance(wrapper, Wrapper):
                setattr(holder, name, wrapper.layer)
                taken.append((holder, name, wrapper))
    return taken


def is_wrapped(vit: VisionTransformer) -> bool:
    """Whether a part of a block is wrapped."""
    numbers = range(len(vit.blocks))
    holders = (_holder(vit, number, part) for number in numbers for part in PARTS)
    return any(isinstance(getattr(holder, name, None), Wrapper) for holder, name in holders)


@contextmanager
def without_wrappers(vit: VisionTransformer) -> Iterator[None]:
    """Outputs are as before `wrap`, bit for bit, within the context. The wrappers stay the same."""
    taken = _take_out(vit)
    try:
        yield
    finally:
        for holder, name, wrapper in taken:
            setattr(holder, name, wrapper)
