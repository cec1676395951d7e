"""The sleep of a pool of rollout actors whose GPUs the learner uses meanwhile (`cluster.colocate`)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from actors.errors import ActorLost, reason_of
from actors.replica import Replica
from actors.replicas import Replicas
from rlsys.clock import Turn


def put_to_sleep(replicas: Replicas) -> list[Turn]:
    """Put every engine to sleep once its groups have ended, and return when each was awake.

    No replica samples or starts until `wake_up`. Waits for those that are starting, which need their GPU for it.
    Raises PoolFailed if no replica is left.
    """
    with replicas.changed:
        replicas.is_asleep = True
        replicas.notify()
        replicas.changed.wait_for(lambda: not replicas.alive(is_loaded=False), timeout=replicas.limits.stall_s)
        overdue, sleepers = replicas.alive(is_loaded=False), replicas.alive(is_loaded=True)
        for replica in sleepers:
            replica.is_awake = False
    for replica in overdue:
        replicas.lose(replica, "was still starting when the learner wanted its GPU.")
    with replicas.changed:
        replicas.raise_if_over()
    turns = _ask(replicas, sleepers, "sleep")
    return [replace(turn, holder=f"actor {slept.slot}") for slept, turn in turns.items() if turn is not None]


def wake_up(replicas: Replicas) -> None:
    """Let every engine sample as soon as it has weights, start the replicas that are missing, and wait for one.

    Raises PoolFailed if no replica is left, LearnerLost if the weights are gone.
    """
    with replicas.changed:
        sleepers, newcomers = replicas.alive(is_loaded=True), replicas.newcomers()
    for replica in _ask(replicas, sleepers, "wake"):
        replica.is_awake = True
    with replicas.changed:
        replicas.is_asleep = False
        replicas.notify()
    replicas.replace_missing()
    with replicas.changed:
        replicas.wait_settled(newcomers)


def _ask(replicas: Replicas, asked: Sequence[Replica], method: str) -> dict[Replica, Any]:
    """Call a method of each replica and return the answers. One that fails or takes too long is lost."""
    start, timeout_s = time.monotonic(), replicas.limits.timeout_s
    pending = {replica: getattr(replica.handle, method).remote() for replica in asked}
    answers: dict[Replica, Any] = {}
    for replica, answer in pending.items():
        try:
            answers[replica] = ray.get(answer, timeout=max(0.0, replica.seconds_left(start, timeout_s)))
        except GetTimeoutError:
            replicas.lose(replica, f"{method}: no answer within {timeout_s:g} s (rollout.timeout_s).")
        except (RayError, ActorLost) as error:
            replicas.lose(replica, f"{method}: {reason_of(error)}")
    return answers
