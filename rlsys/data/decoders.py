"""Processes that decode clips, with a deadline for each clip."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, WorkerCrashedError

from rlsys.data.errors import ClipError
from rlsys.types import ClipInfo, MediaSpec

log = logging.getLogger(__name__)

CPUS_PER_DECODE = 0.25  # a decode keeps one core busy, but must find room beside engines and ranks
MAX_RETRIES = 1  # a process may die or hang of its node's trouble, so a clip gets a second chance


class Decoder:
    """Decodes one clip at a time. decord is loaded before any deadline runs, and stays out of the driver."""

    def __init__(self) -> None:
        from rlsys.data.decode import decode

        self._decode = decode

    def ready(self) -> None:
        """Returns when the process is up."""

    def decode(self, spec: MediaSpec) -> tuple[Any, Any]:
        """((ClipInfo, seconds), frames), or (ClipError, None)."""
        started = time.monotonic()
        try:
            clip = self._decode(spec)
        except ClipError as error:
            return error, None
        return (clip.info, time.monotonic() - started), clip.frames

    def shuffle(self, frames: np.ndarray, seed: int) -> tuple[None, np.ndarray]:
        """(None, the frames u8 [T, H, W, 3] in another order)."""
        return None, frames[np.random.default_rng(seed).permutation(len(frames))]


class Decoders:
    """At most `num_workers` decoding processes, started when first needed and kept.

    They are actors and not plain tasks, because Ray ends the process of a task that has been idle for a second, and
    starting one takes a hundred times as long as decoding a short clip. `decode` belongs to one event loop.
    """

    def __init__(self, num_workers: int, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._slots = asyncio.Semaphore(num_workers)
        self._idle: list[Any] = []
        self._actor = ray.remote(num_cpus=CPUS_PER_DECODE, max_restarts=0)(Decoder)

    async def decode(self, spec: MediaSpec) -> tuple[ClipInfo, float, Any]:
        """(info, seconds in the decoder, reference to the frames u8 [T, H, W, 3]). Raises ClipError.

        A process that hangs over the clip or dies of it is replaced, and the clip gets its second chance.
        """
        async with self._slots:
            failure: ClipError | None = None
            for _ in range(1 + MAX_RETRIES):
                try:
                    # a second chance is with a new process: the idle ones may have gone with the same node
                    worker = self._idle.pop() if self._idle and failure is None else await self._start(spec.uri)
                    report, frames = await self._decode_on(worker, spec)
                except (RayActorError, WorkerCrashedError) as error:
                    detail = f"decoding ended its process {1 + MAX_RETRIES} times ({type(error).__name__})"
                    failure = ClipError(spec.uri, "crashed", detail)
                    failure.__cause__ = error
                except TimeoutError:  # the process may have been stopped
                    failure = ClipError(spec.uri, "timeout", f"not decoded after {self._timeout_s:g} s")
                else:
                    self._idle.append(worker)
                    if isinstance(report, ClipError):
                        raise report
                    return *report, frames
            raise failure or AssertionError("no attempt was made")

    async def shuffle(self, frames: Any, seed: int) -> Any:
        """Reference to the frames in a seeded random order. TimeoutError or RayActorError when that fails."""
        async with self._slots:
            worker = self._idle.pop() if self._idle else await self._start("frames to shuffle")
            done, shuffled = worker.shuffle.options(num_returns=2).remote(frames, seed)
            try:
                await asyncio.wait_for(done, self._timeout_s)  # the frames themselves stay where they are
            except (TimeoutError, asyncio.CancelledError):
                ray.kill(worker)
                raise
            self._idle.append(worker)
            return shuffled

    async def _decode_on(self, worker: Any, spec: MediaSpec) -> tuple[Any, Any]:
        report, frames = worker.decode.options(num_returns=2).remote(spec)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await report, frames
        except (TimeoutError, asyncio.CancelledError):
            ray.kill(worker)
            raise

    async def _start(self, what: str) -> Any:
        """A new process, as soon as there is a CPU for it; a wait is said in the log, never held against the clip."""
        worker = self._actor.remote()
        ready = asyncio.ensure_future(worker.ready.remote())
        while not (await asyncio.wait((ready,), timeout=self._timeout_s))[0]:
            log.warning(
                "%s: its decode has waited %g s more for %g of a CPU; the cluster is full, "
                "leave some CPUs free or lower data.decode_workers.",
                what,
                self._timeout_s,
                CPUS_PER_DECODE,
            )
        ready.result()
        return worker
