"""The attention mask of a packed sequence, in the forms that the attention implementations need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn.attention.flex_attention import BlockMask

from learner.packing.forks import Forks

MOST_PADDING = 16
"""Number of tokens by which segments that are computed together may differ, or a quarter if that is more."""
LONGEST_TOGETHER = 512
"""Length in tokens above which a segment is computed by itself, because it keeps a core busy."""
BLOCK = 128
"""Tokens per side of a block that FlexAttention computes or skips; the default of its kernels."""


@dataclass(frozen=True, kw_only=True)
class RowSpan:
    """The place of a row in the packed sequence: its prompt's tokens from `start`, then those of each response."""

    start: int
    prompt: int
    responses: tuple[int, ...]

    @property
    def prompt_stop(self) -> int:
        """Index of the first token after the prompt."""
        return self.start + self.prompt

    @property
    def stop(self) -> int:
        """Index after the row's last token."""
        return self.prompt_stop + sum(self.responses)

    def segments(self) -> list[tuple[int, int]]:
        """Return (start, stop) of the prompt and of each response that has tokens."""
        bounds = [self.start, self.prompt_stop]
        for size in self.responses:
            bounds.append(bounds[-1] + size)
        return [(start, stop) for start, stop in zip(bounds, bounds[1:], strict=False) if stop > start]


class Bucket:
    """Segments of similar lengths that are computed together, padded on the right, where causal attention ignores pads.

    index: i64 [S x W], the tokens of S segments, W the longest; pads repeat a segment's last token.
    real: i64, the entries of `index` that are not pads; None if there are no pads.
    """

    def __init__(self, segments: Sequence[tuple[int, int]], device: torch.device | str) -> None:
        self.num_segments, self.width = len(segments), segments[0][1] - segments[0][0]
        self.start, self.stop = segments[0]
        starts = torch.tensor([start for start, _ in segments])[:, None]
        stops = torch.tensor([stop for _, stop in segments])[:, None]
        places = starts + torch.arange(self.width)
        is_real = (places < stops).flatten()
        self.index = places.minimum(stops - 1).flatten().to(device)
        self.real = None if is_real.all() else is_real.nonzero()[:, 0].to(device)

    def take(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the bucket's tokens from [L, heads, ...] as [S, heads, W, ...]."""
        if self.num_segments == 1:
            return tokens[self.start : self.stop].transpose(0, 1)[None]
        chosen = tokens.index_select(0, self.index)
        return chosen.view(self.num_segments, self.width, *tokens.shape[1:]).transpose(1, 2)

    def take_gradient(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return what `take` does with 0 at the pads, so that they add no gradient to other tokens."""
        if self.real is None:
            return self.take(tokens)
        chosen = tokens.new_zeros((len(self.index), *tokens.shape[1:]))
        chosen.index_copy_(0, self.real, tokens.index_select(0, self.index.index_select(0, self.real)))
        return chosen.view(self.num_segments, self.width, *tokens.shape[1:]).transpose(1, 2)

    def put(self, tokens: torch.Tensor, values: torch.Tensor) -> None:
        """Write values [S, heads, W, ...] to their places in `tokens`, [L, heads, ...]."""
        if self.num_segments == 1:
            tokens[self.start : self.stop] = values[0].transpose(0, 1)
            return
        flat, index = values.transpose(1, 2).flatten(0, 1), self.index
        if self.real is not None:
            flat, index = flat.index_select(0, self.real), index.index_select(0, self.real)
        tokens.index_copy_(0, index, flat)


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedMask:
    """The mask of packed rows: a token sees its row's prompt and its own response, both up to itself."""

    rows: tuple[RowSpan, ...]
    device: torch.device | str

    @property
    def length(self) -> int:
        """Number of tokens of the packed sequence."""
        return self.rows[-1].stop

    @cached_property
    def buckets(self) -> list[Bucket]:
        """All segments, in buckets of similar length."""
        segments = [segment for row in self.rows for segment in row.segments()]
        segments.sort(key=lambda segment: segment[0] - segment[1])
        together: list[list[tuple[int, int]]] = []
        for start, stop in segments:
            longest = together[-1][0][1] - together[-1][0][0] if together else 0
            if stop - start + max(MOST_PADDING, longest // 4) >= longest and 0 < longest <= LONGEST_TOGETHER:
                together[-1].append((start, stop))
            else:
                together.append([(start, stop)])
        return [Bucket(found, self.device) for found in together]

    def forks(self, kernel: int) -> Forks:
        """Return the order in which layers read that keep a state, behind a convolution over `kernel` tokens."""
        if kernel not in self._forks:
            self._forks[kernel] = Forks(self.rows, kernel, self.device)
        return self._forks[kernel]

    @cached_property
    def _forks(self) -> dict[int, Forks]:
        return {}

    @cached_property
    def seen_by_responses(self) -> list[torch.Tensor]:
        """For each row bool [response tokens, row's tokens], True where the first sees the second."""
        found = []
        for row in self.rows:
            segment = torch.repeat_interleave(torch.tensor([row.prompt, *row.responses], device=self.device))
            seen = (segment[row.prompt :, None] == segment) | (segment == 0)
            found.append(seen.tril_(row.prompt))
        return found

    @cached_property
    def blocks(self) -> BlockMask:
        """The mask in FlexAttention's form: blocks seen by all or none, and `mask_mod` for the tokens of the others."""
        row_start, prompt_stop, segment_start = self._bounds
        tokens = torch.arange(self.length, dtype=torch.int32, device=self.device)

        def mask_mod(batch: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
            in_prompt = (key >= row_start[query]) & (key < prompt_stop[query])
            return (in_prompt | (key >= segment_start[query])) & (key <= query)

        # a token sees a run of the prompt's tokens and one of its own segment's (the same for a prompt's token)
        edges = torch.arange(0, self.length, BLOCK, dtype=torch.int32, device=self.device)
        own = _overlap(segment_start, tokens + 1, edges)
        others = torch.where(segment_start > row_start, prompt_stop, row_start)
        seen = own + _overlap(row_start, others, edges)
        num = len(edges)
        by_block = seen.new_zeros((num, num)).index_add_(0, tokens // BLOCK, seen)
        is_full = by_block == BLOCK * BLOCK
        is_partial = (by_block > 0) & ~is_full
        return BlockMask.from_kv_blocks(
            *_listed(is_partial), *_listed(is_full), BLOCK_SIZE=BLOCK, mask_mod=mask_mod, seq_lengths=(self.length,) * 2
        )

    @cached_property
    def _bounds(self) -> torch.Tensor:
        """Return the start of each token's row, the end of its prompt, and the start of its segment, i32 [3, L]."""
        parts = [
            torch.tensor([[row.start], [row.prompt_stop], [start]], dtype=torch.int32).expand(3, stop - start)
            for row in self.rows
            for start, stop in row.segments()
        ]
        return torch.cat(parts, dim=1).to(self.device)


def _overlap(starts: torch.Tensor, stops: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """Return how many tokens of each block are in start..stop of each token, i32 [L, blocks]."""
    low = torch.maximum(starts[:, None], edges)
    return (torch.minimum(stops[:, None], edges + BLOCK) - low).clamp_(min=0)


def _listed(is_chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the number of chosen blocks of each row, and the blocks, chosen first: i32 [1, 1, N] and [1, 1, N, N]."""
    order = torch.argsort(is_chosen.int(), dim=1, descending=True, stable=True)
    return is_chosen.sum(dim=1, dtype=torch.int32)[None, None], order.int()[None, None]
