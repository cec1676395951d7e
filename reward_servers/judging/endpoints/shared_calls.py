"""Merge equal calls that run at the same time into one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")
_GRACE_S = 0.5  # the call itself ends at its deadline, with a better reason than ours
_MARGIN_S = 0.25  # a call that fails so shortly before its deadline failed because of it


@dataclass
class _Running(Generic[Result]):
    task: asyncio.Task[Result]
    deadline_s: float
    num_waiting: int = 0


class SharedCalls(Generic[Result]):
    """The calls under way, by key. A call is cancelled early only when no caller waits for it any more."""

    def __init__(self) -> None:
        self._running: dict[Hashable, _Running[Result]] = {}
        self.num_shared = 0

    async def get(self, key: Hashable, start: Callable[[], Coroutine[Any, Any, Result]], deadline_s: float) -> Result:
        """Return what `start()` returns or raises, or what the same call that runs already does.

        deadline_s: of `time.monotonic`; TimeoutError after it. A caller that joined a call which ran out of time,
        and has time left itself, starts a new call; any other failure is raised for all of them.
        """
        while True:
            running = self._running.get(key)
            if running is None:
                running = self._start(key, start, deadline_s)
            else:
                self.num_shared += 1
            try:
                return await self._result(key, running, deadline_s)
            except Exception:
                now_s = time.monotonic()
                if now_s < running.deadline_s - _MARGIN_S or now_s >= deadline_s or running.deadline_s >= deadline_s:
                    raise

    def _start(
        self, key: Hashable, start: Callable[[], Coroutine[Any, Any, Result]], deadline_s: float
    ) -> _Running[Result]:
        running = _Running(task=asyncio.create_task(start()), deadline_s=deadline_s)
        self._running[key] = running
        running.task.add_done_callback(lambda _: self._end(key, running))
        return running

    async def _result(self, key: Hashable, running: _Running[Result], deadline_s: float) -> Result:
        running.num_waiting += 1
        try:
            await asyncio.wait({running.task}, timeout=max(0.0, deadline_s - time.monotonic()) + _GRACE_S)
        finally:
            running.num_waiting -= 1
            if not running.num_waiting and not running.task.done():
                self._forget(key, running)  # no caller may join a call that is being cancelled
                running.task.cancel()
        if not running.task.done():
            raise TimeoutError("no answer before the deadline")
        return running.task.result()

    def _end(self, key: Hashable, running: _Running[Result]) -> None:
        self._forget(key, running)
        if not running.task.cancelled():
            running.task.exception()  # retrieved, even if no caller is left

    def _forget(self, key: Hashable, running: _Running[Result]) -> None:
        if self._running.get(key) is running:
            del self._running[key]
