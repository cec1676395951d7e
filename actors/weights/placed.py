"""Checksums of the parts of a tensor that several workers hold, which add up to the tensor's own.

So what every worker holds is compared with a manifest without the tensor itself, which may still be on its way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from typing import TypeAlias

import torch

from actors.weights.held import HeldPart
from rlsys.weights.checksum import Sums
from rlsys.weights.manifest import TensorEntry
from rlsys.weights.tensors import all_sums

_BYTES = 64 << 20  # of whole rows, in which a worker's columns are summed

PlacedSums: TypeAlias = Mapping[tuple[int, int], Sums]
"""The sums of a worker's pieces at their places in the whole tensor, by (start, size) along the shard's dimension."""


def placed_sums(part: HeldPart, entry: TensorEntry) -> PlacedSums:
    """Return the sums of a worker's part of a tensor, {} if it is not readable in the tensor's own dtype."""
    if part.value is None or part.unpacked is not None or str(part.value.dtype) != f"torch.{entry.spec.dtype}":
        return {}
    found, at = {}, 0
    for start, size in part.shard.pieces:
        found[start, size] = Sums()
        if size:  # a vocabulary may end before the last worker's rows
            held = part.value.narrow(part.shard.dim, at, size)
            for block in _blocks(held, part.shard.dim, entry.spec.shape, start):
                found[start, size] += all_sums(*block)[0]
        at += size
    return found


def _blocks(
    held: torch.Tensor, dim: int, shape: tuple[int, ...], start: int
) -> Iterator[tuple[list[torch.Tensor], list[int]]]:
    """Yield contiguous bytes with their place in the whole tensor. Columns lie among zeros, which add nothing."""
    width, inner = shape[dim], prod(shape[dim + 1 :])
    rows = held.reshape(-1, held.shape[dim], inner)
    row_bytes = width * inner * held.element_size()
    if dim == 0:
        yield [rows[0]], [start * inner * held.element_size()]
        return
    step = max(1, _BYTES // row_bytes)
    for first in range(0, len(rows), step):
        block = rows[first : first + step]
        whole = torch.zeros((len(block), width, inner), dtype=held.dtype, device=held.device)
        whole[:, start : start + block.shape[1]] = block
        yield [whole], [first * row_bytes]


def are_whole(parts: Iterable[PlacedSums], entry: TensorEntry) -> bool | None:
    """Return whether workers hold a whole tensor together; None if some of it is unknown.

    parts: of each worker.

    Pieces that several workers hold, such as shared heads, must be the same on all of them.
    """
    found: dict[tuple[int, int], Sums] = {}
    for pieces in parts:
        if not pieces:
            return None
        for place, sums in pieces.items():
            if found.setdefault(place, sums) != sums:
                return False
    end = 0
    for start, size in sorted(found):
        if start != end:
            return None
        end += size
    return sum(found.values(), Sums()).hex == entry.checksum
