"""What the main loop drives, and what it tells of each update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rlsys.checkpoint import RunState
from rlsys.types import RolloutGroup, ScoredGroup, TrainBatch, WeightVersion


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """What happened in one step, for whoever records it.

    groups: trained on, with the scorers' own rewards.  replaced: without spread, others came in their place.
    bad_clips: draws whose clip was unusable.  shaping_metrics: what was taken off rewards.
    seconds: wall time by phase.
    """

    state: RunState
    groups: tuple[ScoredGroup, ...]
    replaced: tuple[ScoredGroup, ...]
    bad_clips: int
    batch: TrainBatch
    shaping_metrics: Mapping[str, float]
    learner_metrics: Mapping[str, float]
    seconds: Mapping[str, float]


class Parts(Protocol):
    """What the loop drives."""

    def start(self, draw: int) -> Future[ScoredGroup]:
        """Begin the draw-th prompt of the run: decode, prompt, generate, score."""

    def reference_logprobs(self, groups: Sequence[RolloutGroup]) -> Sequence[Sequence[np.ndarray]]:
        """Log-probs of every response under the starting policy, f32 [R], as [group][sample]; asked for a KL reward."""

    def update(self, batch: TrainBatch) -> Mapping[str, float]:
        """All optimiser updates on one batch."""

    def publish(self, version: int) -> WeightVersion:
        """Bring the learner's weights, under this number, to every actor."""

    def record(self, step: Step) -> None:
        """Keep what happened; save a checkpoint when one is due."""
