"""Faster layers for the vision tower, with the same parameters and the same result up to rounding."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from learner.model.families import Rotate, modules_of, tower_of


def speed_up(model: PreTrainedModel) -> None:
    """Replace slow layers of the vision tower by faster ones, but not flash attention, which knows segments itself.

    Raises TypeError for a tower whose blocks have another attention than its family's.
    """
    tower, modules = tower_of(model), modules_of(model)
    if modules.read_patches:
        modules.read_patches(tower)
        return
    tower.patch_embed.proj.__class__ = PatchProjection
    if tower.config._attn_implementation == "sdpa":
        for block in tower.blocks:
            if type(block.attn) is not modules.attention:
                raise TypeError(f"{type(block.attn).__name__}: not the attention of {model.config.model_type}.")
            block.attn.__class__ = SegmentAttention
            block.attn.rotate = modules.rotate


class PatchProjection(nn.Conv3d):
    """A convolution over single patches as one matrix product, which is several times faster."""

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Return [N, out_channels, 1, 1, 1] for patches [N, C, T, H, W], each as large as the kernel."""
        return nn.functional.linear(patches.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None, None]


class SegmentAttention(nn.Module):
    """Attention within frames or windows, computed for all segments of one length together.

    A video has at least as many segments as frames, but few different lengths. Its parts are those of the attention
    that it replaces, see `learner.model.families.Modules`.
    """

    qkv: nn.Linear
    proj: nn.Linear
    num_heads: int
    scaling: float
    rotate: Rotate

    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **unused: object,
    ) -> torch.Tensor:
        """Return the attention's output, [N, hidden].

        hidden_states: [N, hidden].  cu_seqlens: where segments begin.  position_embeddings: cos and sin.
        """
        num_tokens = len(hidden_states)
        query, key, value = self.qkv(hidden_states).view(num_tokens, 3, self.num_heads, -1).unbind(1)
        query, key = self.rotate(query, key, *position_embeddings)
        starts, lengths = cu_seqlens[:-1], cu_seqlens.diff()
        unique = lengths.unique().tolist()
        if len(unique) == 1:
            segments = [tensor.view(len(starts), unique[0], self.num_heads, -1) for tensor in (query, key, value)]
            mixed = _attend(segments, self.scaling).reshape(num_tokens, -1)
        else:
            mixed = torch.empty_like(hidden_states)
            for length in unique:
                index = starts[lengths == length, None] + torch.arange(length, device=starts.device)
                found = _attend([tensor[index] for tensor in (query, key, value)], self.scaling)
                mixed = mixed.index_copy(0, index.flatten().long(), found.reshape(index.numel(), -1))
        return self.proj(mixed)


def _attend(segments: list[torch.Tensor], scaling: float) -> torch.Tensor:
    """Return the output for query, key and value, each [segments, length, heads, head_dim], in the same shape."""
    query, key, value = (tensor.transpose(1, 2) for tensor in segments)
    return nn.functional.scaled_dot_product_attention(query, key, value, scale=scaling).transpose(1, 2)
