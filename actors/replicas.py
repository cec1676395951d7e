"""The replicas of a pool: each slot starts its replica, sends it the current weights, and replaces it when it is lost.

An asyncio loop (generation), the main thread (updates) and threads that wait for replicas to start share this state.
One lock, `changed`, guards all of it, and every change calls `notify`.
"""

from __future__ import annotations

import asyncio
import bisect
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from actors.errors import ActorLost, NoWeights, PoolFailed, WeightsRefused, are_weights_lost, reason_of
from actors.replica import (
    HEALTHS,
    MAX_FAILURES,
    Health,
    PublishedWeights,
    Replica,
    ReplicaLimits,
    ReplicaSlot,
    acknowledged,
)
from actors.waiters import Waiters
from rlsys.errors import LearnerLost

log = logging.getLogger(__name__)

SHUTDOWN_S = 10.0


class Replicas:
    """The slots of a pool. make_actor: starts the process of a slot and returns its Ray handle immediately."""

    def __init__(self, make_actor: Callable[[int], Any], num_actors: int, limits: ReplicaLimits) -> None:
        self._make_actor, self.limits = make_actor, limits
        self.changed = threading.Condition()
        self._changed_s = time.monotonic()
        self.weights: PublishedWeights | None = None
        """The current weights, which a new replica gets before it samples."""
        self.accepted: PublishedWeights | None = None
        """The weights that were last sent and that at least one replica took."""
        self.is_asleep = False
        """Whether the learner has the GPUs; no replica samples or starts then, see `actors.pool_sleep`."""
        self._missing: list[ReplicaSlot] = []
        self._gone: PublishedWeights | None = None  # can no longer be fetched
        self.counts: Counter[str] = Counter()
        self._line: list[int] = []
        """The tickets of the groups that wait for a replica, oldest first."""
        self._waiters = Waiters()
        self._is_closed = False
        self._slots: list[ReplicaSlot] = []
        for index in range(num_actors):
            self._slots.append(ReplicaSlot(index, self._new_actor(index)))
        for slot in self._slots:
            self._bring_up_in_background(slot)

    def ready(self) -> list[Replica]:
        """Return the replicas that can sample."""
        return [slot.replica for slot in self._slots if self._is_ready(slot.replica)]

    def _is_ready(self, replica: Replica) -> bool:
        is_awake = replica.is_awake and not self.is_asleep
        return is_awake and replica.died_with is None and replica.held is not None and replica.held is self.weights

    def alive(self, *, is_loaded: bool) -> list[Replica]:
        """Return the living replicas whose engine is loaded, up or not, or those whose engine is not."""
        living = [slot.replica for slot in self._slots if slot.replica.died_with is None]
        return [replica for replica in living if replica.is_loaded == is_loaded]

    def up(self) -> list[Replica]:
        """Return the replicas to send new weights to. Replicas that come up later get them before they sample."""
        if self.is_asleep:  # those that start wait until it is over
            return self.alive(is_loaded=True)
        return [slot.replica for slot in self._slots if slot.replica.is_up and slot.replica.died_with is None]

    def newcomers(self) -> list[ReplicaSlot]:
        """Return the slots whose first replica has not come up yet."""
        return [slot for slot in self._slots if not slot.has_served]

    @property
    def num_waiting(self) -> int:
        """Number of groups that no replica has room for."""
        return len(self._line)

    def health(self, slot: ReplicaSlot) -> Health:
        """Return the health of a slot.

        healthy: its replica samples.
        suspect: its replica samples, but has used half its deadline (others are preferred), or the slot has failed
        since it last finished a group.
        stale: its replica does not hold the current weights (it starts, loads, or is being replaced) and does not
        sample.
        dead: it failed MAX_FAILURES times in a row and is given up.
        """
        if slot.is_given_up:
            return "dead"
        if not self._is_ready(slot.replica):
            return "stale"
        return "suspect" if slot.errors or self._is_late(slot.replica) else "healthy"

    def _is_late(self, replica: Replica) -> bool:
        return replica.groups > 0 and time.monotonic() - replica.progress_s > self.limits.timeout_s / 2

    def count_healths(self) -> dict[Health, int]:
        """Return the number of slots by health."""
        found = [self.health(slot) for slot in self._slots]
        return {health: found.count(health) for health in HEALTHS}

    def note_healths(self) -> None:
        """Log the changes of health since the last call. The lock must be held."""
        for slot in self._slots:
            before, slot.health = slot.health, self.health(slot)
            if slot.health != before:
                # every update makes all slots stale for a moment
                passing = {before, slot.health} == {"healthy", "stale"}
                level = logging.WARNING if slot.health in ("suspect", "dead") else logging.INFO
                level = logging.DEBUG if passing else level
                log.log(level, "rollout actor %d: %s, was %s", slot.index, slot.health, before)

    def wait_settled(self, newcomers: Sequence[ReplicaSlot]) -> None:
        """Wait until each newcomer has come up or was given up, and a replica can sample. The lock must be held.

        Raises PoolFailed if none ever will or `ReplicaLimits.stall_s` has passed, LearnerLost if the weights are gone.
        """
        while not self._is_over():
            self.raise_if_weights_gone()
            if all(slot.has_served or slot.is_given_up for slot in newcomers) and self.ready():
                return
            self.raise_if_stalled()
            self.changed.wait(self._changed_s + self.limits.stall_s - time.monotonic())
        self.raise_if_over()

    def raise_if_weights_gone(self) -> None:
        """Raise LearnerLost if a replica could not fetch the current weights any more. The lock must be held."""
        if self.weights is not None and self._gone is self.weights:
            raise LearnerLost(f"the weights of version {self.weights.version.version} were lost with the learner.")

    def raise_if_over(self) -> None:
        """Raise PoolFailed, with the actors' own errors, if no slot can have a replica any more."""
        if self._is_closed:
            raise PoolFailed("the rollout actors were shut down.")
        if self._is_over():
            errors = "\n".join(f"actor {slot.index}: {slot.errors[-1]}" for slot in self._slots)
            raise PoolFailed(f"every rollout actor failed {MAX_FAILURES} times in a row; the last errors:\n{errors}")

    def raise_if_stalled(self) -> None:
        """Raise PoolFailed if nothing has happened for too long. The lock must be held."""
        if not self.is_asleep and time.monotonic() - self._changed_s >= self.limits.stall_s:
            raise PoolFailed(
                f"no rollout actor came up, finished a group or failed for {self.limits.stall_s:g} s "
                f"(rollout.timeout_s + rollout.start_timeout_s): {self.count_healths()}."
            )

    def _is_over(self) -> bool:
        return self._is_closed or all(slot.is_given_up for slot in self._slots)

    async def acquire(self, ticket: int, num_responses: int, *, reserve: bool) -> Replica:
        """Return the least busy ready replica with room and count a group on it; lower tickets are served first.

        reserve: the group needs no room, and the replica then accepts no others. A replica has room while it has no
        more responses than it generates at once, so at most one group waits in its engine.
        Raises NoWeights before the first version, PoolFailed if no replica is left or all hang.
        """
        with self.changed:
            bisect.insort(self._line, ticket)
        try:
            while True:
                with self.changed:
                    self.raise_if_over()
                    if self.weights is None:
                        raise NoWeights("no weights were published yet; call load_weights before generate.")
                    if self._line[0] == ticket and (replica := self._least_busy(reserve)):
                        if replica.groups == 0:
                            replica.progress_s = time.monotonic()
                        replica.groups += 1
                        replica.responses += num_responses
                        replica.is_reserved = reserve
                        return replica
                    news = self._waiters.news(ticket)
                await self._wait(news)
        finally:
            with self.changed:
                self._line.remove(ticket)
                self.notify()

    def _least_busy(self, reserve: bool) -> Replica | None:
        most = self.limits.max_num_seqs
        free = [
            slot
            for slot in self._slots
            if self._is_ready(slot.replica)
            and not slot.replica.is_reserved
            and (reserve or most is None or slot.replica.responses <= most)
        ]
        if not free:
            return None
        return min(free, key=lambda slot: (self._is_late(slot.replica), slot.replica.responses)).replica

    async def becomes_alone(self, replica: Replica) -> bool:
        """Return True once the group that reserved the replica is alone on it, False if it is lost before that."""
        while True:
            with self.changed:
                if replica.died_with is not None or replica.groups == 1:
                    return replica.died_with is None
                news = self._waiters.news()
            await self._wait(news)

    def release(self, replica: Replica, num_responses: int, *, was_reserved: bool) -> None:
        """Count one group fewer on the replica."""
        with self.changed:
            replica.groups -= 1
            replica.responses -= num_responses
            replica.is_reserved = replica.is_reserved and not was_reserved
            self.notify()

    def note_progress(self, replica: Replica) -> None:
        """Record that the replica has finished a group, which resets its slot's failures."""
        with self.changed:
            replica.progress_s = time.monotonic()
            self._slots[replica.slot].errors.clear()

    def hold(self, replica: Replica, weights: PublishedWeights) -> None:
        """Record that the replica acknowledged the weights; it samples if they are still the current ones."""
        with self.changed:
            replica.held, replica.progress_s = weights, time.monotonic()
            self._slots[replica.slot].has_served = True
            self.notify()

    def lose(self, replica: Replica, reason: str, *, is_its_own_fault: bool = True) -> None:
        """Kill the replica and start another in its slot, unless that was done already or the slot keeps failing."""
        slot = self._slots[replica.slot]
        with self.changed:
            if replica.died_with is not None or self._is_closed:
                return
            replica.died_with = replica.groups
            if is_its_own_fault:
                slot.errors.append(reason)
            self.counts["rollout/lost_actors"] += 1
            self.notify()
        log.warning("rollout actor %d is lost (%d groups on it): %s", replica.slot, replica.died_with, reason)
        ray.kill(replica.handle)  # ends a stopped process too: Ray sends SIGKILL if it does not exit by itself
        with self.changed:
            self._missing.append(slot)
        self.replace_missing()

    def replace_missing(self) -> None:
        """Start replicas in place of lost ones, unless the learner has the GPUs: loading an engine needs their memory.

        A slot that was given up stays empty.
        """
        with self.changed:
            slots, self._missing = ([], self._missing) if self.is_asleep else (self._missing, [])
        for slot in [slot for slot in slots if not slot.is_given_up]:
            successor = self._new_actor(slot.index)
            with self.changed:
                slot.replica = successor
            self._bring_up_in_background(slot)

    def _new_actor(self, index: int) -> Replica:
        return Replica(handle=self._make_actor(index), slot=index)

    def _bring_up_in_background(self, slot: ReplicaSlot) -> None:
        threading.Thread(
            target=self._bring_up, args=(slot, slot.replica), name=f"start-{slot.index}", daemon=True
        ).start()

    def _bring_up(self, slot: ReplicaSlot, replica: Replica) -> None:
        try:
            ray.get(replica.handle.ping.remote(), timeout=self.limits.start_timeout_s)
        except GetTimeoutError:
            self.lose(replica, f"was not up within {self.limits.start_timeout_s:g} s (rollout.start_timeout_s).")
            return
        except (RayError, ActorLost) as error:
            self.lose(replica, reason_of(error))
            return
        while replica.died_with is None and (wanted := self._admit(replica)) is not None:
            try:
                for refusal in self.send([replica], wanted).values():
                    if not self._was_withdrawn(wanted):
                        self.lose(replica, reason_of(refusal))
            except LearnerLost as error:
                self._wait_for_successor(wanted, replica, error)

    def _was_withdrawn(self, refused: PublishedWeights) -> bool:
        """Return whether weights that a newcomer refused are not the current ones any more.

        While an update is under way it waits for the others: what all refuse is withdrawn and no fault of a replica.
        """
        with self.changed:
            self.changed.wait_for(
                lambda: self._is_closed or self.weights is not refused or self.accepted is refused,
                timeout=self.limits.stall_s,
            )
            return self.weights is not refused

    def _wait_for_successor(self, gone: PublishedWeights, replica: Replica, error: LearnerLost) -> None:
        """Wait for other weights than the lost ones; treat the replica as lost if none come in time."""
        with self.changed:
            replica.is_loaded = True
            self.notify()
            found = self.changed.wait_for(
                lambda: self._is_closed or self.weights is not gone, timeout=self.limits.start_timeout_s
            )
        if not found:
            self.lose(replica, str(error))

    def send(self, replicas: Sequence[Replica], weights: PublishedWeights) -> dict[Replica, WeightsRefused]:
        """Send weights to replicas and return those that refused, once each has answered or is lost.

        Updates of all replicas and a replica that joins late both use this. A replica that takes longer than
        `timeout_s` since it last finished something is lost; this time runs for all replicas concurrently.
        Raises LearnerLost if the weights were lost with the process that published them; the replicas then wait for
        the next weights.
        """
        start, timeout_s = time.monotonic(), self.limits.timeout_s
        transfer, version = weights.transfer, weights.version
        pending = {replica.handle.load_weights.remote(transfer, version): replica for replica in replicas}
        refused: dict[Replica, WeightsRefused] = {}
        lost: Exception | None = None
        while pending:
            left = min(replica.seconds_left(start, timeout_s) for replica in pending.values())
            answered, _ = ray.wait(list(pending), timeout=max(0.0, left))
            overdue = [ref for ref, replica in pending.items() if replica.seconds_left(start, timeout_s) <= 0]
            for ref in answered or overdue:
                replica = pending.pop(ref)
                try:
                    replica.parts_s = acknowledged(ray.get(ref, timeout=0), version)
                    self.hold(replica, weights)
                except GetTimeoutError:
                    reason = f"not acknowledged within {timeout_s:g} s (rollout.timeout_s)."
                    self.lose(replica, f"update to version {version.version}: {reason}")
                except (RayError, ActorLost, WeightsRefused) as error:
                    if are_weights_lost(error):
                        lost = error
                    elif isinstance(error, WeightsRefused):
                        refused[replica] = error.cause if isinstance(error, RayTaskError) else error
                    else:
                        self.lose(replica, f"update to version {version.version}: {reason_of(error)}")
        if lost is not None:
            with self.changed:
                self._gone = weights
                self.notify()
            raise LearnerLost(f"the weights of version {version.version} were lost: {reason_of(lost)}") from lost
        return refused

    def _admit(self, replica: Replica) -> PublishedWeights | None:
        """Return the weights that the replica must load before it is up; None if it has the newest."""
        with self.changed:
            replica.is_loaded = True
            self.notify()
            self.changed.wait_for(lambda: not self.is_asleep or self._is_closed or replica.died_with is not None)
            if not self._is_closed and self.weights is not None and replica.held is not self.weights:
                replica.is_loaded = False
                return self.weights
            replica.is_up = True
            return None

    def close(self) -> None:
        """End all replicas; groups that are still running fail. Further calls do nothing."""
        with self.changed:
            if self._is_closed:
                return
            self._is_closed = True
            replicas = [slot.replica for slot in self._slots]
            self.notify()
        farewells = [
            replica.handle.shutdown.remote() for replica in replicas if replica.is_up and replica.died_with is None
        ]
        if farewells:
            ray.wait(farewells, num_returns=len(farewells), timeout=SHUTDOWN_S)
        for replica in replicas:
            ray.kill(replica.handle)

    async def _wait(self, news: asyncio.Event) -> None:
        while not news.is_set():
            with self.changed:
                self.raise_if_stalled()
                left = self._changed_s + self.limits.stall_s - time.monotonic()
                left = self.limits.stall_s if self.is_asleep else left
            with suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), left)

    def notify(self) -> None:
        """Wake everything that waits for a change. The lock must be held."""
        self._changed_s = time.monotonic()
        self.note_healths()
        self.changed.notify_all()
        self._waiters.wake(self._line[0] if self._line else None)
