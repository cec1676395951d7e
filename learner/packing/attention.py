"""Attention over a packed sequence, computed without a mask of all tokens by all tokens.

It has three forms with the same result, chosen by `model.attention` and the tensors' device:
- "sdpa" on a CPU: PyTorch's flash kernel once over every segment (a prompt or a response) with itself and once over
  a row's responses with its prompt, joined by their log-sum-exps. Neither masks nor keys are copied.
- "sdpa" elsewhere, and "eager": row by row, the prompt causally, then the responses with a mask of [responses, row].
- "flex_attention": one compiled kernel that skips the fully masked blocks; recommended on GPUs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.attention.flex_attention import flex_attention
from transformers import AttentionInterface

from learner.packing.packed_mask import BLOCK, PackedMask

if TYPE_CHECKING:
    from learner.sequence.group import SequenceGroup

FORMS = {
    "sdpa": "packed_sdpa",
    "eager": "packed_by_row",
    "flex_attention": "packed_flex",
}
"""`model.attention` -> name of the language model's attention. Flash attention has no mask in which the responses of a
group share a prompt, so only the vision tower uses it."""

flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class SharedPromptAttention(torch.autograd.Function):
    """Attention of segments to themselves and of responses to their prompt, by the flash kernel, with joined results.

    The softmax over two sets of keys is the mean of the softmaxes over each, weighted by sums of exponentials, as in
    Ring Attention (arXiv:2310.01889). In the backward pass each part needs only the joint result and its log-sum-exp,
    so no more is stored than by a single flash call.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: PackedMask,
        scaling: float,
    ) -> torch.Tensor:
        """Return the attention's output, [L, heads, d], for query [L, heads, d], key and value [L, kv_heads, d]."""
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        sums = torch.empty(query.shape[:2], dtype=torch.float32, device=query.device)
        for bucket in mask.buckets:
            part, part_sums = flash(*(bucket.take(one) for one in (query, key, value)), 0.0, True, scale=scaling)
            bucket.put(out, part)
            bucket.put(sums, part_sums)
        for prompt, responses in _crossings(mask):
            part, part_sums = flash(
                _heads(query, responses), _heads(key, prompt), _heads(value, prompt), 0.0, False, scale=scaling
            )
            own_sums, part_sums = sums[responses], part_sums[0].t()
            joint = torch.logaddexp(own_sums, part_sums)
            joined = out[responses] * (own_sums - joint).exp()[..., None]
            joined += part[0].transpose(0, 1) * (part_sums - joint).exp()[..., None]
            out[responses], sums[responses] = joined, joint
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.mask, ctx.scaling = mask, scaling
        return out

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of query, key and value, and None for the other arguments."""
        query, key, value, out, sums = ctx.saved_tensors
        found = [torch.empty_like(one, memory_format=torch.contiguous_format) for one in (query, key, value)]
        for bucket in ctx.mask.buckets:
            parts = flash_backward(
                bucket.take_gradient(gradient),
                *(bucket.take(one) for one in (query, key, value, out, sums)),
                0.0,
                True,
                scale=ctx.scaling,
            )
            for one, part in zip(found, parts, strict=True):
                bucket.put(one, part)
        for prompt, responses in _crossings(ctx.mask):
            parts = flash_backward(
                _heads(gradient, responses),
                *(_heads(query, responses), _heads(key, prompt), _heads(value, prompt)),
                *(_heads(out, responses), _heads(sums, responses)),
                0.0,
                False,
                scale=ctx.scaling,
            )
            for one, part, span in zip(found, parts, (responses, prompt, prompt), strict=True):
                one[span] += part[0].transpose(0, 1)
        return *found, None, None


def _crossings(mask: PackedMask) -> list[tuple[slice, slice]]:
    """Return the slices of the prompt and of the responses of each row that has response tokens."""
    return [
        (slice(row.start, row.prompt_stop), slice(row.prompt_stop, row.stop))
        for row in mask.rows
        if row.stop > row.prompt_stop
    ]


def _heads(tokens: torch.Tensor, span: slice) -> torch.Tensor:
    """Return the tokens of `span` from [L, heads, ...] as [1, heads, span, ...]."""
    return tokens[span].transpose(0, 1)[None]


def packed_sdpa(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: PackedMask,
    scaling: float,
    **unused: object,
) -> tuple[torch.Tensor, None]:
    """Compute attention by the flash kernel on a CPU, and by rows on other devices.

    query: [1, heads, L, d].  key, value: [1, kv_heads, L, d]. Returns [1, L, heads, d], as the other forms do.
    """
    if query.device.type != "cpu":
        return packed_by_row(module, query, key, value, attention_mask, scaling)
    tokens = (one[0].transpose(0, 1) for one in (query, key, value))
    return SharedPromptAttention.apply(*tokens, attention_mask, scaling)[None], None


def packed_by_row(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: PackedMask,
    scaling: float,
    **unused: object,
) -> tuple[torch.Tensor, None]:
    """Compute attention row by row, with public functions of torch; shapes are those of `packed_sdpa`."""
    # kernels with a mask need as many key heads as query heads
    key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], dim=1) for one in (key, value))
    attend = nn.functional.scaled_dot_product_attention
    parts = []
    for row, seen in zip(attention_mask.rows, attention_mask.seen_by_responses, strict=True):
        prompt, responses = slice(row.start, row.prompt_stop), slice(row.prompt_stop, row.stop)
        whole = slice(row.start, row.stop)
        parts.append(attend(*(one[:, :, prompt] for one in (query, key, value)), is_causal=True, scale=scaling))
        if len(seen):
            keys, values = key[:, :, whole], value[:, :, whole]
            parts.append(attend(query[:, :, responses], keys, values, attn_mask=seen, scale=scaling))
    return torch.cat(parts, dim=2).transpose(1, 2), None


def packed_flex(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: PackedMask,
    scaling: float,
    **unused: object,
) -> tuple[torch.Tensor, None]:
    """Compute attention by FlexAttention, uncompiled on a CPU (for tests); shapes are those of `packed_sdpa`.

    A pass of one block is computed row by row: it has nothing to skip, and would be compiled for by itself.
    """
    if attention_mask.length <= BLOCK:
        return packed_by_row(module, query, key, value, attention_mask, scaling)
    attend = flex_attention if query.device.type == "cpu" else compiled_flex()
    repeats = query.shape[1] // key.shape[1]
    if repeats & (repeats - 1):  # as in transformers, since not all kernels support 7 query heads per key head
        key, value = (one.repeat_interleave(repeats, dim=1) for one in (key, value))
    mixed = attend(query, key, value, block_mask=attention_mask.blocks, scale=scaling, enable_gqa=True)
    return mixed.transpose(1, 2), None


@cache
def compiled_flex(backend: str = "inductor") -> Callable[..., torch.Tensor]:
    """Return FlexAttention compiled once for passes of every length, by grad mode.

    Compiled for single lengths it would reach PyTorch's limit of recompilations after a few passes and then compute
    with the whole mask in memory, without a word; at the limit it raises FailOnRecompileLimitHit instead.
    """
    # not by torch._dynamo.config, which each thread has its own of: with gradient checkpointing a backward pass on a
    # GPU computes attention again in a thread of autograd
    return torch.compile(flex_attention, dynamic=True, fullgraph=True, backend=backend)


def num_compilations() -> int:
    """Return how many graphs this process has compiled so far; a number that grows with the steps costs time."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


Form = Callable[..., tuple[torch.Tensor, None]]


def _for_transformers(form: Form) -> Form:
    """Return the form with the mask as the keyword `packed_mask`, which models pass on to their layers.

    Some models replace an `attention_mask` that is not a tensor.  sequence: the ranks among which the tokens are
    divided, if they are.
    """

    def attend(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: None,
        scaling: float,
        packed_mask: PackedMask,
        sequence: SequenceGroup | None = None,
        **unused: object,
    ) -> tuple[torch.Tensor, None]:
        compute = form if sequence is None else sequence.over_heads(form)
        return compute(module, query, key, value, packed_mask, scaling)

    return attend


for _name, _form in (("packed_sdpa", packed_sdpa), ("packed_by_row", packed_by_row), ("packed_flex", packed_flex)):
    AttentionInterface.register(_name, _for_transformers(_form))
