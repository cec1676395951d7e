"""Rollout actors in virtual time: where groups wait, what an update of the weights does to them, what a death does."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from rlsys.simulated.system import Faults, Phases, System
from rlsys.simulated.virtual_time import Events, Meter


@dataclass(eq=False)
class Job:
    """A group to generate. seconds: in a slot, undisturbed.  version: of the weights of its first token, -1 before it.

    left_s: until it ends, or until its actor dies under it (`is_fatal`).  since_s: start of the stretch that runs.
    """

    draw: int
    seconds: float
    on_done: Callable[[], None]
    version: int = -1
    left_s: float = 0.0
    since_s: float = 0.0
    is_fatal: bool = False
    attempts: int = 0


@dataclass(eq=False)
class _Actor:
    """version: of its weights.  queue: what it was given and has no slot for; None is an order to load weights."""

    version: int = -1
    is_loading: bool = False
    is_down: bool = False
    running: list[Job] = field(default_factory=list)
    queue: deque[Job | None] = field(default_factory=deque)


class SimulatedActors:
    """What `System` says of actors, in virtual time. Deaths under a group are drawn by `seed`."""

    def __init__(self, events: Events, system: System, phases: Phases, faults: Faults, seed: int) -> None:
        self._events, self._seed = events, seed
        self._slots, self._dispatch, self._weight_update = system.slots, system.dispatch, system.weight_update
        self._sync_s, self._lost_frac, self._restart_s = phases.sync_s, faults.lost_frac, faults.restart_s
        self._actors = [_Actor() for _ in range(system.num_actors)]
        self._shared: deque[Job] = deque()
        self._version = -1
        self.busy = Meter(events)
        self.num_lost = 0
        self.wasted_s = 0.0

    def submit(self, job: Job) -> None:
        """Generate a group, sooner or later, and call its `on_done`."""
        up = [actor for actor in self._actors if not actor.is_down]
        if self._dispatch == "at_once" and up:
            actor = min(up, key=lambda one: len(one.running) + len(one.queue))
            actor.queue.append(job)
            self._go_on(actor)
            return
        self._shared.append(job)
        for actor in sorted(up, key=lambda one: len(one.running)):
            self._go_on(actor)

    def publish(self, version: int) -> None:
        """Bring all actors to `version`; returns, after some time, once those that live hold it."""
        self._version = version
        for actor in self._actors:
            if actor.is_down:
                continue
            if self._weight_update == "pause":
                actor.queue.append(None)
            else:
                actor.queue.appendleft(None)
            self._go_on(actor)
        self._events.run_until(
            lambda: (
                any(not actor.is_down for actor in self._actors)
                and all(actor.is_down or actor.version == version for actor in self._actors)
            )
        )

    def _go_on(self, actor: _Actor) -> None:
        while not (actor.is_loading or actor.is_down):
            if actor.queue and actor.queue[0] is None:
                if not (actor.running and self._weight_update == "pause"):
                    actor.queue.popleft()
                    self._load(actor)
                return
            if len(actor.running) == self._slots or not (actor.queue or self._shared):
                return
            job = actor.queue.popleft() if actor.queue else self._shared.popleft()
            assert job is not None
            self._begin(actor, job)

    def _load(self, actor: _Actor) -> None:
        actor.is_loading = True
        held = self._stopped(actor)
        if self._weight_update == "abort":
            self.wasted_s += sum(map(self._forget, held))
            actor.queue.extendleft(reversed(held))
            held = []
        version = self._version

        def loaded() -> None:
            actor.is_loading, actor.version = False, version
            for job in held:
                self._resume(actor, job)
            self._go_on(actor)

        self._events.after(self._sync_s, loaded)

    def _begin(self, actor: _Actor, job: Job) -> None:
        job.version = actor.version
        rng = np.random.default_rng([self._seed, job.draw, job.attempts])
        job.is_fatal = bool(rng.random() < self._lost_frac)
        job.left_s = job.seconds * float(rng.random()) if job.is_fatal else job.seconds
        self._resume(actor, job)

    def _resume(self, actor: _Actor, job: Job) -> None:
        actor.running.append(job)
        self.busy.change(1)
        since = job.since_s = self._events.now
        attempts, left = job.attempts, job.left_s

        def happens() -> None:
            # it may have been stopped since, and run again
            if job in actor.running and (job.since_s, job.attempts, job.left_s) == (since, attempts, left):
                self._lose(actor) if job.is_fatal else self._end(actor, job)

        self._events.after(left, happens)

    def _end(self, actor: _Actor, job: Job) -> None:
        actor.running.remove(job)
        self.busy.change(-1)
        job.on_done()
        self._go_on(actor)

    def _stopped(self, actor: _Actor) -> list[Job]:
        """The jobs that ran, which no longer do."""
        stopped, actor.running = actor.running, []
        self.busy.change(-len(stopped))
        for job in stopped:
            job.left_s -= self._events.now - job.since_s
        return stopped

    def _forget(self, job: Job) -> float:
        """The job as if it had never been begun; the seconds that it had run."""
        ran = self._events.now - job.since_s
        job.version, job.attempts = -1, job.attempts + 1
        return ran

    def _lose(self, actor: _Actor) -> None:
        self.num_lost += 1
        held = self._stopped(actor)
        self.wasted_s += sum(map(self._forget, held))
        waiting = [job for job in actor.queue if job is not None]
        actor.queue.clear()
        actor.is_down = True
        self._events.after(self._restart_s, lambda: self._come_back(actor))
        for job in [*held, *waiting]:
            self.submit(job)

    def _come_back(self, actor: _Actor) -> None:
        actor.is_down, actor.version = False, self._version
        self._go_on(actor)
