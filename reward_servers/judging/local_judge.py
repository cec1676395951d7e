"""A judge in this process, without a cluster: for scoring files, calibration, rescoring and the probe."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import TypeVar

from reward_servers.judging.build import build_judge
from reward_servers.judging.endpoints.endpoints import EndpointBoard
from reward_servers.judging.judge import Judge, JudgeTask
from reward_servers.server.auth import token_from_environment
from rlsys.config.run import JudgeConfig
from rlsys.types import Score

Item = TypeVar("Item")
Result = TypeVar("Result")
_AHEAD = 4
"""Rows begun per row that may run: a slow row at the front then does not hold up the others."""


@asynccontextmanager
async def open_judge(config: JudgeConfig) -> AsyncIterator[Judge]:
    """Open the judge of `config`, with the endpoints' limits kept in this process.

    Raises as `build_judge` does; its `score` raises JudgeUnusable when a person must change something first.
    """
    board = EndpointBoard(config) if config.urls else None
    key = token_from_environment(config.api_key_env) if config.urls else None
    judge = build_judge(config, board, key, raises_final=True)
    try:
        yield judge
    finally:
        await judge.close()


async def judged_in_order(
    judge: Judge, tasks: Iterable[JudgeTask], num_at_once: int, timeout_s: float
) -> AsyncIterator[Score]:
    """Yield a score per task, in order. Each has `timeout_s` from when it is begun, not from when the first one is."""

    async def judged(task: JudgeTask) -> Score:
        return (await judge.score([task], time.monotonic() + timeout_s))[0]

    async for score in in_order(tasks, judged, num_at_once):
        yield score


async def in_order(
    items: Iterable[Item], work: Callable[[Item], Awaitable[Result]], num_at_once: int
) -> AsyncIterator[Result]:
    """Yield `work` of each item in the items' order, up to `num_at_once` at a time. Items are read as needed."""
    free = asyncio.Semaphore(num_at_once)

    async def limited(item: Item) -> Result:
        async with free:
            return await work(item)

    begun: deque[asyncio.Task[Result]] = deque()
    try:
        for item in items:
            begun.append(asyncio.create_task(limited(item)))
            while len(begun) >= _AHEAD * num_at_once:
                yield await begun.popleft()
        while begun:
            yield await begun.popleft()
    finally:
        for task in begun:
            task.cancel()
        await asyncio.gather(*begun, return_exceptions=True)  # else asyncio prints the errors of those that failed too


def pumped(results: AsyncIterator[Result]) -> Iterator[Result]:
    """Yield the results for a caller that is not asynchronous, each as soon as it is there."""

    async def following() -> list[Result]:
        async for result in results:
            return [result]
        return []

    with asyncio.Runner() as runner:
        while found := runner.run(following()):
            yield found[0]
