"""Linear attention of an engine on CPU in float32, for which vLLM 0.32 has no kernel.

`cpu_gdn_attention_core` of vLLM takes bfloat16 alone. Here the rule is computed token by token, for all sequences of a
step at once, with the states where vLLM keeps them; all else of the layer is vLLM's.
"""

from __future__ import annotations

from types import MethodType
from typing import Any, TypeAlias

import torch
from torch.nn import functional

Layer: TypeAlias = Any
"""vLLM's `QwenGatedDeltaNetAttention`."""
NORM_EPS = 1e-6


def compute_in_float32(worker: Any) -> None:  # noqa: ANN401 - vLLM's
    """Make the layers of linear attention of a worker's model compute in float32; other layers stay as they are."""
    for layer in worker.get_model().modules():
        if type(layer).__name__ == "QwenGatedDeltaNetAttention":
            layer._forward_method = MethodType(_forward, layer)


def _forward(layer: Layer, hidden_states: torch.Tensor) -> torch.Tensor:
    """Return the layer's output for the tokens of a step, [tokens, hidden], as `forward_cpu` does."""
    from vllm.forward_context import get_forward_context

    values = layer.value_dim // layer.tp_size
    projected, _ = layer.in_proj_qkvz(hidden_states)
    inputs, gate = projected.split([projected.shape[-1] - values, values], dim=-1)
    step, decay = layer.split_ba(layer.in_proj_ba(hidden_states)[0])
    read = hidden_states.new_zeros((len(hidden_states), values // layer.head_v_dim, layer.head_v_dim))
    metadata = get_forward_context().attn_metadata
    if metadata is not None:  # None when vLLM only tries how much memory a step takes
        found = metadata[layer.prefix]
        decays = -layer.A_log.float().exp() * functional.softplus(decay + layer.dt_bias)
        ends = (0, found.num_decodes, found.num_decodes + found.num_prefills)
        for first, last in zip(ends, ends[1:], strict=False):
            if last > first:
                _read(layer, found, slice(first, last), (inputs, decays, step.sigmoid()), read)
    return layer._output_projection(read, gate.unflatten(-1, (-1, layer.head_v_dim)))


def _read(
    layer: Layer,
    metadata: Any,
    chosen: slice,
    inputs: tuple[torch.Tensor, ...],
    read: torch.Tensor,  # noqa: ANN401
) -> None:
    """Compute some sequences of a step, and move their states on. inputs: of the convolution, decays and steps.

    Sequences are padded on the right by zeros, which change no state. read: what is found is written there.
    """
    bounds = metadata.non_spec_query_start_loc[chosen.start : chosen.stop + 1]
    lengths = bounds.diff()
    places = torch.arange(int(lengths.max()))
    is_real = places < lengths[:, None]
    index = (bounds[:-1, None] + places).clamp(max=int(bounds[-1]) - 1)
    padded, decays, steps = (one[index] * is_real.view(*is_real.shape, *[1] * (one.dim() - 1)) for one in inputs)
    slots = metadata.non_spec_state_indices_tensor[chosen].long()
    tails, states = _kept(layer)
    is_known = torch.ones(len(slots), dtype=torch.bool)
    if chosen.start >= metadata.num_decodes:
        is_known = metadata.has_initial_state[chosen]
    window = torch.cat([tails[slots] * is_known[:, None, None], padded], dim=1)
    width = tails.shape[1]
    tails[slots] = window[torch.arange(len(slots))[:, None], lengths[:, None] + torch.arange(width)]
    kernel = layer.conv1d.weight.squeeze(1)
    mixed = sum(window[:, at : at + len(places)] * kernel[:, at] for at in range(width + 1))
    query, key, value = _heads(layer, functional.silu(mixed))
    found, states[slots] = delta_rule(query, key, value, decays, steps, states[slots] * is_known[:, None, None, None])
    read[index[is_real]] = found[is_real]


def _kept(layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the convolutions' last inputs, [slots, kernel - 1, channels], and states, [slots, heads, keys, values]."""
    from vllm.model_executor.layers.mamba.mamba_utils import is_conv_state_dim_first

    tails, states = layer.kv_cache[0], layer.kv_cache[1]
    if is_conv_state_dim_first():
        tails = tails.transpose(1, 2)
    return tails, states.view(*states.shape[:2], layer.head_k_dim, layer.head_v_dim)


def _heads(layer: Layer, mixed: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return normed queries and keys, for each head of values, and values, each [sequences, tokens, heads, size]."""
    keys = layer.key_dim // layer.tp_size
    query, key, value = mixed.split([keys, keys, mixed.shape[-1] - 2 * keys], dim=-1)
    repeats = layer.num_v_heads // layer.num_k_heads
    query, key = (
        _normed(one.unflatten(-1, (-1, layer.head_k_dim))).repeat_interleave(repeats, dim=2) for one in (query, key)
    )
    return query * layer.head_k_dim**-0.5, key, value.unflatten(-1, (-1, layer.head_v_dim))


def _normed(heads: torch.Tensor) -> torch.Tensor:
    return heads * torch.rsqrt(heads.square().sum(-1, keepdim=True) + NORM_EPS)


def delta_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decays: torch.Tensor,
    steps: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a gated delta rule reads at each token, [S, W, heads, values], and its states at the end.

    query, key: [S, W, heads, keys].  value: [S, W, heads, values].  decays: logarithms of the part of the state that
    stays, and steps: how far it moves to a value, both [S, W, heads].  state: before the first token,
    [S, heads, keys, values].  Source: arXiv:2412.06464, equation 10.
    """
    found = torch.empty_like(value)
    for at in range(value.shape[1]):
        state = state * decays[:, at, :, None, None].exp()
        of_key = key[:, at, :, None]
        missing = (value[:, at, :, None] - of_key @ state) * steps[:, at, :, None, None]
        state = state + of_key.transpose(-1, -2) * missing
        found[:, at] = (query[:, at, :, None] @ state)[:, :, 0]
    return found, state
