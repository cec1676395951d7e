"""Delivery of a version when the actors fail: what the learner is asked, and when."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from rlsys.weights.broadcast import BroadcastResult
from rlsys.weights.delivery import deliver
from rlsys.weights.manifest import Rendezvous, WeightTransfer
from tests.support.transfers import named, version_of


def test_the_learner_is_not_called_lost_because_it_still_waits_for_actors_that_failed() -> None:
    """Stubs: real actors do not all fail at a moment at which rank 0 certainly waits for them."""
    calls, failed = [], threading.Event()

    class Learner:
        def send(self) -> BroadcastResult:
            failed.wait(60.0)
            calls.append("sent")
            return BroadcastResult(num_receivers=0, num_bytes=0, seconds=0.0)

        def require_alive(self) -> None:
            calls.append("asked")

    class Pool:
        def load_weights(self, *_: object) -> int:
            threading.Timer(0.2, failed.set).start()  # the broadcast ends after the actors have
            raise RuntimeError("no actor is left")

    rendezvous = Rendezvous(name="a", host="127.0.0.1", port=1, num_receivers=1, timeout_s=1.0)
    transfer = WeightTransfer(buckets=(), timeout_s=1.0, rendezvous=rendezvous)
    version = replace(version_of({"w": named(np.zeros(1, np.float32))}), transport="collective")
    with pytest.raises(RuntimeError, match="no actor is left"):
        deliver(Learner(), Pool(), transfer, version)  # type: ignore[arg-type]
    assert calls == ["sent", "asked"]
