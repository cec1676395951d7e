"""The rollout actors of a run: groups go to the least busy one, and survive the death of any.

`generate` belongs to one asyncio loop in a background thread, `load_weights` to the main thread, and
every actor is started by a thread of its own: one lock guards what they share.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from actors.errors import EngineDied, NoWeights, PoolFailed, PromptQuarantined, WeightsRefused
from actors.requests import EngineSpec, GroupRequest, environment
from actors.rollout_actor import RolloutActor
from rlsys.types import ClipRef, Prompt, PromptItem, Rollout, Sampling, WeightVersion

log = logging.getLogger(__name__)

MAX_FAILURES = 3  # of one place in a row, without a finished group between them: then it is given up
SUSPECT_DEATHS = 2  # actors that died under a prompt before it is sampled with nothing beside it
SHUTDOWN_S = 10.0
COUNTS = (
    "rollout/groups",
    "rollout/lost_actors",
    "rollout/resampled_groups",
    "rollout/quarantined_prompts",
    "weights/updates",
)


class _ActorLost(Exception):
    """The actor died or answers no more; the message says how."""


@dataclass(eq=False)
class _Actor:
    """One process. groups: in flight on it.  died_with: groups that it had when it was lost, None while it lives."""

    handle: Any
    place: int
    groups: int = 0
    is_reserved: bool = False
    is_ready: bool = False
    died_with: int | None = None
    progress_s: float = field(default_factory=time.monotonic)


@dataclass(eq=False)
class _Place:
    """Where an actor runs; the actor changes. errors: failures in a row, newest last."""

    index: int
    actor: _Actor | None = None
    has_served: bool = False
    errors: list[str] = field(default_factory=list)

    @property
    def is_given_up(self) -> bool:
        return len(self.errors) >= MAX_FAILURES


@dataclass(frozen=True, eq=False)
class _Weights:
    payload: Any  # a reference to the payload; holding it keeps the payload in the object store
    version: WeightVersion


class RolloutPool:
    """Actors that sample groups. Results depend on prompt, seed and weights only, not on which actor samples.

    make_actor: starts the process of the given place and returns its Ray handle at once.
    timeout_s: an actor with groups that has finished none for so long counts as dead.
    start_timeout_s: what loading an engine may take.
    """

    def __init__(
        self, make_actor: Callable[[int], Any], num_actors: int, *, timeout_s: float, start_timeout_s: float
    ) -> None:
        self._make_actor, self._timeout_s, self._start_timeout_s = make_actor, timeout_s, start_timeout_s
        self._changed = threading.Condition()  # guards everything below
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._places = [_Place(index) for index in range(num_actors)]
        self._weights: _Weights | None = None
        self._is_closed = False
        self._counts: Counter[str] = Counter()
        self._load_s = 0.0
        for place in self._places:
            self._start(place)

    @classmethod
    def launch(
        cls,
        spec: EngineSpec,
        num_actors: int,
        *,
        options: Sequence[Mapping[str, Any]] = (),
        timeout_s: float = 600.0,
        start_timeout_s: float = 900.0,
    ) -> RolloutPool:
        """Starts the actors and returns at once; the first `load_weights` waits for them.

        options: Ray's actor options for each actor (num_cpus, num_gpus, scheduling_strategy, …);
        () gives each one CPU.
        """
        remote = ray.remote(RolloutActor)

        def make_actor(place: int) -> Any:
            chosen = {"num_cpus": 1, **(options[place] if options else {})}
            variables = {**environment(spec), **chosen.pop("runtime_env", {}).get("env_vars", {})}
            return remote.options(**chosen, runtime_env={"env_vars": variables}, max_restarts=0).remote(spec)

        return cls(make_actor, num_actors, timeout_s=timeout_s, start_timeout_s=start_timeout_s)

    async def generate(
        self, item: PromptItem, prompt: Prompt, clips: Sequence[ClipRef], sampling: Sampling
    ) -> tuple[Rollout, ...]:
        """The group's rollouts in sample order. A group whose actor is lost is sampled again with the same seeds.

        Raises PromptRefused, BadOutput, or what made the frames unavailable; NoWeights before the first
        `load_weights`; PromptQuarantined when actors keep dying under this prompt; PoolFailed when none is left.
        """
        infos = tuple(clip.info for clip in clips)
        request = GroupRequest(prompt_id=item.prompt_id, engine_ids=prompt.engine_ids, clips=infos, sampling=sampling)
        frames = [clip.frames for clip in clips]
        deaths: list[str] = []
        while True:
            # a prompt that was there when actors died gets one to itself: if that dies too, it is the prompt
            alone = len(deaths) >= SUSPECT_DEATHS
            actor = await self._acquire(reserve=alone)
            try:
                if alone and not await self._becomes_alone(actor):
                    continue
                return await self._sample(actor, request, frames)
            except _ActorLost as error:
                self._lose(actor, str(error))
                deaths.append(f"actor {actor.place}: {error}")
                if len(deaths) >= SUSPECT_DEATHS and actor.died_with == 1:
                    raise self._quarantine(request.prompt_id, deaths) from error
                self._counts["rollout/resampled_groups"] += 1
            finally:
                self._release(actor, was_reserved=alone)

    async def _acquire(self, *, reserve: bool) -> _Actor:
        """The ready actor with the fewest groups, this group counted on it; waits for one. Reserved: no more groups."""
        while True:
            with self._changed:
                self._raise_if_over()
                if self._weights is None:
                    raise NoWeights("no weights were published yet; call load_weights before generate.")
                free = [actor for actor in self._ready() if not actor.is_reserved]
                if free:
                    actor = min(free, key=lambda one: one.groups)
                    if actor.groups == 0:
                        actor.progress_s = time.monotonic()
                    actor.groups += 1
                    actor.is_reserved = reserve
                    return actor
                changed = self._waiter()
            await changed.wait()

    async def _becomes_alone(self, actor: _Actor) -> bool:
        """True once no other group is on the reserved actor; False when it is lost before."""
        while True:
            with self._changed:
                if actor.died_with is not None or actor.groups == 1:
                    return actor.died_with is None
                changed = self._waiter()
            await changed.wait()

    async def _sample(self, actor: _Actor, request: GroupRequest, frames: Sequence[Any]) -> tuple[Rollout, ...]:
        reference = actor.handle.generate.remote(request, *frames)
        done = asyncio.wrap_future(reference.future())
        start = time.monotonic()
        try:
            while not done.done():
                left = self._seconds_left(actor, start)
                if left <= 0:
                    raise _ActorLost(f"finished no group for {self._timeout_s:g} s (rollout.timeout_s).")
                await asyncio.wait((done,), timeout=left)
            rollouts = done.result()
        except asyncio.CancelledError:
            ray.cancel(reference)
            raise
        except (RayActorError, EngineDied) as error:
            raise _ActorLost(_reason(error)) from error
        except RayTaskError as error:
            raise error.cause from None  # the actor's traceback leads into vLLM, not to the prompt
        with self._changed:
            actor.progress_s = time.monotonic()
            self._places[actor.place].errors.clear()
            self._counts["rollout/groups"] += 1
        return rollouts

    def _seconds_left(self, actor: _Actor, start: float) -> float:
        """Until what was asked of the actor at `start` is overdue. Work queues up, so what it finishes counts."""
        return max(start, actor.progress_s) + self._timeout_s - time.monotonic()

    def _release(self, actor: _Actor, *, was_reserved: bool) -> None:
        with self._changed:
            actor.groups -= 1
            if was_reserved:
                actor.is_reserved = False
            self._notify()

    def _quarantine(self, prompt_id: str, deaths: Sequence[str]) -> PromptQuarantined:
        self._counts["rollout/quarantined_prompts"] += 1
        return PromptQuarantined(
            f"{prompt_id}: {len(deaths)} actors died while they generated it, the last one with nothing beside it; "
            "take the row out or look at its clip.\n" + "\n".join(deaths)
        )

    def load_weights(self, payload: ray.ObjectRef, version: WeightVersion) -> int:
        """Bring every actor to `version` and return how many hold it. Blocks; for the main thread.

        payload: reference to the mapping of NamedTensor that `version` names. Groups that run end first, later
        ones wait. An actor that fails is replaced in the background and samples again once it holds the weights.
        Raises WeightsRefused when every actor refused the payload (they go on with what they had), PoolFailed
        when no actor is left.
        """
        start = time.monotonic()
        with self._changed:
            previous, self._weights = self._weights, _Weights(payload, version)
            actors = self._ready()
            newcomers = [place for place in self._places if not place.has_served]
            self._notify()
        asked = [(actor, actor.handle.load_weights.remote(payload, version)) for actor in actors]
        errors = {actor: error for actor, ref in asked if (error := self._update_error(actor, ref, version, start))}
        if actors and all(isinstance(errors.get(actor), WeightsRefused) for actor in actors):
            with self._changed:
                self._weights = previous
            raise errors[actors[0]]
        for actor, error in errors.items():
            self._lose(actor, f"update to version {version.version}: {error}")
        with self._changed:
            self._changed.wait_for(lambda: self._is_settled(newcomers))
            self._raise_if_over()
            self._counts["weights/updates"] += 1
            self._load_s = time.monotonic() - start
            return len(self._ready())

    def _update_error(
        self, actor: _Actor, ref: ray.ObjectRef, version: WeightVersion, start: float
    ) -> Exception | None:
        while (left := self._seconds_left(actor, start)) > 0:
            try:
                return _acknowledgement_error(ray.get(ref, timeout=left), version)
            except GetTimeoutError:
                continue
            except RayTaskError as error:
                return error.cause
            except RayActorError as error:
                return error
        return _ActorLost(f"not acknowledged within {self._timeout_s:g} s (rollout.timeout_s).")

    def _is_settled(self, newcomers: Sequence[_Place]) -> bool:
        """Every newcomer has come or was given up, and somebody can generate or nobody ever will."""
        if self._is_closed or all(place.is_given_up for place in self._places):
            return True
        return bool(self._ready()) and all(place.has_served or place.is_given_up for place in newcomers)

    def _ready(self) -> list[_Actor]:
        return [place.actor for place in self._places if place.actor and place.actor.is_ready]

    def _raise_if_over(self) -> None:
        if self._is_closed:
            raise PoolFailed("the rollout actors were shut down.")
        if all(place.is_given_up for place in self._places):
            errors = "\n".join(f"actor {place.index}: {place.errors[-1]}" for place in self._places)
            raise PoolFailed(f"every rollout actor failed {MAX_FAILURES} times in a row; the last errors:\n{errors}")

    def _waiter(self) -> asyncio.Event:
        event = asyncio.Event()
        self._waiters.append((asyncio.get_running_loop(), event))
        return event

    def _notify(self) -> None:
        self._changed.notify_all()
        for loop, event in self._waiters:
            with suppress(RuntimeError):  # a loop that was closed has nobody waiting any more
                loop.call_soon_threadsafe(event.set)
        self._waiters.clear()

    def _start(self, place: _Place) -> None:
        """Start an actor at `place`; a thread waits for it."""
        actor = _Actor(handle=self._make_actor(place.index), place=place.index)
        with self._changed:
            place.actor = actor
        threading.Thread(target=self._bring_up, args=(place, actor), name=f"start-{place.index}", daemon=True).start()

    def _bring_up(self, place: _Place, actor: _Actor) -> None:
        try:
            ray.get(actor.handle.ping.remote(), timeout=self._start_timeout_s)
            held: _Weights | None = None
            while (wanted := self._admit(place, actor, held)) is not None:
                ref = actor.handle.load_weights.remote(wanted.payload, wanted.version)
                if error := _acknowledgement_error(ray.get(ref, timeout=self._start_timeout_s), wanted.version):
                    raise error
                held = wanted
        except GetTimeoutError:
            self._lose(actor, f"was not ready within {self._start_timeout_s:g} s (rollout.start_timeout_s).")
        except (RayError, _ActorLost) as error:
            self._lose(actor, _reason(error))

    def _admit(self, place: _Place, actor: _Actor, held: _Weights | None) -> _Weights | None:
        """Lets the actor sample when `held` is what it should hold; otherwise the weights that it must load first."""
        with self._changed:
            self._changed.wait_for(lambda: self._weights is not None or self._is_closed)
            if self._is_closed:
                return None
            if held is self._weights:
                actor.is_ready = place.has_served = True
                self._notify()
                return None
            return self._weights

    def _lose(self, actor: _Actor, reason: str) -> None:
        """Kill the actor and start another in its place, unless that was done or the place fails again and again."""
        place = self._places[actor.place]
        with self._changed:
            if actor.died_with is not None or self._is_closed:
                return
            actor.died_with, actor.is_ready = actor.groups, False
            place.errors.append(reason)
            self._counts["rollout/lost_actors"] += 1
            self._notify()
        log.warning("rollout actor %d is lost (%d groups on it): %s", actor.place, actor.died_with, reason)
        ray.kill(actor.handle)
        if not place.is_given_up:
            self._start(place)

    def counters(self) -> dict[str, float]:
        """Totals since the launch, the actors that are ready now, and the seconds of the last update."""
        with self._changed:
            counts = {name: float(self._counts[name]) for name in COUNTS}
            return {**counts, "rollout/ready_actors": float(len(self._ready())), "weights/load_s": self._load_s}

    def shutdown(self) -> None:
        """End all actors; groups that still run fail. Calls after the first do nothing."""
        with self._changed:
            if self._is_closed:
                return
            self._is_closed = True
            actors = [place.actor for place in self._places if place.actor]
            self._notify()
        farewells = [actor.handle.shutdown.remote() for actor in actors if actor.is_ready]
        if farewells:
            ray.wait(farewells, num_returns=len(farewells), timeout=SHUTDOWN_S)
        for actor in actors:
            ray.kill(actor.handle)


def _acknowledgement_error(got: WeightVersion, wanted: WeightVersion) -> _ActorLost | None:
    if (got.version, got.digest) == (wanted.version, wanted.digest):
        return None
    return _ActorLost(f"acknowledged version {got.version} ({got.digest}), not {wanted.version} ({wanted.digest}).")


def _reason(error: Exception) -> str:
    return f"{type(error.cause).__name__}: {error.cause}" if isinstance(error, RayTaskError) else str(error)
