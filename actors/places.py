"""Where rollout actors live: each place starts its actor, brings it to the current weights, and replaces it.

An asyncio loop (generation), the main thread (updates) and threads that wait for actors to start share it. One
lock, `changed`, guards it all; whoever changes something says `notify`.
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
from dataclasses import dataclass, field
from typing import Any, Literal

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayError, RayTaskError

from actors.errors import ActorLost, NoWeights, PoolFailed, is_payload_lost, reason_of
from rlsys.errors import LearnerLost
from rlsys.weights.manifest import Shipment
from rlsys.weights.version import WeightVersion

log = logging.getLogger(__name__)

MAX_FAILURES, SHUTDOWN_S = 3, 10.0  # failures of one place in a row, without a finished group: then it is given up
Health = Literal["healthy", "suspect", "stale", "dead"]
HEALTHS: tuple[Health, ...] = ("healthy", "suspect", "stale", "dead")


@dataclass(frozen=True, eq=False)
class Weights:
    """shipment: how to get what `version` names; as long as it is held, the object store keeps the bytes."""

    shipment: Shipment
    version: WeightVersion


@dataclass(eq=False)
class Actor:
    """One process.

    groups, responses: in flight on it.  is_reserved: it takes no more.
    is_up: its engine is loaded, and new weights are for the main thread to send.
    held: the weights that it acknowledged last.
    died_with: groups that it had when it was lost, None while it lives.
    progress_s: when it last finished something, or began after a rest (monotonic clock).
    """

    handle: Any
    place: int
    groups: int = 0
    responses: int = 0
    is_reserved: bool = False
    is_up: bool = False
    held: Weights | None = None
    died_with: int | None = None
    progress_s: float = field(default_factory=time.monotonic)


@dataclass(eq=False)
class Place:
    """Where one actor runs; the actor changes. errors: failures in a row, newest last. health: as it was last said."""

    index: int
    actor: Actor
    has_served: bool = False
    errors: list[str] = field(default_factory=list)
    health: Health = "stale"

    @property
    def is_given_up(self) -> bool:
        return len(self.errors) >= MAX_FAILURES


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an actor may take, seconds, and what it may have.

    timeout_s: to finish some group, or to load weights.  start_timeout_s: to load its engine.
    max_num_seqs: responses that it generates at once; None: any number.
    """

    timeout_s: float
    start_timeout_s: float
    max_num_seqs: int | None

    @property
    def stall_s(self) -> float:
        """Something happens in every pool within this time: a group ends, an actor comes up, or one is given up."""
        return self.timeout_s + self.start_timeout_s


class Places:
    """All places of a pool. make_actor: starts the process of a place and returns its Ray handle at once."""

    def __init__(self, make_actor: Callable[[int], Any], num_actors: int, limits: Limits) -> None:
        self._make_actor, self.limits = make_actor, limits
        self.changed = threading.Condition()
        self._changed_s = time.monotonic()
        self.weights: Weights | None = None
        """What every actor should hold; a new actor gets it before it samples."""
        self._gone: Weights | None = None  # could not be fetched any more
        self.counts: Counter[str] = Counter()
        self._line: list[int] = []
        """Tickets of the groups that wait for an actor, oldest first."""
        self._waiters: list[_Waiter] = []
        self._is_closed = False
        self._places: list[Place] = []
        for index in range(num_actors):
            self._places.append(Place(index, self._new_actor(index)))
        for place in self._places:
            self._bring_up_in_background(place)

    def ready(self) -> list[Actor]:
        """The actors that can sample."""
        return [place.actor for place in self._places if self._is_ready(place.actor)]

    def _is_ready(self, actor: Actor) -> bool:
        return actor.died_with is None and actor.held is not None and actor.held is self.weights

    def up(self) -> list[Actor]:
        """The actors that are to be sent new weights. Those that come up later get them before they sample."""
        return [place.actor for place in self._places if place.actor.is_up and place.actor.died_with is None]

    def newcomers(self) -> list[Place]:
        """The places whose first actor has not come up yet."""
        return [place for place in self._places if not place.has_served]

    @property
    def num_waiting(self) -> int:
        """Groups that no actor has room for."""
        return len(self._line)

    def health(self, place: Place) -> Health:
        """healthy: samples.
        suspect: samples, but half its deadline is over (others are preferred then), or its place has failed since it
        last finished a group.
        stale: does not hold the current weights (it starts, loads, or is being replaced), and never samples.
        dead: failed MAX_FAILURES times in a row and is given up.
        """
        if place.is_given_up:
            return "dead"
        if not self._is_ready(place.actor):
            return "stale"
        return "suspect" if place.errors or self._is_late(place.actor) else "healthy"

    def _is_late(self, actor: Actor) -> bool:
        return actor.groups > 0 and time.monotonic() - actor.progress_s > self.limits.timeout_s / 2

    def count_healths(self) -> dict[Health, int]:
        """Places by health now."""
        found = [self.health(place) for place in self._places]
        return {health: found.count(health) for health in HEALTHS}

    def note_healths(self) -> None:
        """Log who is better or worse than when this was last called. Lock held."""
        for place in self._places:
            before, place.health = place.health, self.health(place)
            if place.health != before:
                # every update makes everyone stale for a moment
                passing = {before, place.health} == {"healthy", "stale"}
                level = logging.WARNING if place.health in ("suspect", "dead") else logging.INFO
                level = logging.DEBUG if passing else level
                log.log(level, "rollout actor %d: %s, was %s", place.index, place.health, before)

    def wait_settled(self, newcomers: Sequence[Place]) -> None:
        """Returns once each newcomer has come up or was given up, and somebody can sample. Lock held.

        Raises PoolFailed when nobody ever will or `Limits.stall_s` is over, LearnerLost when the weights are gone.
        """
        while not self._is_over():
            self.raise_if_weights_gone()
            if all(place.has_served or place.is_given_up for place in newcomers) and self.ready():
                return
            self.raise_if_stalled()
            self.changed.wait(self._changed_s + self.limits.stall_s - time.monotonic())
        self.raise_if_over()

    def raise_if_weights_gone(self) -> None:
        """Raises LearnerLost when an actor could not fetch the current weights any more. Lock held."""
        if self.weights is not None and self._gone is self.weights:
            raise LearnerLost(f"the weights of version {self.weights.version.version} went with their sender.")

    def raise_if_over(self) -> None:
        """Raises PoolFailed, with the actors' own errors, when no place can have an actor any more."""
        if self._is_closed:
            raise PoolFailed("the rollout actors were shut down.")
        if self._is_over():
            errors = "\n".join(f"actor {place.index}: {place.errors[-1]}" for place in self._places)
            raise PoolFailed(f"every rollout actor failed {MAX_FAILURES} times in a row; the last errors:\n{errors}")

    def raise_if_stalled(self) -> None:
        """Raises PoolFailed when nothing has happened for so long that nothing will. Lock held."""
        if time.monotonic() - self._changed_s >= self.limits.stall_s:
            raise PoolFailed(
                f"no rollout actor came up, finished a group or failed for {self.limits.stall_s:g} s "
                f"(rollout.timeout_s + rollout.start_timeout_s): {self.count_healths()}."
            )

    def _is_over(self) -> bool:
        return self._is_closed or all(place.is_given_up for place in self._places)

    async def acquire(self, ticket: int, num_responses: int, *, reserve: bool) -> Actor:
        """The least busy ready actor that has room, one more group counted on it; lower tickets are served first.

        reserve: it needs no room, and takes no others. An actor has room while it has no more responses than it
        generates at once, so that at most one group waits in its engine.
        Raises NoWeights before the first version, PoolFailed when nobody is left or all hang.
        """
        with self.changed:
            bisect.insort(self._line, ticket)
        try:
            while True:
                with self.changed:
                    self.raise_if_over()
                    if self.weights is None:
                        raise NoWeights("no weights were published yet; load_weights comes before generate.")
                    if self._line[0] == ticket and (actor := self._least_busy(reserve)):
                        if actor.groups == 0:
                            actor.progress_s = time.monotonic()
                        actor.groups += 1
                        actor.responses += num_responses
                        actor.is_reserved = reserve
                        return actor
                    news = self._news(ticket)
                await self._wait(news)
        finally:
            with self.changed:
                self._line.remove(ticket)
                self.notify()

    def _least_busy(self, reserve: bool) -> Actor | None:
        most = self.limits.max_num_seqs
        free = [
            place
            for place in self._places
            if self._is_ready(place.actor)
            and not place.actor.is_reserved
            and (reserve or most is None or place.actor.responses <= most)
        ]
        if not free:
            return None
        return min(free, key=lambda place: (self._is_late(place.actor), place.actor.responses)).actor

    async def becomes_alone(self, actor: Actor) -> bool:
        """True once the group that reserved the actor is the only one on it; False when it is lost before."""
        while True:
            with self.changed:
                if actor.died_with is not None or actor.groups == 1:
                    return actor.died_with is None
                news = self._news()
            await self._wait(news)

    def release(self, actor: Actor, num_responses: int, *, was_reserved: bool) -> None:
        """One group less on the actor."""
        with self.changed:
            actor.groups -= 1
            actor.responses -= num_responses
            actor.is_reserved = actor.is_reserved and not was_reserved
            self.notify()

    def note_progress(self, actor: Actor) -> None:
        """The actor has finished a group: its place is sound."""
        with self.changed:
            actor.progress_s = time.monotonic()
            self._places[actor.place].errors.clear()

    def hold(self, actor: Actor, weights: Weights) -> None:
        """The actor has acknowledged the weights, and samples if they are still the current ones."""
        with self.changed:
            actor.held, actor.progress_s = weights, time.monotonic()
            self._places[actor.place].has_served = True
            self.notify()

    def lose(self, actor: Actor, reason: str, *, is_its_own_fault: bool = True) -> None:
        """Kill the actor and start another in its place, unless that was done or the place fails again and again."""
        place = self._places[actor.place]
        with self.changed:
            if actor.died_with is not None or self._is_closed:
                return
            actor.died_with = actor.groups
            if is_its_own_fault:
                place.errors.append(reason)
            self.counts["rollout/lost_actors"] += 1
            self.notify()
        log.warning("rollout actor %d is lost (%d groups on it): %s", actor.place, actor.died_with, reason)
        ray.kill(actor.handle)  # a stopped process too: Ray's node ends with SIGKILL what does not go by itself
        if not place.is_given_up:
            successor = self._new_actor(place.index)
            with self.changed:
                place.actor = successor
            self._bring_up_in_background(place)

    def _new_actor(self, index: int) -> Actor:
        return Actor(handle=self._make_actor(index), place=index)

    def _bring_up_in_background(self, place: Place) -> None:
        threading.Thread(
            target=self._bring_up, args=(place, place.actor), name=f"start-{place.index}", daemon=True
        ).start()

    def _bring_up(self, place: Place, actor: Actor) -> None:
        limits = self.limits
        missed = f"was not up within {limits.start_timeout_s:g} s (rollout.start_timeout_s)."
        try:
            ray.get(actor.handle.ping.remote(), timeout=limits.start_timeout_s)
            missed = f"did not load its first weights within {limits.timeout_s:g} s (rollout.timeout_s)."
            while (wanted := self._admit(actor)) is not None:
                if self._load(actor, wanted):
                    self.hold(actor, wanted)
        except GetTimeoutError:
            self.lose(actor, missed)
        except (RayError, ActorLost) as error:
            self.lose(actor, reason_of(error))

    def _load(self, actor: Actor, weights: Weights) -> bool:
        """False when the weights went with their sender and there are others by now."""
        ref = actor.handle.load_weights.remote(weights.shipment, weights.version)
        try:
            check_acknowledged(ray.get(ref, timeout=self.limits.timeout_s), weights.version)
        except (ObjectLostError, RayTaskError) as error:
            with self.changed:
                self._gone = weights if is_payload_lost(error) else None
                self.notify()
                if self._gone is None or not self.changed.wait_for(
                    lambda: self._is_closed or self.weights is not weights, timeout=self.limits.start_timeout_s
                ):
                    raise
            return False
        return True

    def _admit(self, actor: Actor) -> Weights | None:
        """The weights that the actor must load before it is up, None when there are no newer ones."""
        with self.changed:
            self.notify()
            if not self._is_closed and self.weights is not None and actor.held is not self.weights:
                return self.weights
            actor.is_up = True
            return None

    def close(self) -> None:
        """End all actors; groups that still run fail. Calls after the first do nothing."""
        with self.changed:
            if self._is_closed:
                return
            self._is_closed = True
            actors = [place.actor for place in self._places]
            self.notify()
        farewells = [actor.handle.shutdown.remote() for actor in actors if actor.is_up and actor.died_with is None]
        if farewells:
            ray.wait(farewells, num_returns=len(farewells), timeout=SHUTDOWN_S)
        for actor in actors:
            ray.kill(actor.handle)

    def _news(self, ticket: int | None = None) -> asyncio.Event:
        """An event for the next change; with a ticket, for the next one while it is the first in line. Lock held."""
        event = asyncio.Event()
        self._waiters.append(_Waiter(asyncio.get_running_loop(), event, ticket))
        return event

    async def _wait(self, news: asyncio.Event) -> None:
        while not news.is_set():
            with self.changed:
                self.raise_if_stalled()
                left = self._changed_s + self.limits.stall_s - time.monotonic()
            with suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), left)

    def notify(self) -> None:
        """Wake whoever waits for a change. Lock held."""
        self._changed_s = time.monotonic()
        self.note_healths()
        self.changed.notify_all()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if waiter.ticket is not None and self._line and waiter.ticket > self._line[0]:
                self._waiters.append(waiter)  # not its turn
                continue
            with suppress(RuntimeError):  # a loop that was closed has nobody waiting any more
                waiter.loop.call_soon_threadsafe(waiter.event.set)


@dataclass(frozen=True, eq=False)
class _Waiter:
    loop: asyncio.AbstractEventLoop
    event: asyncio.Event
    ticket: int | None


def check_acknowledged(got: WeightVersion, wanted: WeightVersion) -> None:
    """Raises ActorLost when an actor acknowledged other weights than it was sent."""
    if (got.version, got.digest) != (wanted.version, wanted.digest):
        raise ActorLost(f"acknowledged version {got.version} ({got.digest}), not {wanted.version} ({wanted.digest}).")
