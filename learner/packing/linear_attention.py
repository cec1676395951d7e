"""Linear attention over a packed sequence: the state at a prompt's end is forked, and each response continues from it.

Source of the layer: Gated DeltaNet, arXiv:2412.06464. Gradients of the responses reach the prompt through its state and
through the last inputs of its convolution. Ranks that compute a pass together compute all of its tokens for some heads
each, as they do in attention, because heads have convolutions and states of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from learner.packing.forks import Forks, Segments
from learner.packing.packed_mask import PackedMask

if TYPE_CHECKING:
    from learner.sequence.group import SequenceGroup

Rule = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]
"""The gated delta rule of transformers for queries, keys, values, decays and steps, with its kernel where there is one.

Tokens with zeros everywhere change no state, so that pads behind a segment do not either.
"""


class ChannelConvolution(nn.Conv1d):
    """A convolution of every channel by itself that can be computed for some channels alone.

    It is called as a module, because ZeRO-3 gathers the weights of a module when it is called.
    """

    def forward(self, inputs: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
        """Return [E, C] of inputs [E, C], where a token reads those up to itself. channels: i64 [C], which they are."""
        weight, tail = self.weight.index_select(0, channels), self.kernel_size[0] - 1
        found = nn.functional.conv1d(inputs.t()[None], weight, padding=tail, groups=len(channels))
        return found[0, :, : len(inputs)].t()


class PackedDeltaNet(nn.Module):
    """A layer of linear attention for packed rows, with the parameters of the layer that it replaces.

    Its parts are those of `learner.model.families.Recurrence.layer`.
    """

    in_proj_qkv: nn.Linear
    in_proj_z: nn.Linear
    in_proj_a: nn.Linear
    in_proj_b: nn.Linear
    conv1d: ChannelConvolution
    norm: nn.Module
    out_proj: nn.Linear
    A_log: nn.Parameter
    dt_bias: nn.Parameter
    num_k_heads: int
    num_v_heads: int
    head_k_dim: int
    head_v_dim: int
    rule: Rule

    def forward(
        self,
        hidden_states: torch.Tensor,
        packed_mask: PackedMask,
        sequence: SequenceGroup | None = None,
        **unused: object,
    ) -> torch.Tensor:
        """Return the layer's output, [1, L, hidden], for hidden states of the same shape.

        sequence: the ranks among which the tokens are divided, if they are; `packed_mask` is that of all tokens.
        """
        tokens = hidden_states[0]
        keys = self.num_k_heads * self.head_k_dim
        query, key, value = self.in_proj_qkv(tokens).split([keys, keys, self.num_v_heads * self.head_v_dim], dim=-1)
        value = value.unflatten(-1, (self.num_v_heads, self.head_v_dim))
        by_head = [one.unflatten(-1, (self.num_k_heads, self.head_k_dim)) for one in (query, key)]
        by_head.append(
            torch.cat([value, *(project(tokens)[..., None] for project in (self.in_proj_a, self.in_proj_b))], dim=-1)
        )
        form = partial(_read_heads, first=sequence.index if sequence else 0)
        compute = form if sequence is None else sequence.over_heads(form)
        read, _ = compute(self, *(one.transpose(0, 1)[None] for one in by_head), packed_mask, 1.0)
        gate = self.in_proj_z(tokens).view(-1, self.head_v_dim)
        normed = self.norm(read.reshape(-1, self.head_v_dim), gate)
        return self.out_proj(normed.view(1, len(tokens), -1))

    def channels_of(self, key_heads: range, value_heads: range, device: torch.device) -> torch.Tensor:
        """Return the channels of the convolution that belong to these heads, queries, keys and values in order."""
        keys = self.num_k_heads * self.head_k_dim
        starts = (0, keys, 2 * keys)
        heads = ((key_heads, self.head_k_dim), (key_heads, self.head_k_dim), (value_heads, self.head_v_dim))
        parts = [
            torch.arange(start + of.start * size, start + of.stop * size, device=device)
            for start, (of, size) in zip(starts, heads, strict=True)
        ]
        return torch.cat(parts)


def _read_heads(
    layer: PackedDeltaNet,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: PackedMask,
    scaling: float,
    *,
    first: int,
) -> tuple[torch.Tensor, None]:
    """Compute some heads of a layer for all tokens; shapes are those of `learner.packing.attention.packed_sdpa`.

    query, key: before their convolution, [1, key heads, L, size].  value: likewise, with what decay and step are made
    of as two more numbers, [1, value heads, L, size + 2].  first: how many parts of as many heads come before these.
    """
    num_keys, num_values, length = query.shape[1], value.shape[1], query.shape[2]
    value_heads = range(first * num_values, (first + 1) * num_values)
    channels = layer.channels_of(range(first * num_keys, (first + 1) * num_keys), value_heads, query.device)
    query, key, value = (one[0].transpose(0, 1) for one in (query, key, value))
    value, decay, step = value.split([layer.head_v_dim, 1, 1], dim=-1)
    forks = mask.forks(layer.conv1d.kernel_size[0])
    laid_out = _with_zeros(torch.cat([one.flatten(1) for one in (query, key, value)], dim=1))
    mixed = layer.conv1d(laid_out.index_select(0, forks.extended), channels)
    mixed = nn.functional.silu(mixed.index_select(0, forks.places))
    parts = mixed.split([num_keys * layer.head_k_dim] * 2 + [num_values * layer.head_v_dim], dim=-1)
    query, key, value = (
        one.reshape(length, heads, -1) for one, heads in zip(parts, (num_keys, num_keys, num_values), strict=True)
    )
    query, key = (one.repeat_interleave(num_values // num_keys, dim=1) for one in (query, key))
    of_heads = slice(value_heads.start, value_heads.stop)
    softened = nn.functional.softplus(decay[..., 0].float() + layer.dt_bias[of_heads])
    decays = -layer.A_log[of_heads].float().exp() * softened
    return _read((query, key, value, decays, step[..., 0].sigmoid()), forks, layer.rule)[None], None


def _read(inputs: Sequence[torch.Tensor], forks: Forks, rule: Rule) -> torch.Tensor:
    """Return what the rule reads out of its state at each token, [L, heads, size of values]."""
    padded = [_with_zeros(one) for one in inputs]
    found, states = [], []
    for batch in forks.prompts:
        out, state = _by_rule(padded, batch, None, rule)
        found.append(out)
        states.append(state)
    for batch in forks.responses:
        start = torch.cat(states).index_select(0, forks.prompt_of.index_select(0, batch.rows))
        found.append(_by_rule(padded, batch, start, rule)[0])
    return torch.cat([one.flatten(0, 1) for one in found]).index_select(0, forks.order)


def _by_rule(
    padded: Sequence[torch.Tensor], batch: Segments, start: torch.Tensor | None, rule: Rule
) -> tuple[torch.Tensor, torch.Tensor]:
    query, key, value, decays, steps = (batch.take(one) for one in padded)
    return rule(
        query,
        key,
        value,
        g=decays,
        beta=steps,
        initial_state=start,
        output_final_state=start is None,
        use_qk_l2norm_in_kernel=True,
    )


def _with_zeros(tokens: torch.Tensor) -> torch.Tensor:
    """Return [L + 1, ...] of tokens [L, ...] with zeros behind them."""
    return torch.cat([tokens, tokens.new_zeros((1, *tokens.shape[1:]))])
