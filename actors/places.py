"""Where rollout actors live: each place starts its actor, brings it to the current weights, and replaces it.

Shared between an asyncio loop (generation), the main thread (updates) and the threads that wait for
actors to start. One lock, `changed`, guards it all; whoever changes something says `notify`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from actors.errors import ActorLost, NoWeights, PoolFailed
from rlsys.types import WeightVersion
from rlsys.weights import Shipment

log = logging.getLogger(__name__)

MAX_FAILURES = 3  # of one place in a row, without a finished group between them: then it is given up
SHUTDOWN_S = 10.0


@dataclass(eq=False)
class Actor:
    """One process.

    groups: in flight on it.  is_reserved: it takes no more.  is_ready: it holds the current weights.
    died_with: groups that it had when it was lost, None while it lives.
    progress_s: when it last finished something, or began after a rest (monotonic clock).
    """

    handle: Any
    place: int
    groups: int = 0
    is_reserved: bool = False
    is_ready: bool = False
    died_with: int | None = None
    progress_s: float = field(default_factory=time.monotonic)


@dataclass(eq=False)
class Place:
    """Where one actor runs; the actor changes. errors: failures in a row, newest last."""

    index: int
    actor: Actor | None = None
    has_served: bool = False
    errors: list[str] = field(default_factory=list)

    @property
    def is_given_up(self) -> bool:
        return len(self.errors) >= MAX_FAILURES


@dataclass(frozen=True, eq=False)
class Weights:
    """shipment: how to get what `version` names; as long as it is held, the object store keeps the bytes."""

    shipment: Shipment
    version: WeightVersion


class Places:
    """All places of a pool. make_actor: starts the process of a place and returns its Ray handle at once."""

    def __init__(self, make_actor: Callable[[int], Any], num_actors: int, start_timeout_s: float) -> None:
        self._make_actor, self._start_timeout_s = make_actor, start_timeout_s
        self.changed = threading.Condition()
        self.weights: Weights | None = None
        """What every actor should hold; a new actor gets it before it samples."""
        self.counts: Counter[str] = Counter()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._is_closed = False
        self._places = [Place(index) for index in range(num_actors)]
        for place in self._places:
            self._start(place)

    def ready(self) -> list[Actor]:
        """The actors that can sample."""
        return [place.actor for place in self._places if place.actor and place.actor.is_ready]

    def newcomers(self) -> list[Place]:
        """The places whose first actor has not come up yet."""
        return [place for place in self._places if not place.has_served]

    def wait_settled(self, newcomers: Sequence[Place]) -> None:
        """Returns once each newcomer has come up or was given up, and somebody can sample. Lock held.

        Raises PoolFailed when nobody ever will.
        """

        def is_settled() -> bool:
            come = all(place.has_served or place.is_given_up for place in newcomers)
            return self._is_over() or (come and bool(self.ready()))

        self.changed.wait_for(is_settled)
        self.raise_if_over()

    def raise_if_over(self) -> None:
        """Raises PoolFailed, with the actors' own errors, when no place can have an actor any more."""
        if self._is_closed:
            raise PoolFailed("the rollout actors were shut down.")
        if self._is_over():
            errors = "\n".join(f"actor {place.index}: {place.errors[-1]}" for place in self._places)
            raise PoolFailed(f"every rollout actor failed {MAX_FAILURES} times in a row; the last errors:\n{errors}")

    def _is_over(self) -> bool:
        return self._is_closed or all(place.is_given_up for place in self._places)

    async def acquire(self, *, reserve: bool) -> Actor:
        """The ready actor with the fewest groups, one more counted on it; waits for one. reserve: it takes no others.

        Raises NoWeights before the first version, PoolFailed when nobody is left.
        """
        while True:
            with self.changed:
                self.raise_if_over()
                if self.weights is None:
                    raise NoWeights("no weights were published yet; load_weights comes before generate.")
                free = [actor for actor in self.ready() if not actor.is_reserved]
                if free:
                    actor = min(free, key=lambda one: one.groups)
                    if actor.groups == 0:
                        actor.progress_s = time.monotonic()
                    actor.groups += 1
                    actor.is_reserved = reserve
                    return actor
                news = self._news()
            await news.wait()

    async def becomes_alone(self, actor: Actor) -> bool:
        """True once the group that reserved the actor is the only one on it; False when it is lost before."""
        while True:
            with self.changed:
                if actor.died_with is not None or actor.groups == 1:
                    return actor.died_with is None
                news = self._news()
            await news.wait()

    def release(self, actor: Actor, *, was_reserved: bool) -> None:
        """One group less on the actor."""
        with self.changed:
            actor.groups -= 1
            actor.is_reserved = actor.is_reserved and not was_reserved
            self.notify()

    def note_progress(self, actor: Actor) -> None:
        """The actor has finished a group: its place is sound."""
        with self.changed:
            actor.progress_s = time.monotonic()
            self._places[actor.place].errors.clear()

    def lose(self, actor: Actor, reason: str) -> None:
        """Kill the actor and start another in its place, unless that was done or the place fails again and again."""
        place = self._places[actor.place]
        with self.changed:
            if actor.died_with is not None or self._is_closed:
                return
            actor.died_with, actor.is_ready = actor.groups, False
            place.errors.append(reason)
            self.counts["rollout/lost_actors"] += 1
            self.notify()
        log.warning("rollout actor %d is lost (%d groups on it): %s", actor.place, actor.died_with, reason)
        ray.kill(actor.handle)
        if not place.is_given_up:
            self._start(place)

    def _start(self, place: Place) -> None:
        actor = Actor(handle=self._make_actor(place.index), place=place.index)
        with self.changed:
            place.actor = actor
        threading.Thread(target=self._bring_up, args=(place, actor), name=f"start-{place.index}", daemon=True).start()

    def _bring_up(self, place: Place, actor: Actor) -> None:
        try:
            ray.get(actor.handle.ping.remote(), timeout=self._start_timeout_s)
            held: Weights | None = None
            while (wanted := self._admit(place, actor, held)) is not None:
                ref = actor.handle.load_weights.remote(wanted.shipment, wanted.version)
                check_acknowledged(ray.get(ref, timeout=self._start_timeout_s), wanted.version)
                held = wanted
        except GetTimeoutError:
            self.lose(actor, f"was not ready within {self._start_timeout_s:g} s (rollout.start_timeout_s).")
        except (RayError, ActorLost) as error:
            self.lose(actor, reason_of(error))

    def _admit(self, place: Place, actor: Actor, held: Weights | None) -> Weights | None:
        """Lets the actor sample when `held` is what it should hold; otherwise the weights that it must load first."""
        with self.changed:
            self.changed.wait_for(lambda: self.weights is not None or self._is_closed)
            if self._is_closed:
                return None
            if held is self.weights:
                actor.is_ready = place.has_served = True
                self.notify()
                return None
            return self.weights

    def close(self) -> None:
        """End all actors; groups that still run fail. Calls after the first do nothing."""
        with self.changed:
            if self._is_closed:
                return
            self._is_closed = True
            actors = [place.actor for place in self._places if place.actor]
            self.notify()
        farewells = [actor.handle.shutdown.remote() for actor in actors if actor.is_ready]
        if farewells:
            ray.wait(farewells, num_returns=len(farewells), timeout=SHUTDOWN_S)
        for actor in actors:
            ray.kill(actor.handle)

    def _news(self) -> asyncio.Event:
        event = asyncio.Event()
        self._waiters.append((asyncio.get_running_loop(), event))
        return event

    def notify(self) -> None:
        """Wake whoever waits for a change. Lock held."""
        self.changed.notify_all()
        for loop, event in self._waiters:
            with suppress(RuntimeError):  # a loop that was closed has nobody waiting any more
                loop.call_soon_threadsafe(event.set)
        self._waiters.clear()


def check_acknowledged(got: WeightVersion, wanted: WeightVersion) -> None:
    """Raises ActorLost when an actor acknowledged other weights than it was sent."""
    if (got.version, got.digest) != (wanted.version, wanted.digest):
        raise ActorLost(f"acknowledged version {got.version} ({got.digest}), not {wanted.version} ({wanted.digest}).")


def reason_of(error: Exception) -> str:
    """What an actor's error says, without the traceback that Ray wraps around it."""
    return f"{type(error.cause).__name__}: {error.cause}" if isinstance(error, RayTaskError) else str(error)
