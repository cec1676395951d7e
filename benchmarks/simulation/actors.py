"""Rollout actors in virtual time: queueing of groups, updates of the weights, and faults of actors."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from benchmarks.simulation.system import Faults, Phases, System
from benchmarks.simulation.virtual_time import Events, Meter


@dataclass(eq=False)
class Job:
    """A group to generate. seconds: in a slot, without interruptions.

    versions: of the weights of its first and its newest tokens, () before the first token.
    left_s: until it ends, or until its actor dies or hangs (`fate`).  since_s: when it last began to run.
    """

    prompt_index: int
    seconds: float
    on_done: Callable[[], None]
    versions: tuple[int, ...] = ()
    left_s: float = 0.0
    since_s: float = 0.0
    fate: Literal["ends", "kills", "hangs"] = "ends"
    attempts: int = 0
    is_cancelled: bool = False


@dataclass(eq=False)
class _Actor:
    """An actor. version: of its weights.  is_behind: it must load newer ones.  is_hung: it hangs, unnoticed so far."""

    version: int = -1
    is_behind: bool = False
    is_loading: bool = False
    is_down: bool = False
    is_hung: bool = False
    running: list[Job] = field(default_factory=list)


class SimulatedActors:
    """The actors of a `System` in virtual time. Their deaths are drawn by `seed`."""

    def __init__(self, events: Events, system: System, phases: Phases, faults: Faults, seed: int) -> None:
        self._events, self._seed, self._faults = events, seed, faults
        self._slots, self._weight_update, self._sync_s = system.slots, system.weight_update, phases.sync_s
        self._actors = [_Actor() for _ in range(system.num_actors)]
        self._waiting: deque[Job] = deque()
        self._version = -1
        self.busy = Meter(events)
        self.num_lost = 0
        self.wasted_s = 0.0

    def submit(self, job: Job) -> None:
        """Queue a group for generation; its `on_done` is called at the end."""
        self._waiting.append(job)
        self._share_out()

    def cancel(self, job: Job) -> None:
        """Discard a group and free its slot."""
        job.is_cancelled = True
        if job in self._waiting:
            self._waiting.remove(job)
        for actor in self._actors:
            if job in actor.running:
                actor.running.remove(job)
                if not (actor.is_loading or actor.is_hung):
                    self.busy.change(-1)
                self._advance(actor)

    def publish(self, version: int) -> None:
        """Load `version` into all actors; return, in virtual time, once all living ones hold it."""
        self._version = version
        for actor in self._actors:
            actor.is_behind = not actor.is_down
        for actor in self._actors:
            self._advance(actor)
        self._events.run_until(
            lambda: (
                any(not actor.is_down for actor in self._actors)
                and all(actor.is_down or not actor.is_behind for actor in self._actors)
            )
        )

    def _share_out(self) -> None:
        for actor in sorted(self._actors, key=lambda one: len(one.running)):
            self._advance(actor)

    def _advance(self, actor: _Actor) -> None:
        while not (actor.is_loading or actor.is_down):
            if actor.is_behind:
                if not (actor.is_hung or (actor.running and self._weight_update == "pause")):
                    self._load(actor)
                return
            if len(actor.running) >= self._slots or not self._waiting:
                return
            self._begin(actor, self._waiting.popleft())

    def _load(self, actor: _Actor) -> None:
        actor.is_loading = True
        self._stop(actor)
        if self._weight_update == "abort":
            self._give_back(actor)
        version = self._version

        def loaded() -> None:
            actor.is_loading, actor.version = False, version
            actor.is_behind = version != self._version
            for job in actor.running:
                job.versions = (*job.versions[:1], version)
                self._resume(actor, job)
            self._advance(actor)

        self._events.after(self._sync_s, loaded)

    def _begin(self, actor: _Actor, job: Job) -> None:
        job.versions, job.since_s = (actor.version,), self._events.now
        rng = np.random.default_rng([self._seed, job.prompt_index, job.attempts])
        kills, hangs = self._faults.lost_frac, self._faults.hung_frac
        drawn, when = rng.random(2).tolist()
        job.fate = "kills" if drawn < kills else "hangs" if drawn < kills + hangs else "ends"
        job.left_s = job.seconds if job.fate == "ends" else job.seconds * when
        actor.running.append(job)
        if not actor.is_hung:
            self._resume(actor, job)

    def _resume(self, actor: _Actor, job: Job) -> None:
        self.busy.change(1)
        since = job.since_s = self._events.now
        attempts, left = job.attempts, job.left_s

        def happens() -> None:
            # it may have been stopped since, and run again
            runs = job in actor.running and not (actor.is_loading or actor.is_hung)
            if runs and (job.since_s, job.attempts, job.left_s) == (since, attempts, left):
                {"ends": self._end, "kills": self._kill, "hangs": self._hang}[job.fate](actor, job)

        self._events.after(left, happens)

    def _end(self, actor: _Actor, job: Job) -> None:
        actor.running.remove(job)
        self.busy.change(-1)
        job.on_done()
        self._advance(actor)

    def _stop(self, actor: _Actor) -> None:
        """Stop all groups that the actor runs."""
        self.busy.change(-len(actor.running))
        for job in actor.running:
            job.left_s -= self._events.now - job.since_s

    def _give_back(self, actor: _Actor) -> None:
        """Put the actor's groups back at the front of the queue, to be generated from their beginning."""
        for job in actor.running:
            self.wasted_s += self._events.now - job.since_s
            job.versions, job.attempts = (), job.attempts + 1
        self._waiting.extendleft(reversed(actor.running))
        actor.running = []

    def _hang(self, actor: _Actor, _: Job) -> None:
        self._stop(actor)
        actor.is_hung = True
        self._events.after(self._faults.hung_s, lambda: self._lose(actor))

    def _kill(self, actor: _Actor, _: Job) -> None:
        self._stop(actor)
        self._lose(actor)

    def _lose(self, actor: _Actor) -> None:
        self.num_lost += 1
        actor.is_down, actor.is_hung = True, False
        self._give_back(actor)
        self._events.after(self._faults.restart_s, lambda: self._come_back(actor))
        self._share_out()

    def _come_back(self, actor: _Actor) -> None:
        actor.is_down, actor.is_behind, actor.version = False, False, self._version
        self._advance(actor)
