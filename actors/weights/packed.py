"""The order in which a kernel of vLLM's CPU build wants the numbers of a matrix."""

from __future__ import annotations

from collections.abc import Callable

import torch

_DIGIT = 256
"""Numbers below it are exact in every number format."""


def packed_order(
    pack: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, ...], dtype: torch.dtype
) -> torch.Tensor:
    """Return where each number of what `pack` makes of a matrix comes from: i64 [numbers].

    Packing only moves numbers, so the order is read off a matrix of its own positions, digit by digit, because a number
    format of 16 bits does not hold large ones.
    """
    size = torch.Size(shape).numel()
    rest = torch.arange(size)
    order, unit = torch.zeros_like(rest), 1
    while unit < size:
        digits = (rest // unit % _DIGIT).to(dtype).view(shape)
        order += unit * pack(digits).flatten().long()
        unit *= _DIGIT
    return order


def unpacked(packed: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Return the numbers of the last axis of `packed` in the order in which they were before packing."""
    found = torch.empty_like(packed)
    found[..., order] = packed
    return found
