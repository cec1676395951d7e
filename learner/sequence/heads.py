"""Attention of a sequence group by heads: each rank has some tokens of all heads, and computes all tokens of some.

Source: DeepSpeed-Ulysses, arXiv:2309.14509; the exchange is DeepSpeed's own.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from deepspeed.sequence.layer import DistributedAttention
from torch import nn

from learner.packing.attention import Form
from learner.packing.packed_mask import PackedMask


def over_heads(form: Form, group: dist.ProcessGroup) -> Form:
    """Return the form of attention for query, key and value of this rank's tokens, [1, heads, L / size, d].

    The mask is that of the whole pass of L tokens; behind them the ranks' tokens are pads. `heads` must be a multiple
    of the group's size. Where key heads are not, each is copied, so that every rank has those of its query heads.
    """
    size = dist.get_world_size(group)

    def attend(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: PackedMask,
        scaling: float,
        **unused: object,
    ) -> tuple[torch.Tensor, None]:
        length, copies = attention_mask.length, size // math.gcd(key.shape[1], size)
        if copies > 1:
            key, value = (one.repeat_interleave(copies, dim=1) for one in (key, value))

        def whole(*inputs: torch.Tensor) -> torch.Tensor:
            tokens = (one[:, :length].transpose(1, 2) for one in inputs)
            mixed, _ = form(module, *tokens, attention_mask, scaling)
            return nn.functional.pad(mixed, (0, 0, 0, 0, 0, inputs[0].shape[1] - length))

        exchange = DistributedAttention(whole, group, scatter_idx=2, gather_idx=1)
        return exchange(*(one.transpose(1, 2) for one in (query, key, value)), 0), None

    return attend
