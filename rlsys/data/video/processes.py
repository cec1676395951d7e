"""Work on files of unknown origin in processes of its own, so that one that hangs or dies takes nothing along."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from queue import SimpleQueue
from typing import TypeVar

Given = TypeVar("Given")
Found = TypeVar("Found")


def each_apart(
    work: Callable[[Given], Found], items: Sequence[Given], *, workers: int, timeout_s: float
) -> Iterator[Found | TimeoutError | BrokenProcessPool]:
    """Yield what `work` returns for each item, in order, from at most `workers` spawned processes.

    timeout_s: for one item, counted from its own turn. An item that takes longer yields TimeoutError and one that
    ends its process BrokenProcessPool; the next item then gets a new process. What `work` raises is raised.
    """
    workers = min(workers, len(items))
    if not workers:
        return
    idle: SimpleQueue[_Process] = SimpleQueue()
    processes = [_Process() for _ in range(workers)]
    for process in processes:
        idle.put(process)

    def in_turn(item: Given) -> Found | TimeoutError | BrokenProcessPool:
        process = idle.get()
        try:
            return process.run(work, item, timeout_s)
        finally:
            idle.put(process)

    threads = ThreadPoolExecutor(workers)
    try:
        yield from threads.map(in_turn, items)
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for process in processes:  # a decoder that hangs would keep this process alive
            process.end()


class _Process:
    """One process, replaced when it hangs or dies."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))

    def run(
        self, work: Callable[[Given], Found], item: Given, timeout_s: float
    ) -> Found | TimeoutError | BrokenProcessPool:
        try:
            return self._pool.submit(work, item).result(timeout_s)
        except (TimeoutError, BrokenProcessPool) as error:
            self.end()
            self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
            return error

    def end(self) -> None:
        for process in list((self._pool._processes or {}).values()):
            process.kill()
        self._pool.shutdown(wait=False, cancel_futures=True)
