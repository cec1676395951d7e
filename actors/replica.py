"""The records of a pool of rollout actors: a replica is one process, a slot is where one runs after another."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal

from rlsys.weights.manifest import WeightTransfer
from rlsys.weights.version import WeightVersion

MAX_FAILURES = 3
"""Failures of a slot in a row, without a finished group, after which it is given up."""

Health = Literal["healthy", "suspect", "stale", "dead"]
HEALTHS: tuple[Health, ...] = ("healthy", "suspect", "stale", "dead")


@dataclass(frozen=True, eq=False)
class PublishedWeights:
    """A version and how to get it; while this is referenced, the object store keeps the bytes."""

    transfer: WeightTransfer
    version: WeightVersion


@dataclass(eq=False)
class Replica:
    """One actor process.

    groups, responses: in flight on it.  is_reserved: it takes no more.
    is_up: its engine is loaded, and new weights are sent to it by `Replicas.update`.
    held: the weights that it acknowledged last.
    died_with: groups that it had when it was lost, None while it lives.
    progress_s: when it last finished something, or began after a rest (monotonic clock).
    """

    handle: Any
    slot: int
    groups: int = 0
    responses: int = 0
    is_reserved: bool = False
    is_up: bool = False
    held: PublishedWeights | None = None
    died_with: int | None = None
    progress_s: float = field(default_factory=time.monotonic)

    def seconds_left(self, start_s: float, timeout_s: float) -> float:
        """Return the time until a request made at `start_s` is overdue. Requests queue up, so any progress counts."""
        return max(start_s, self.progress_s) + timeout_s - time.monotonic()


@dataclass(eq=False)
class ReplicaSlot:
    """Where one replica runs; it is replaced when it is lost.

    errors: failures in a row, newest last.  health: as last logged.
    """

    index: int
    replica: Replica
    has_served: bool = False
    errors: list[str] = field(default_factory=list)
    health: Health = "stale"

    @property
    def is_given_up(self) -> bool:
        """Whether no replica is started here any more."""
        return len(self.errors) >= MAX_FAILURES


@dataclass(frozen=True, kw_only=True)
class ReplicaLimits:
    """How long a replica may take, in seconds, and how much it may have in flight.

    timeout_s: to finish some group, or to load weights.  start_timeout_s: to load its engine.
    max_num_seqs: responses that it generates at once; None: any number.
    """

    timeout_s: float
    start_timeout_s: float
    max_num_seqs: int | None

    @property
    def stall_s(self) -> float:
        """Within this time something happens in every pool: a group ends, a replica comes up, or one is given up."""
        return self.timeout_s + self.start_timeout_s
