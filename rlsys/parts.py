"""What the main loop drives, and what it tells of each update."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from rlsys.checkpoint import RunState
from rlsys.types import ScoredGroup, TrainBatch, WeightVersion


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """What happened in one update, for whoever records it. seconds: wall time by phase."""

    state: RunState
    groups: tuple[ScoredGroup, ...]
    batch: TrainBatch
    learner_metrics: Mapping[str, float]
    seconds: Mapping[str, float]
    bad_clips: int


class Parts(Protocol):
    """What the loop drives."""

    def start(self, draw: int) -> Future[ScoredGroup]:
        """Begin the draw-th prompt of the run: decode, prompt, generate, score."""

    def update(self, batch: TrainBatch) -> Mapping[str, float]:
        """One optimiser update."""

    def publish(self, version: int) -> WeightVersion:
        """Bring the learner's weights, under this number, to every actor."""

    def record(self, step: Step) -> None:
        """Keep what happened; save a checkpoint when one is due."""
