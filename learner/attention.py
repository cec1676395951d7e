"""Attention over a packed sequence: which token sees which, and how that is computed without a mask of L x L."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AttentionInterface

PACKED_SDPA = "packed_sdpa"


@dataclass(frozen=True, kw_only=True)
class GroupSpan:
    """Where a row lies in the packed sequence: its prompt's tokens at `start`, then those of each response."""

    start: int
    prompt: int
    responses: tuple[int, ...]

    @property
    def stop(self) -> int:
        """One past the row's last token."""
        return self.start + self.prompt + sum(self.responses)


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedMask:
    """Who sees whom: every token its row's prompt up to itself, and its own response up to itself."""

    groups: tuple[GroupSpan, ...]


def packed_sdpa(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: PackedMask,
    scaling: float,
    **unused: object,
) -> tuple[torch.Tensor, None]:
    """query: [1, heads, L, d].  key, value: [1, kv_heads, L, d]. Returns [1, L, heads, d]."""
    parts = []
    for group in attention_mask.groups:
        span = slice(group.start, group.stop)
        parts.append(
            nn.functional.scaled_dot_product_attention(
                query[:, :, span],
                key[:, :, span],
                value[:, :, span],
                attn_mask=_seen(group, query.device),
                scale=scaling,
                enable_gqa=True,
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2), None


def _seen(group: GroupSpan, device: torch.device) -> torch.Tensor:
    """bool [tokens, tokens] of one row, True where the first sees the second."""
    sizes = torch.tensor([group.prompt, *group.responses], device=device)
    segments = torch.repeat_interleave(torch.arange(len(sizes), device=device), sizes)
    seen = (segments[:, None] == segments) | (segments == 0)
    return seen.tril_()


AttentionInterface.register(PACKED_SDPA, packed_sdpa)
