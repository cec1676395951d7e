"""What the main loop drives, and what it tells of each update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from rlsys.errors import LearnerLost
from rlsys.loop.collect import Collected, GroupSource
from rlsys.loop.objective import Objective
from rlsys.loop.state import RunState
from rlsys.types import RolloutGroup, ScoredGroup, TrainBatch
from rlsys.weights.version import WeightVersion


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """What happened in one step, for the record.

    state: after it.  collected: the prompts that it used, with the scorers' own rewards.
    shaping_metrics: the penalties taken off rewards.  seconds: wall time by phase.
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


class Parts(GroupSource, Protocol):
    """What the loop drives."""

    def keep(self, step: int, collected: Collected) -> None:
        """Keep what was sampled for a step that is about to be done."""

    def reference_logprobs(self, groups: Sequence[RolloutGroup]) -> Sequence[Sequence[np.ndarray]]:
        """Return log-probs of every response under the starting policy, f32 [R], as [group][sample]."""

    def update(self, batch: TrainBatch) -> Mapping[str, float]:
        """Do all optimizer updates on one batch."""

    def publish(self, version: int) -> WeightVersion:
        """Bring the learner's weights, under this number, to every actor."""

    def record(self, step: Step) -> None:
        """Keep what happened; save a checkpoint when one is due."""


Outcome = TypeVar("Outcome", covariant=True)


class WholeRun(Parts, Protocol[Outcome]):
    """A run from the learner's start to its outcome; each part may raise LearnerLost."""

    @property
    def objective(self) -> Objective:
        """What is optimised."""

    @property
    def progress(self) -> AbstractContextManager[object]:
        """Open while steps are done."""

    def load_learner(self) -> RunState:
        """Give the learner, started again where it was lost, the weights to train from; return their state."""

    def begin(self, state: RunState) -> None:
        """Do what comes before the steps. Called again after every recovery."""

    def finish(self, state: RunState) -> Outcome:
        """Do what comes behind the last step."""

    def learner_lost(self, error: LearnerLost) -> None:
        """Count the loss. Raises LearnerLost to give up."""
