"""Delivery of a published version from the learner to the rollout actors, by any transport."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rlsys.weights.manifest import Manifest, WeightTransfer
from rlsys.weights.version import WeightVersion

if TYPE_CHECKING:
    from rlsys.weights.broadcast import BroadcastResult

log = logging.getLogger(__name__)


class Learner(Protocol):
    """The side that publishes weights; see `learner.group.LearnerGroup`."""

    def publish(self, version: int) -> tuple[WeightTransfer, WeightVersion]: ...

    def send(self) -> BroadcastResult: ...

    def require_alive(self) -> None: ...

    def compare(self, folder: Path, transfer: WeightTransfer) -> tuple[Manifest, dict[str, float | None]]: ...


class Pool(Protocol):
    """The side that receives weights; see `actors.pool.RolloutPool`."""

    def load_weights(self, transfer: WeightTransfer, version: WeightVersion) -> int: ...

    def compare_weights(
        self, transfer: WeightTransfer
    ) -> Mapping[str, tuple[Manifest, Mapping[str, float | None]]]: ...


def deliver(learner: Learner, pool: Pool, transfer: WeightTransfer, version: WeightVersion) -> None:
    """Deliver a version: return once every actor has acknowledged it and its broadcast, if any, has ended.

    Raises LearnerLost instead of the actors' errors if the learner died, and with it the weights that it stored.
    """
    with ThreadPoolExecutor(1) as threads:
        broadcasts = transfer.rendezvous is not None and version.transport == "collective"
        broadcast = threads.submit(learner.send) if broadcasts else None
        try:
            pool.load_weights(transfer, version)
        except (RuntimeError, ValueError):  # actors that could not fetch the weights raise ValueError
            if broadcast is not None:
                broadcast.exception()  # a rank that waits for receivers answers nothing else
            learner.require_alive()
            raise
    if broadcast is not None and (problem := broadcast.result().problem):
        log.warning("broadcast of version %d ended early: %s", version.version, problem)
