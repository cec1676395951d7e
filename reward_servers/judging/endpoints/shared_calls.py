"""Calls that are the same and run at the same time become one call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Answer = TypeVar("Answer")
_GRACE_S = 0.5  # the call itself ends at its deadline, with a better reason than ours
_MARGIN_S = 0.25  # a call that fails so shortly before its deadline failed because of it


@dataclass
class _Running(Generic[Answer]):
    task: asyncio.Task[Answer]
    deadline_s: float
    num_waiting: int = 0


class SharedCalls(Generic[Answer]):
    """The calls under way, by key. A call ends early only when everybody who waits for it has gone."""

    def __init__(self) -> None:
        self._running: dict[Hashable, _Running[Answer]] = {}
        self.num_shared = 0

    async def get(self, key: Hashable, start: Callable[[], Coroutine[Any, Any, Answer]], deadline_s: float) -> Answer:
        """What `start()` returns or raises, or what the same call that runs already does.

        deadline_s: of `time.monotonic`; TimeoutError after it. Whoever joined a call that ran out of time while there
        is more of its own starts anew; any other failure is everybody's.
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
        self, key: Hashable, start: Callable[[], Coroutine[Any, Any, Answer]], deadline_s: float
    ) -> _Running[Answer]:
        running = _Running(task=asyncio.create_task(start()), deadline_s=deadline_s)
        self._running[key] = running
        running.task.add_done_callback(lambda _: self._end(key, running))
        return running

    async def _result(self, key: Hashable, running: _Running[Answer], deadline_s: float) -> Answer:
        running.num_waiting += 1
        try:
            await asyncio.wait({running.task}, timeout=max(0.0, deadline_s - time.monotonic()) + _GRACE_S)
        finally:
            running.num_waiting -= 1
            if not running.num_waiting and not running.task.done():
                self._forget(key, running)  # nobody may join a call that is being ended
                running.task.cancel()
        if not running.task.done():
            raise TimeoutError("no answer before the deadline")
        return running.task.result()

    def _end(self, key: Hashable, running: _Running[Answer]) -> None:
        self._forget(key, running)
        if not running.task.cancelled():
            running.task.exception()  # seen, even if everybody has gone

    def _forget(self, key: Hashable, running: _Running[Answer]) -> None:
        if self._running.get(key) is running:
            del self._running[key]
