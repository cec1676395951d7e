"""Parts of the model that are not trained, and the vision tower's output without a graph, once per clip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.vision_utils import get_vision_window_index

from learner.packing.packing import ClipKey, PackedBatch, clip_key
from rlsys.types import ClipInfo

Part = Literal["vision_tower", "projector"]

PROJECTOR = "merger."
"""What the names of the projector's parameters begin with, inside the vision tower's module."""


def freeze(model: Qwen2_5_VLForConditionalGeneration, frozen_parts: Sequence[Part]) -> None:
    """Train these parts no more: "vision_tower" is everything before the projector, which merges 2 x 2 patches.

    Comes before the model's `PackedPolicy`.
    """
    for part in frozen_parts:
        for parameter in _parameters(model.model.visual, part):
            parameter.requires_grad_(False)


def _parameters(tower: Qwen2_5_VisionTransformerPretrainedModel, part: Part) -> list[nn.Parameter]:
    is_projector = part == "projector"
    return [parameter for name, parameter in tower.named_parameters() if name.startswith(PROJECTOR) == is_projector]


class ClipFeatures:
    """What the vision tower makes of a pass's clips; kept by clip where the tower is frozen, until `forget`.

    Kept is what no trained weight has touched: the features if the projector is frozen too, else the
    states before it, so that the projector runs with a graph in every pass.

    The tower is called in every pass, with a blank image where all clips are kept or there is none.
    Ranks hold different clips, and at ZeRO-3 every call of the tower is one in which all of them
    take part: a rank that skipped it would leave the others waiting indefinitely. Four patches cost
    nothing beside a pass of thousands of tokens.
    """

    def __init__(self, tower: Qwen2_5_VisionTransformerPretrainedModel) -> None:
        self._tower = tower
        self._is_tower_frozen, self._is_projector_frozen = (
            not any(parameter.requires_grad for parameter in _parameters(tower, part))
            for part in ("vision_tower", "projector")
        )
        self._kept: dict[ClipKey, torch.Tensor] = {}

    def forget(self) -> None:
        """Drop what is kept."""
        self._kept.clear()

    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        """Features of the batch's clips one after another, [merged patches, hidden]; of a blank image without any."""
        if not self._is_tower_frozen:
            return self._tower(batch.patches, grid_thw=batch.grid_thw).pooler_output
        missing = [index for index, clip in enumerate(batch.clips) if clip_key(clip) not in self._kept]
        found = self._computed(*self._chosen(batch, missing))
        if missing:
            clips = [batch.clips[index] for index in missing]
            parts = found.split([_num_patches(clip) // self._merged for clip in clips])
            # cloned: a part of a tensor keeps all of it
            self._kept.update(zip(map(clip_key, clips), (part.clone() for part in parts), strict=True))
        if batch.clips:
            found = torch.cat([self._kept[clip_key(clip)] for clip in batch.clips])
        return found if self._is_projector_frozen else self._tower.merger(found.flatten(0, 1))

    @torch.no_grad()
    def _computed(self, patches: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
        """By merged patch, without a graph: features, or states [merged patches, 4, vision_hidden]."""
        tower = self._tower
        output = tower(patches, grid_thw=grid_thw)
        if self._is_projector_frozen:
            return output.pooler_output
        # the tower's states are in the order of its windows; its features, back in that of the clip
        order, _ = get_vision_window_index(grid_thw, tower.spatial_merge_size, tower.window_size, tower.patch_size)
        return output.last_hidden_state.view(len(order), self._merged, -1)[order.argsort()]

    @property
    def _merged(self) -> int:
        """Patches in one feature."""
        return self._tower.spatial_merge_unit

    def _chosen(self, batch: PackedBatch, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Patches and grids of some of the batch's clips; of a blank image where there is none."""
        if not batch.clips:
            return batch.patches, batch.grid_thw
        if not indices:
            side = self._tower.spatial_merge_size
            grid = torch.tensor([[1, side, side]], device=batch.grid_thw.device)
            return batch.patches.new_zeros((side**2, batch.patches.shape[1])), grid
        parts = batch.patches.split([_num_patches(clip) for clip in batch.clips])
        return torch.cat([parts[index] for index in indices]), batch.grid_thw[list(indices)]


def _num_patches(clip: ClipInfo) -> int:
    return math.prod(clip.grid_thw)
