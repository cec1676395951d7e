"""The ranks that compute their passes together."""

from __future__ import annotations

import datetime

import torch
import torch.distributed as dist

from learner.packing.attention import Form
from learner.packing.packing import PackedBatch
from learner.sequence.clip_parts import clip_part
from learner.sequence.heads import over_heads
from learner.sequence.shared_pass import SharedPass
from rlsys.types import ClipRef


class SequenceGroup:
    """This rank's sequence group: `size` ranks with consecutive numbers, of which it is `index`."""

    def __init__(self, size: int, timeout_s: float) -> None:
        """Join the group; all ranks of all groups must do so together. Collectives fail after `timeout_s`."""
        timeout = datetime.timedelta(seconds=timeout_s)
        rank, world = dist.get_rank(), dist.get_world_size()
        groups = [dist.new_group(list(range(first, first + size)), timeout=timeout) for first in range(0, world, size)]
        self.size, self.index = size, rank % size
        self._group = groups[rank // size]

    def leave(self) -> None:
        """End the group on this rank."""
        dist.destroy_process_group(self._group)

    def part_of(self, clip: ClipRef, frames_per_patch: int) -> ClipRef | None:
        """Return the part of a clip that this rank's tower computes, see `clip_part`."""
        return clip_part(clip, self.size, self.index, frames_per_patch)

    def over_heads(self, form: Form) -> Form:
        """Return the attention of the whole group, see `learner.sequence.heads`."""
        return over_heads(form, self._group)

    def share(self, batch: PackedBatch, patches_per_feature: int, device: torch.device) -> SharedPass:
        """Return this rank's share of a pass."""
        return SharedPass(batch, patches_per_feature, self._group, device)
