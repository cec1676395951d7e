"""The records of a pool of rollout actors: replicas, each one process, and the slots in which they run in turn."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from actors.errors import ActorLost
from rlsys.weights.manifest import WeightTransfer
from rlsys.weights.version import WeightVersion

MAX_FAILURES = 3
"""Number of failures of a slot in a row, without a finished group, after which it is given up."""

Health = Literal["healthy", "suspect", "stale", "dead"]
HEALTHS: tuple[Health, ...] = ("healthy", "suspect", "stale", "dead")


@dataclass(frozen=True, eq=False)
class PublishedWeights:
    """A version with its transfer. The object store keeps the bytes as long as this is referenced."""

    transfer: WeightTransfer
    version: WeightVersion


@dataclass(eq=False)
class Replica:
    """One actor process.

    groups, responses: number in flight on it.  is_reserved: whether it accepts no further groups.
    is_up: whether its engine is loaded, so that new weights are sent to it.
    is_loaded: whether its engine is loaded and no weights are on their way to it as it starts.
    is_awake: whether its engine has its memory, see `actors.pool_sleep`.
    held: the weights that it acknowledged last.  parts_s: seconds of that update by part.
    died_with: number of groups that it had when it was lost, None while it lives.
    progress_s: when it last finished something, or began to work after being idle (monotonic clock).
    """

    handle: Any
    slot: int
    groups: int = 0
    responses: int = 0
    is_reserved: bool = False
    is_up: bool = False
    is_loaded: bool = False
    is_awake: bool = True
    held: PublishedWeights | None = None
    parts_s: Mapping[str, float] = field(default_factory=dict)
    died_with: int | None = None
    progress_s: float = field(default_factory=time.monotonic)

    def seconds_left(self, start_s: float, timeout_s: float) -> float:
        """Return the seconds until a request made at `start_s` is overdue. Any progress counts, as requests queue."""
        return max(start_s, self.progress_s) + timeout_s - time.monotonic()


@dataclass(eq=False)
class ReplicaSlot:
    """A slot in which one replica runs, and is replaced when it is lost.

    errors: failures in a row, newest last.  health: as last logged.
    """

    index: int
    replica: Replica
    has_served: bool = False
    errors: list[str] = field(default_factory=list)
    health: Health = "stale"

    @property
    def is_given_up(self) -> bool:
        """Whether no further replica will be started in the slot."""
        return len(self.errors) >= MAX_FAILURES


@dataclass(frozen=True, kw_only=True)
class ReplicaLimits:
    """The limits of a replica: time limits in seconds, and work in flight.

    timeout_s: to finish some group, or to load weights.  start_timeout_s: to load its engine.
    max_num_seqs: number of responses that it generates at once; None means any number.
    """

    timeout_s: float
    start_timeout_s: float
    max_num_seqs: int | None

    @property
    def stall_s(self) -> float:
        """Time within which every pool makes progress: a group ends, or a replica comes up or is given up."""
        return self.timeout_s + self.start_timeout_s


def acknowledged(got: WeightVersion, wanted: WeightVersion) -> Mapping[str, float]:
    """Return an update's seconds by part; raises ActorLost if the actor acknowledged other weights than it was sent."""
    if (got.version, got.digest) != (wanted.version, wanted.digest):
        raise ActorLost(f"acknowledged version {got.version} ({got.digest}), not {wanted.version} ({wanted.digest}).")
    return got.parts_s
