"""Parts of the model that are not trained, and reuse of a frozen vision tower's output for each clip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from learner.model.families import family_of, modules_of, vision_of
from learner.packing.packing import ClipKey, PackedBatch, clip_key
from rlsys.types import ClipInfo

Part = Literal["vision_tower", "projector"]


def freeze(model: PreTrainedModel, frozen_parts: Sequence[Part]) -> None:
    """Exclude parts from training; "vision_tower" is all of it but the projectors, which merge 2 x 2 patches.

    Call this before making the model's `PackedPolicy`.
    """
    for part in frozen_parts:
        for parameter in _parameters(model, part):
            parameter.requires_grad_(False)


def _parameters(model: PreTrainedModel, part: Part) -> list[nn.Parameter]:
    family, is_projector = family_of(model), part == "projector"
    return [
        parameter
        for name, parameter in model.named_parameters()
        if name.startswith((family.tower, *family.projectors)) and name.startswith(family.projectors) == is_projector
    ]


class ClipFeatures:
    """The vision tower's features of a pass's clips, stored by clip until `forget` if the tower is frozen.

    Only values that no trained weight affects are stored: the features if the projectors are frozen too, else the
    states before them, so that the projectors run with a graph in every pass.

    The tower is called in every pass, with a blank image if all clips are stored or there are none. Ranks hold other
    clips, and at ZeRO-3 every call of the tower is a collective: a rank that skipped it would leave the others waiting
    indefinitely. The four patches cost nothing compared with a pass of thousands of tokens.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._vision = vision_of(model)
        self._modules = modules_of(model)
        self._side = self._modules.side(self._vision)
        self._is_tower_frozen, self._is_projector_frozen = (
            not any(parameter.requires_grad for parameter in _parameters(model, part))
            for part in ("vision_tower", "projector")
        )
        self._kept: dict[ClipKey, torch.Tensor] = {}

    def forget(self) -> None:
        """Discard all stored features."""
        self._kept.clear()

    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        """Return the features of the batch's clips, or of a blank image, see `Modules.features`."""
        if not self._is_tower_frozen:
            return self._modules.features(self._vision, batch.patches, batch.grid_thw)
        missing = [index for index, clip in enumerate(batch.clips) if clip_key(clip) not in self._kept]
        found = self._computed(*self._chosen(batch, missing))
        if missing:
            clips = [batch.clips[index] for index in missing]
            parts = found.split([_num_patches(clip) // self.merged for clip in clips])
            # cloned, because a slice keeps the whole tensor in memory
            self._kept.update(zip(map(clip_key, clips), (part.clone() for part in parts), strict=True))
        if batch.clips:
            found = torch.cat([self._kept[clip_key(clip)] for clip in batch.clips])
        return found if self._is_projector_frozen else self._modules.project(self._vision, found)

    @torch.no_grad()
    def _computed(self, patches: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
        """Return the features or the states, by merged patch and without a graph."""
        read = self._modules.features if self._is_projector_frozen else self._modules.states
        return read(self._vision, patches, grid_thw)

    @property
    def merged(self) -> int:
        """Number of patches in one feature."""
        return self._side**2

    def _chosen(self, batch: PackedBatch, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the patches and grids of some of the batch's clips; a blank image's if there are none."""
        if len(indices) == len(batch.clips):  # no copy of the pixels
            return batch.patches, batch.grid_thw
        if not indices:
            grid = torch.tensor([[1, self._side, self._side]], device=batch.grid_thw.device)
            return batch.patches.new_zeros((self.merged, batch.patches.shape[1])), grid
        parts = batch.patches.split([_num_patches(clip) for clip in batch.clips])
        return torch.cat([parts[index] for index in indices]), batch.grid_thw[list(indices)]


def _num_patches(clip: ClipInfo) -> int:
    return math.prod(clip.grid_thw)
