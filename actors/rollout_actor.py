"""The rollout actor: an engine in a thread of its own, behind an asynchronous Ray actor."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, InvalidStateError, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np

from actors.errors import (
    BadOutput,
    EngineAsleep,
    EngineDied,
    GroupAborted,
    NoWeights,
    PromptRefused,
    WeightsRefused,
)
from actors.requests import EngineSpec, GroupRequest, WeightUpdate
from rlsys.clock import Turn
from rlsys.types import Rollout
from rlsys.weights.manifest import Manifest, WeightTransfer
from rlsys.weights.sockets import engine_sockets
from rlsys.weights.version import WeightVersion

SHUTDOWN_S = 10.0  # time for an engine to free its resources before the caller ends the process
ADMIT_S = 0.05  # longest time for which preparing prompts may delay the responses in generation


class Engine(Protocol):
    """The engine that the loop drives; see `actors.engine.RolloutEngine`."""

    @property
    def has_room(self) -> bool: ...

    @property
    def version(self) -> WeightVersion | None: ...

    def can_keep(self, version: WeightVersion) -> bool: ...

    def abort(self, request_id: str) -> None: ...

    def add(self, request_id: str, request: GroupRequest, frames: Sequence[np.ndarray]) -> None: ...

    def step(self) -> list[tuple[str, tuple[Rollout, ...] | BadOutput]]: ...

    def load_weights(self, transfer: WeightTransfer, version: WeightVersion) -> WeightVersion: ...

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
class _Update:
    transfer: WeightTransfer
    version: WeightVersion
    done: Future[WeightVersion] = field(default_factory=Future)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Forget:
    group: Future[tuple[Rollout, ...]]
    done: Future[None] = field(default_factory=Future)


_Command = _Generate | _Call | _Update | _Forget


class EngineLoop:
    """An engine in a thread of its own, which creates it and makes all calls; methods may be called from any thread.

    Groups begin in the order in which they arrive, as soon as the engine has room. New weights are loaded before any
    group that has not begun. Running groups are treated by `weight_update`:
    "pause": they end first, and no group begins until the weights are loaded, so no group mixes two versions.
    "keep": they continue from their current token; see `actors.engine.RolloutEngine.load_weights`.
    "abort": they fail with GroupAborted, as they do under "keep" if the engine cannot continue them.
    After the engine fails, all pending and later calls fail with EngineDied.
    """

    def __init__(self, make_engine: Callable[[], Engine], weight_update: WeightUpdate = "pause") -> None:
        self._weight_update = weight_update
        self._commands: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()  # None: stop
        self._waiting: deque[_Generate] = deque()
        self._calls: deque[_Call | _Update] = deque()
        self._running: dict[str, _Generate] = {}
        self._is_stopped = False
        self._names = map(str, itertools.count())
        self._started: Future[None] = Future()
        self._ended: Future[None] = Future()
        self._ended.add_done_callback(self._fail_all)
        # a daemon: the end of a process waits for other threads, and this one would outlive its cluster by waiting too
        threading.Thread(target=self._run_to_the_end, args=(make_engine,), name="engine", daemon=True).start()

    def wait_started(self, timeout_s: float) -> None:
        """Wait until the engine is loaded. Raises the error of loading it, or TimeoutError after `timeout_s`."""
        wait((self._started, self._ended), timeout=timeout_s, return_when=FIRST_COMPLETED)
        if self._ended.done():
            self._ended.result()
        self._started.result(timeout=0)

    def generate(self, request: GroupRequest, frames: Sequence[np.ndarray]) -> Future[tuple[Rollout, ...]]:
        """Return a future of the group's rollouts.

        Its error is PromptRefused, NoWeights, BadOutput, GroupAborted, EngineAsleep or EngineDied.
        """
        command = _Generate(request=request, frames=frames)
        self._send(command)
        return command.done

    def forget(self, group: Future[tuple[Rollout, ...]]) -> None:
        """Discard a group of `generate` that is no longer awaited. Its future never completes."""
        self._send(_Forget(group=group))

    def load_weights(self, transfer: WeightTransfer, version: WeightVersion) -> Future[WeightVersion]:
        """Return a future of the acknowledged version.

        Its error is WeightsRefused, after which the engine continues with the weights that it had, or EngineDied.
        """
        command = _Update(transfer=transfer, version=version)
        self._send(command)
        return command.done

    def call(self, function: Callable[[Any], Any]) -> Future[Any]:
        """Return a future of `function(engine)`, called while no group runs. An error in it ends the engine."""
        command = _Call(function=function)
        self._send(command)
        return command.done

    def stop(self) -> Future[None]:
        """Return a future that is done, perhaps with the engine's error, once the thread has ended.

        Groups and calls that are still pending fail with EngineDied.
        """
        self._send(None)
        return self._ended

    def _send(self, command: _Command | None) -> None:
        self._commands.put(command)
        if self._ended.done():
            self._fail_all(self._ended)

    def _run_to_the_end(self, make_engine: Callable[[], Engine]) -> None:
        try:
            self._run(make_engine)
        except BaseException as error:  # noqa: BLE001 - whoever waits for the thread gets it
            self._ended.set_exception(error)
        else:
            self._ended.set_result(None)

    def _run(self, make_engine: Callable[[], Engine]) -> None:
        engine = make_engine()
        self._started.set_result(None)
        while not self._is_stopped:
            self._take_commands(engine)
            self._carry_out_calls(engine)
            if not self._calls:
                self._begin_groups(engine)
            if self._running:
                for name, outcome in engine.step():
                    _settle(self._running.pop(name).done, outcome)
        engine.shutdown()

    def _take_commands(self, engine: Engine) -> None:
        """Sort the commands that have arrived; block while there is nothing to do."""
        is_idle = not (self._running or self._waiting or self._calls)
        with suppress(queue.Empty):
            while not self._is_stopped:
                match self._commands.get(block=is_idle):
                    case None:
                        self._is_stopped = True
                    case _Generate() as command:
                        self._waiting.append(command)
                    case _Forget() as command:
                        self._forget(engine, command)
                    case command:
                        self._calls.append(command)
                is_idle = False

    def _carry_out_calls(self, engine: Engine) -> None:
        while self._calls and not self._is_stopped:
            call = self._calls[0]
            if isinstance(call, _Update):
                self._make_way(engine, call.version)
            if self._running and not (isinstance(call, _Update) and self._weight_update == "keep"):
                return
            try:
                outcome = (
                    engine.load_weights(call.transfer, call.version)
                    if isinstance(call, _Update)
                    else call.function(engine)
                )
            except WeightsRefused as error:
                outcome = error
                if engine.version is None:  # it holds neither the old version nor the new one
                    self._end_groups(engine, str(error))
            self._calls.popleft()
            _settle(call.done, outcome)

    def _make_way(self, engine: Engine, version: WeightVersion) -> None:
        """Abort the running groups if they must not continue under `version`."""
        if self._weight_update == "abort" or (self._weight_update == "keep" and not engine.can_keep(version)):
            self._end_groups(engine, f"version {version.version} of the weights arrived.")

    def _end_groups(self, engine: Engine, reason: str) -> None:
        for name in list(self._running):
            engine.abort(name)
            _settle(self._running.pop(name).done, GroupAborted(reason))

    def _begin_groups(self, engine: Engine) -> None:
        """Begin as many groups as there is room for, but for at most ADMIT_S while groups run."""
        started = time.perf_counter()
        while self._waiting and engine.has_room:
            command = self._waiting.popleft()
            if command.done.set_running_or_notify_cancel():
                self._begin(engine, command)
            if self._running and time.perf_counter() - started > ADMIT_S:
                return

    def _begin(self, engine: Engine, command: _Generate) -> None:
        name = next(self._names)
        self._running[name] = command  # before `add`, so that the group fails too if that ends the engine
        try:
            engine.add(name, command.request, command.frames)
        except (PromptRefused, NoWeights, EngineAsleep) as error:
            _settle(self._running.pop(name).done, error)

    def _forget(self, engine: Engine, command: _Forget) -> None:
        for name in [name for name, running in self._running.items() if running.done is command.group]:
            engine.abort(name)
            del self._running[name]
        self._waiting = deque(waiting for waiting in self._waiting if waiting.done is not command.group)

    def _fail_all(self, ended: Future[None]) -> None:
        reason = ended.exception()
        error = EngineDied(
            f"the engine failed: {type(reason).__name__}: {reason}" if reason else "the engine was shut down."
        )
        for command in self._leftovers():
            _settle(command.done, error)

    def _leftovers(self) -> Iterator[_Command]:
        for pending in (self._calls, self._waiting):
            with suppress(IndexError):
                while True:
                    yield pending.popleft()
        with suppress(KeyError):
            while True:
                yield self._running.popitem()[1]
        with suppress(queue.Empty):
            while True:
                if (command := self._commands.get_nowait()) is not None:
                    yield command


def _settle(future: Future[Any], outcome: object) -> None:
    # the caller may have cancelled, and a failing thread may have set the result already
    with suppress(InvalidStateError):
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


class RolloutActor:
    """The Ray actor, made with `ray.remote`. Calls wait for the engine's thread without blocking one another."""

    def __init__(self, spec: EngineSpec, start_timeout_s: float = 900.0) -> None:
        logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
        logging.getLogger("actors").setLevel(logging.INFO)
        logging.getLogger("vllm.triton_utils").setLevel(logging.ERROR)  # vLLM warns at import if there is no GPU
        logging.getLogger("vllm.v1.worker.cpu_worker").setLevel(logging.ERROR)  # and at every sleep
        if spec.device == "cuda" and spec.weights.transport == "collective":
            import ray

            os.environ.update(engine_sockets(ray.util.get_node_ip_address()))  # its workers inherit it
        from actors.engine import RolloutEngine  # torch and vLLM are imported in this process only

        self._loop = EngineLoop(partial(RolloutEngine, spec), spec.weight_update)
        self._loop.wait_started(start_timeout_s)

    async def ping(self) -> int:
        """Return the actor's process id once its engine is loaded."""
        return os.getpid()

    async def generate(self, request: GroupRequest, *frames: np.ndarray) -> tuple[Rollout, ...]:
        """Generate a group, see `EngineLoop.generate`. frames: one array per clip, which Ray maps without a copy."""
        group = self._loop.generate(request, frames)
        try:
            return await asyncio.wrap_future(group)
        except asyncio.CancelledError:
            self._loop.forget(group)
            raise

    async def load_weights(self, transfer: WeightTransfer, version: WeightVersion) -> WeightVersion:
        """Load weights, see `EngineLoop.load_weights`."""
        return await asyncio.wrap_future(self._loop.load_weights(transfer, version))

    async def sleep(self) -> Turn | None:
        """Free the engine's memory once no group runs, see `RolloutEngine.sleep`."""
        return await asyncio.wrap_future(self._loop.call(lambda engine: engine.sleep()))

    async def wake(self) -> None:
        """Let the engine sample again, see `RolloutEngine.wake`."""
        await asyncio.wrap_future(self._loop.call(lambda engine: engine.wake()))

    async def compare_weights(self, transfer: WeightTransfer) -> tuple[Manifest, dict[str, float | None]]:
        """Return the result of `RolloutEngine.compare_weights`, computed while no group runs."""
        return await asyncio.wrap_future(self._loop.call(lambda engine: engine.compare_weights(transfer)))

    async def shutdown(self) -> None:
        """Free the engine; otherwise vLLM leaves shared memory behind when its process is killed."""
        await asyncio.wait([asyncio.wrap_future(self._loop.stop())], timeout=SHUTDOWN_S)
