"""A rollout actor: an engine that steps in a thread of its own, behind an asynchronous Ray shell."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, InvalidStateError, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np

from actors.errors import BadOutput, EngineDied, NoWeights, PromptRefused, WeightsRefused
from actors.requests import EngineSpec, GroupRequest
from rlsys.types import Rollout, WeightVersion
from rlsys.weights import Manifest, Shipment

ADMIT_S = 0.05  # preparing prompts holds up the responses that are under way: no longer than this at a time


class Engine(Protocol):
    """What the loop drives; see `actors.engine.RolloutEngine`."""

    def add(self, request_id: str, request: GroupRequest, frames: Sequence[np.ndarray]) -> None: ...

    def step(self) -> list[tuple[str, tuple[Rollout, ...] | BadOutput]]: ...

    def load_weights(self, shipment: Shipment, version: WeightVersion) -> WeightVersion: ...

    def shutdown(self) -> None: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class _Generate:
    request: GroupRequest
    frames: Sequence[np.ndarray]
    done: Future[tuple[Rollout, ...]] = field(default_factory=Future)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Call:
    function: Callable[[Any], Any]
    done: Future[Any] = field(default_factory=Future)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Stop:
    done: Future[None] = field(default_factory=Future)


_Command = _Generate | _Call | _Stop


class EngineLoop:
    """Owns an engine in one thread, in which alone it is made and called; the methods may be called from any.

    Requests are taken in the order in which they came. An update of the weights waits until what runs
    has ended, and what came after it waits for the update, so no group mixes two versions.
    When the engine fails, everything pending and everything later fails with EngineDied.
    """

    def __init__(self, make_engine: Callable[[], Engine]) -> None:
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._next: _Command | None = None  # out of the queue, not carried out yet
        self._running: dict[str, _Generate] = {}
        self._names = map(str, itertools.count())
        self._started: Future[None] = Future()
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._ended = thread.submit(self._run, make_engine)
        self._ended.add_done_callback(self._fail_all)
        thread.shutdown(wait=False)

    def wait_started(self) -> None:
        """Returns once the engine is loaded; raises what loading it raised."""
        wait((self._started, self._ended), return_when=FIRST_COMPLETED)
        if self._ended.done():
            self._ended.result()

    def generate(self, request: GroupRequest, frames: Sequence[np.ndarray]) -> Future[tuple[Rollout, ...]]:
        """The group's rollouts, or PromptRefused, NoWeights, BadOutput or EngineDied."""
        command = _Generate(request=request, frames=frames)
        self._send(command)
        return command.done

    def load_weights(self, shipment: Shipment, version: WeightVersion) -> Future[WeightVersion]:
        """The acknowledged version, or WeightsRefused (the engine serves on with what it had) or EngineDied."""
        return self.call(lambda engine: engine.load_weights(shipment, version))

    def call(self, function: Callable[[Any], Any]) -> Future[Any]:
        """What `function` returns for the engine, called while no group runs. An error of it ends the engine."""
        command = _Call(function=function)
        self._send(command)
        return command.done

    def stop(self) -> Future[None]:
        """Done (perhaps with the engine's error) once the thread has ended; what still runs fails with EngineDied."""
        self._send(_Stop())
        return self._ended

    def _send(self, command: _Command) -> None:
        self._commands.put(command)
        if self._ended.done():
            self._fail_all(self._ended)

    def _run(self, make_engine: Callable[[], Engine]) -> None:
        engine = make_engine()
        self._started.set_result(None)
        while self._carry_out_commands(engine):
            if self._running:
                for name, outcome in engine.step():
                    _settle(self._running.pop(name).done, outcome)
        engine.shutdown()

    def _carry_out_commands(self, engine: Engine) -> bool:
        """Take what may be taken now, for ADMIT_S at most while groups run. False when told to stop."""
        started = None
        while started is None or not self._running or time.perf_counter() - started < ADMIT_S:
            if not self._take():
                return True
            started = started or time.perf_counter()
            if not self._carry_out(engine, self._next):
                return False
            self._next = None  # and no other name for it: it would hold its weights or frames while the loop rests
        return True

    def _carry_out(self, engine: Engine, command: _Command | None) -> bool:
        match command:
            case _Generate():
                self._start(engine, command)
            case _Call():
                try:
                    _settle(command.done, command.function(engine))
                except WeightsRefused as error:
                    _settle(command.done, error)
        return not isinstance(command, _Stop)

    def _take(self) -> bool:
        """Put the next command into `_next`; False when it cannot be carried out yet or there is none."""
        if self._next is None:
            try:
                self._next = self._commands.get(block=not self._running)
            except queue.Empty:
                return False
        return not (isinstance(self._next, _Call) and self._running)

    def _start(self, engine: Engine, command: _Generate) -> None:
        if not command.done.set_running_or_notify_cancel():
            return
        name = next(self._names)
        try:
            engine.add(name, command.request, command.frames)
        except (PromptRefused, NoWeights) as error:
            _settle(command.done, error)
        else:
            self._running[name] = command

    def _fail_all(self, ended: Future[None]) -> None:
        reason = ended.exception()
        error = EngineDied(
            f"the engine failed: {type(reason).__name__}: {reason}" if reason else "the engine was shut down."
        )
        for command in self._leftovers():
            _settle(command.done, error)

    def _leftovers(self) -> Iterator[_Command]:
        if self._next is not None:
            yield self._next
        with suppress(KeyError):
            while True:
                yield self._running.popitem()[1]
        with suppress(queue.Empty):
            while True:
                yield self._commands.get_nowait()


def _settle(future: Future[Any], outcome: object) -> None:
    # whoever waited may have cancelled, and a failing thread may have settled it already
    with suppress(InvalidStateError):
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


class RolloutActor:
    """The Ray shell: every call waits on the engine's thread without holding up the others. Made with `ray.remote`."""

    def __init__(self, spec: EngineSpec) -> None:
        logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
        logging.getLogger("actors").setLevel(logging.INFO)
        logging.getLogger("vllm.triton_utils").setLevel(logging.ERROR)  # warns at import that there is no GPU
        from actors.engine import RolloutEngine  # torch and vLLM: in this process alone

        self._loop = EngineLoop(partial(RolloutEngine, spec))
        self._loop.wait_started()

    async def ping(self) -> int:
        """The actor's process id, once its engine is loaded."""
        return os.getpid()

    async def generate(self, request: GroupRequest, *frames: np.ndarray) -> tuple[Rollout, ...]:
        """See `EngineLoop.generate`. frames: one array per clip; given as references, Ray maps them without a copy."""
        return await asyncio.wrap_future(self._loop.generate(request, frames))

    async def load_weights(self, shipment: Shipment, version: WeightVersion) -> WeightVersion:
        """See `EngineLoop.load_weights`."""
        return await asyncio.wrap_future(self._loop.load_weights(shipment, version))

    async def compare_weights(self, shipment: Shipment) -> tuple[Manifest, dict[str, float | None]]:
        """What was acknowledged, and what `RolloutEngine.compare_weights` finds, while no group runs."""
        return await asyncio.wrap_future(self._loop.call(lambda engine: engine.compare_weights(shipment)))

    async def shutdown(self) -> None:
        """Frees the engine; vLLM leaves shared memory behind when its process is killed without."""
        await asyncio.wait([asyncio.wrap_future(self._loop.stop())])
