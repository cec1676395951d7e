"""Parts of the model that are not trained, and reuse of a frozen vision tower's output for each clip."""

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
"""Prefix of the projector's parameter names inside the vision tower's module."""


def freeze(model: Qwen2_5_VLForConditionalGeneration, frozen_parts: Sequence[Part]) -> None:
    """Exclude parts from training; "vision_tower" is everything before the projector, which merges 2 x 2 patches.

    Call this before making the model's `PackedPolicy`.
    """
    for part in frozen_parts:
        for parameter in _parameters(model.model.visual, part):
            parameter.requires_grad_(False)


def _parameters(tower: Qwen2_5_VisionTransformerPretrainedModel, part: Part) -> list[nn.Parameter]:
    is_projector = part == "projector"
    return [parameter for name, parameter in tower.named_parameters() if name.startswith(PROJECTOR) == is_projector]


class ClipFeatures:
    """The vision tower's features of a pass's clips, stored by clip until `forget` if the tower is frozen.

    Only values that no trained weight affects are stored: the features if the projector is frozen too, else the states
    before it, so that the projector runs with a graph in every pass.

    The tower is called in every pass, with a blank image if all clips are stored or there are none. Ranks hold other
    clips, and at ZeRO-3 every call of the tower is a collective: a rank that skipped it would leave the others waiting
    indefinitely. The four patches cost nothing compared with a pass of thousands of tokens.
    """

    def __init__(self, tower: Qwen2_5_VisionTransformerPretrainedModel) -> None:
        self._tower = tower
        self._is_tower_frozen, self._is_projector_frozen = (
            not any(parameter.requires_grad for parameter in _parameters(tower, part))
            for part in ("vision_tower", "projector")
        )
        self._kept: dict[ClipKey, torch.Tensor] = {}

    def forget(self) -> None:
        """Discard all stored features."""
        self._kept.clear()

    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        """Return the features of the batch's clips, or of a blank image, in order: [merged patches, hidden]."""
        if not self._is_tower_frozen:
            return self._tower(batch.patches, grid_thw=batch.grid_thw).pooler_output
        missing = [index for index, clip in enumerate(batch.clips) if clip_key(clip) not in self._kept]
        found = self._computed(*self._chosen(batch, missing))
        if missing:
            clips = [batch.clips[index] for index in missing]
            parts = found.split([_num_patches(clip) // self._merged for clip in clips])
            # cloned, because a slice keeps the whole tensor in memory
            self._kept.update(zip(map(clip_key, clips), (part.clone() for part in parts), strict=True))
        if batch.clips:
            found = torch.cat([self._kept[clip_key(clip)] for clip in batch.clips])
        return found if self._is_projector_frozen else self._tower.merger(found.flatten(0, 1))

    @torch.no_grad()
    def _computed(self, patches: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
        """Return the features, or states [merged patches, 4, vision_hidden], by merged patch and without a graph."""
        tower = self._tower
        output = tower(patches, grid_thw=grid_thw)
        if self._is_projector_frozen:
            return output.pooler_output
        # the tower's states are in the order of its windows, its features in the order of the clip
        order, _ = get_vision_window_index(grid_thw, tower.spatial_merge_size, tower.window_size, tower.patch_size)
        return output.last_hidden_state.view(len(order), self._merged, -1)[order.argsort()]

    @property
    def _merged(self) -> int:
        """Number of patches in one feature."""
        return self._tower.spatial_merge_unit

    def _chosen(self, batch: PackedBatch, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the patches and grids of some of the batch's clips; a blank image's if there are none."""
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
