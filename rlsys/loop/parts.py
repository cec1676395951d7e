"""What the main loop drives, and what it tells of each update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rlsys.errors import LearnerLost
from rlsys.loop.collect import Collected
from rlsys.loop.state import RunState
from rlsys.types import RolloutGroup, ScoredGroup, TrainBatch
from rlsys.weights.version import WeightVersion


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """What happened in one step, for whoever records it.

    state: after it.  collected: the draws that it used, with the scorers' own rewards.
    shaping_metrics: what was taken off rewards.  seconds: wall time by phase.
    """

    state: RunState
    collected: Collected
    batch: TrainBatch
    shaping_metrics: Mapping[str, float]
    learner_metrics: Mapping[str, float]
    seconds: Mapping[str, float]

    @property
    def groups(self) -> tuple[ScoredGroup, ...]:
        """Trained on."""
        return self.collected.groups

    @property
    def replaced(self) -> tuple[ScoredGroup, ...]:
        """Without spread: others came in their place."""
        return self.collected.replaced


class Parts(Protocol):
    """What the loop drives."""

    def start(self, draw: int) -> Future[ScoredGroup]:
        """Begin the draw-th prompt of the run: decode, prompt, generate, score."""

    def prefetch(self, draw: int) -> None:
        """Decode the clips of a draw that will be started soon. Returns at once; errors come up at its start."""

    def check(self) -> None:
        """Asked while a group is waited for. Raises LearnerLost when groups wait for weights that went with it."""

    def keep(self, step: int, collected: Collected) -> None:
        """Keep what was sampled for a step that is about to be done."""

    def reference_logprobs(self, groups: Sequence[RolloutGroup]) -> Sequence[Sequence[np.ndarray]]:
        """Log-probs of every response under the starting policy, f32 [R], as [group][sample]; asked for a KL reward."""

    def update(self, batch: TrainBatch) -> Mapping[str, float]:
        """All optimiser updates on one batch."""

    def publish(self, version: int) -> WeightVersion:
        """Bring the learner's weights, under this number, to every actor."""

    def record(self, step: Step) -> None:
        """Keep what happened; save a checkpoint when one is due."""

    def recover(self, error: LearnerLost) -> RunState:
        """Start the learner again from its last checkpoint, whose state comes back; raises `error` to give up."""
