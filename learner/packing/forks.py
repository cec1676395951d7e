"""The order in which layers that keep a state read a packed sequence: prompts first, then responses from their states.

A mask is not enough for such a layer, because what it has read cannot be hidden from later tokens. So each prompt is
read by itself, and each of its responses begins with what the prompt left behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from rlsys.models.families.family import CHUNK_TOKENS

if TYPE_CHECKING:
    from learner.packing.packed_mask import RowSpan


@dataclass(frozen=True, kw_only=True, eq=False)
class Segments:
    """Prompts or responses of similar lengths that are computed together, padded on the right.

    index: i64 [S x W], their tokens, W those of the longest; pads are L, one behind the last of the sequence.
    rows: i64 [S], the row of each.
    """

    count: int
    width: int
    index: torch.Tensor
    rows: torch.Tensor

    def take(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return [S, W, ...] of tokens [L + 1, ...], of which the last is what pads are."""
        return tokens.index_select(0, self.index).unflatten(0, (self.count, self.width))


class Forks:
    """The segments of a packed sequence of L tokens for layers that keep a state.

    extended: i64 [E], the tokens of the sequence in which each segment follows the inputs that a convolution reads
    before its first token: of a response the last ones of its prompt. L stands for an input of zeros.
    places: i64 [L], where each token is in it.
    prompts, responses: the segments by stages, in the order in which they are computed.
    order: i64 [L], where each token is in the outputs of all segments, one after the other with their pads.
    prompt_of: i64 [rows], where the state of each row's prompt is among those of `prompts`, one after the other.
    """

    def __init__(self, rows: Sequence[RowSpan], kernel: int, device: torch.device | str) -> None:
        """Lay out the rows. kernel: number of tokens that the convolution reads, its own included."""
        length = rows[-1].stop
        self.extended, self.places = _extended(rows, kernel - 1, length, device)
        segments = [(number, row.segments()) for number, row in enumerate(rows)]
        first = [(number, found[0]) for number, found in segments]
        others = [(number, one) for number, found in segments for one in found[1:]]
        self.prompts, self.responses = _together(first, length, device), _together(others, length, device)
        flat = torch.cat([one.index for one in (*self.prompts, *self.responses)])
        is_real = flat < length
        self.order = torch.empty(length, dtype=torch.int64, device=device)
        self.order[flat[is_real]] = is_real.nonzero()[:, 0]
        self.prompt_of = torch.cat([one.rows for one in self.prompts]).argsort()


def _extended(
    rows: Sequence[RowSpan], tail: int, length: int, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    parts, places, stop = [], torch.empty(length, dtype=torch.int64), 0
    for row in rows:
        before = torch.full((tail,), length)
        for start, end in row.segments():
            parts += [before, torch.arange(start, end)]
            places[start:end] = torch.arange(stop + tail, stop + tail + end - start)
            stop += tail + end - start
            if start == row.start and tail:
                before = torch.cat([before, torch.arange(start, end)])[-tail:]
    return torch.cat(parts).to(device), places.to(device)


def _together(
    segments: Sequence[tuple[int, tuple[int, int]]], length: int, device: torch.device | str
) -> list[Segments]:
    """Return the segments, (row, (start, stop)), in batches, none padded by over a quarter of its chunks."""
    chunks = [-(-(stop - start) // CHUNK_TOKENS) for _, (start, stop) in segments]
    batches: list[list[int]] = []
    for index in sorted(range(len(segments)), key=lambda index: (-chunks[index], index)):
        if batches and chunks[index] * 4 >= chunks[batches[-1][0]] * 3:
            batches[-1].append(index)
        else:
            batches.append([index])
    return [_padded([segments[index] for index in batch], length, device) for batch in batches]


def _padded(batch: Sequence[tuple[int, tuple[int, int]]], length: int, device: torch.device | str) -> Segments:
    starts = torch.tensor([start for _, (start, _) in batch])[:, None]
    stops = torch.tensor([stop for _, (_, stop) in batch])[:, None]
    width = int((stops - starts).max())
    places = starts + torch.arange(width)
    index = places.masked_fill_(places >= stops, length)
    rows = torch.tensor([row for row, _ in batch])
    return Segments(count=len(batch), width=width, index=index.flatten().to(device), rows=rows.to(device))
