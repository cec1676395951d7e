"""A published version reaches the actors, by whatever transport."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

from rlsys.weights.manifest import Shipment
from rlsys.weights.version import WeightVersion

if TYPE_CHECKING:
    from rlsys.weights.broadcast import Sent

log = logging.getLogger(__name__)


class Sender(Protocol):
    """See `learner.group.LearnerGroup`."""

    def send(self) -> Sent: ...

    def require_alive(self) -> None: ...


class Receivers(Protocol):
    """See `actors.pool.RolloutPool`."""

    def load_weights(self, shipment: Shipment, version: WeightVersion) -> int: ...


def deliver(sender: Sender, receivers: Receivers, shipment: Shipment, version: WeightVersion) -> None:
    """Returns once every actor has acknowledged the version, and a broadcast is over.

    Raises LearnerLost rather than what the actors say where the learner is gone with what it had stored.
    """
    with ThreadPoolExecutor(1) as threads:
        broadcasts = shipment.rendezvous is not None and version.transport == "collective"
        sending = threads.submit(sender.send) if broadcasts else None
        try:
            receivers.load_weights(shipment, version)
        except (RuntimeError, ValueError):  # actors that could not fetch refuse the weights, with a ValueError
            sender.require_alive()
            raise
    if sending is not None and (problem := sending.result().problem):
        log.warning("version %d, broadcast: %s", version.version, problem)
