"""One rank's share of a pass: consecutive tokens, some temporal patches of the clips, and some response tokens.

A pass of L tokens and T response tokens is divided evenly: rank i has tokens i x ceil(L / size) and following, and
computes the log-probs of response tokens i x ceil(T / size) and following, with pads behind the last. The states that
predict them and the features of media tokens come from the ranks that have them. Response tokens are divided apart
from tokens, because they all lie behind the prompt, and at the vocabulary's size they would fill one rank's memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from learner.packing.packing import PackedBatch
from learner.sequence.clip_parts import patches_of
from learner.sequence.routes import Gathered, Route, plan_route
from rlsys.types import ClipInfo


class SharedPass:
    """The inputs of one rank in a pass of a sequence group.

    input_ids: i64 [1, l], position_ids: i64 [3, 1, l], l = ceil(L / size).  media_index: i64, which of these tokens
    are replaced by features.  targets: i64 [ceil(T / size)].
    """

    def __init__(
        self, batch: PackedBatch, patches_per_feature: int, group: dist.ProcessGroup, device: torch.device
    ) -> None:
        """Divide the batch. patches_per_feature: patches of the vision tower that are merged into one feature."""
        self._group, self._size, self._index = group, dist.get_world_size(group), dist.get_rank(group)
        self._num_targets = len(batch.targets)
        self._length = -(-batch.input_ids.shape[-1] // self._size)
        self.input_ids, self.position_ids = self._own(batch.input_ids), self._own(batch.position_ids)
        media = batch.media_index.cpu().numpy()
        self.media_index = torch.from_numpy(media[media // self._length == self._index] % self._length).to(device)
        self._features = self._feature_route(batch, media, patches_per_feature, device)
        share = -(-self._num_targets // self._size)
        self.targets = nn.functional.pad(batch.targets, (0, share * self._size - self._num_targets))[
            self._index * share : (self._index + 1) * share
        ]
        self._predictors = self._predictor_route(batch, share, device)

    def _own(self, values: torch.Tensor) -> torch.Tensor:
        """Return this rank's part of values by token, [..., L], with zeros as pads."""
        found = values[..., self._index * self._length : (self._index + 1) * self._length]
        return nn.functional.pad(found, (0, self._length - found.shape[-1]))

    def _route(self, source: np.ndarray, place: np.ndarray, destination: np.ndarray, device: torch.device) -> Route:
        plan = plan_route(source, place, destination, size=self._size, index=self._index)
        return Route(plan, self._group, device)

    def _feature_route(
        self, batch: PackedBatch, media: np.ndarray, patches_per_feature: int, device: torch.device
    ) -> Route:
        owners, places = _places(batch.distinct_clips, self._size, patches_per_feature)
        wanted = np.arange(len(media)) if batch.feature_index is None else batch.feature_index.cpu().numpy()
        return self._route(owners[wanted], places[wanted], media // self._length, device)

    def _predictor_route(self, batch: PackedBatch, share: int, device: torch.device) -> Route:
        wanted = batch.hidden_index.cpu().numpy()
        if len(wanted):  # the last predictor stands for the pads
            wanted = np.pad(wanted, (0, share * self._size - len(wanted)), mode="edge")
        destination = np.arange(len(wanted)) // max(share, 1)
        return self._route(wanted // self._length, wanted % self._length, destination, device)

    def features(self, computed: torch.Tensor) -> torch.Tensor:
        """Return the features of this rank's media tokens. computed: those of its parts of the clips, in order."""
        return self._features(computed)

    def predictors(self, states: torch.Tensor) -> torch.Tensor:
        """Return the states that predict this rank's targets. states: [l, hidden], of its tokens."""
        return self._predictors(states)

    def joined(self, logprobs: torch.Tensor, entropy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log-probs and entropies of all ranks' targets, f32 [T], on every rank."""
        found = [Gathered.apply(one, self._group)[: self._num_targets] for one in (logprobs, entropy)]
        return found[0], found[1]


def _places(clips: Sequence[ClipInfo], size: int, patches_per_feature: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for each feature of the clips, in order, the rank that computes it and its number there, both i64 [F]."""
    owners = [np.zeros(0, np.int64)]
    for clip in clips:
        time, height, width = clip.grid_thw
        by_patch = np.empty(time, np.int64)
        for index in range(size):
            patches = patches_of(clip, size, index)
            by_patch[patches.start : patches.stop] = index
        owners.append(np.repeat(by_patch, height * width // patches_per_feature))
    joined = np.concatenate(owners)
    places = np.empty(len(joined), np.int64)
    for index in range(size):
        found = joined == index
        places[found] = np.arange(np.count_nonzero(found))
    return joined, places
