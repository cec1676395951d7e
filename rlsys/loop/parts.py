"""The Protocols that the main loop drives, and the record of each step that it passes on."""

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
    """The record of one step.

    state: after the step.  collected: its groups, with rewards as scored, before shaping.
    shaping_metrics: the penalties subtracted from rewards.  seconds: wall time by phase.
    """

    state: RunState
    collected: Collected
    batch: TrainBatch
    shaping_metrics: Mapping[str, float]
    learner_metrics: Mapping[str, float]
    seconds: Mapping[str, float]

    @property
    def groups(self) -> tuple[ScoredGroup, ...]:
        """The groups that were trained on."""
        return self.collected.groups

    @property
    def replaced(self) -> tuple[ScoredGroup, ...]:
        """The groups without reward spread, which were replaced by later groups."""
        return self.collected.replaced


class Parts(GroupSource, Protocol):
    """The operations of one training step."""

    def keep(self, step: int, collected: Collected) -> None:
        """Save the rollouts of a step before its update."""

    def reference_logprobs(self, groups: Sequence[RolloutGroup]) -> Sequence[Sequence[np.ndarray]]:
        """Return log-probs of every response under the starting policy, f32 [R], as `[group][sample]`."""

    def update(self, batch: TrainBatch) -> Mapping[str, float]:
        """Run all optimizer updates of one batch and return the learner's metrics."""

    def publish(self, version: int) -> WeightVersion:
        """Send the learner's weights to every actor as this version."""

    def record(self, step: Step) -> None:
        """Record the step, and save a checkpoint when one is due."""


Outcome = TypeVar("Outcome", covariant=True)


class WholeRun(Parts, Protocol[Outcome]):
    """A run from the learner's start to its outcome; each method may raise LearnerLost."""

    @property
    def objective(self) -> Objective:
        """The objective that is optimised."""

    @property
    def progress(self) -> AbstractContextManager[object]:
        """A progress display, open while steps are running."""

    def load_learner(self) -> RunState:
        """Load the weights to train from into the learner, restarting it if it was lost, and return their state."""

    def begin(self, state: RunState) -> None:
        """Prepare for the first step. Called again after every recovery."""

    def finish(self, state: RunState) -> Outcome:
        """Conclude the run after its last step and return the outcome."""

    def learner_lost(self, error: LearnerLost) -> None:
        """Count the loss. Raises LearnerLost to give up."""
