"""Processes that decode clips, with a time limit for each clip."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, WorkerCrashedError

from rlsys import env
from rlsys.data.video.errors import ClipError
from rlsys.types import ClipInfo, MediaSpec

log = logging.getLogger(__name__)

CPUS_PER_DECODE = 0.25  # a decode keeps one core busy, but must find room beside engines and ranks
PAUSES_S = (1.0, 4.0)
"""Seconds before the second and third attempt: the process may have died with its node, which Ray notices late."""
MAX_TIMEOUTS = 2
START_TRIES = 10


class Decoder:
    """Decodes the clips of one file at a time. decord is loaded before any time limit starts, and never in the driver.

    keeps_bytes: bytes of frames that are kept of the files decoded last, for further clips of them.
    """

    def __init__(self, keeps_bytes: int = 0) -> None:
        from rlsys.data.video.decode import decode_all
        from rlsys.data.video.opened import OpenedFiles

        self._decode_all, self._opened = decode_all, OpenedFiles(keeps_bytes)

    def ready(self) -> None:
        """Return once the process is up."""

    def decode(self, specs: Sequence[MediaSpec]) -> tuple[Any, ...]:
        """Return ((ClipInfos, seconds), frames of each clip), or (ClipError, None, …). specs: of one file or folder."""
        started = time.monotonic()
        try:
            clips = self._decode_all(specs, self._opened)
        except ClipError as error:
            return error, *(None for _ in specs)
        seconds = time.monotonic() - started
        return (tuple(clip.info for clip in clips), seconds), *(clip.frames for clip in clips)

    def shuffle(self, frames: np.ndarray, seed: int) -> tuple[None, np.ndarray]:
        """Return (None, the frames u8 [T, H, W, 3] in a seeded random order)."""
        return None, frames[np.random.default_rng(seed).permutation(len(frames))]


class Decoders:
    """A pool of at most `num_workers` decoding processes, started on demand and kept.

    They are actors rather than tasks, because Ray ends a task's process after a second of idling, and starting one
    takes a hundred times as long as decoding a short clip. `decode` must be called on one event loop.
    keeps_bytes: bytes of frames that each process keeps of the files that it decoded last; further clips of a file go
    to the process that decoded it last, if that one is idle.
    """

    def __init__(self, num_workers: int, timeout_s: float, keeps_bytes: int = 0) -> None:
        self._timeout_s, self._keeps_bytes = timeout_s, keeps_bytes
        self._slots = asyncio.Semaphore(num_workers)
        self._idle: list[Any] = []
        self._last_files: dict[Any, str] = {}
        # decoders open files of unknown origin
        runtime = {"env_vars": env.no_secrets()}
        self._actor = ray.remote(num_cpus=CPUS_PER_DECODE, max_restarts=0, runtime_env=runtime)(Decoder)

    async def decode(self, specs: Sequence[MediaSpec]) -> tuple[tuple[ClipInfo, ...], float, list[Any]]:
        """Return (infos, seconds in the decoder, references to the frames u8 [T, H, W, 3]) of clips of one file.

        Raises ClipError. A file is bad if three processes die or two time out while decoding it; each attempt uses a
        new process.
        """
        uri = specs[0].uri
        async with self._slots:
            failures: list[ClipError] = []
            for pause_s in (0.0, *PAUSES_S):
                await asyncio.sleep(pause_s)
                # a further attempt uses a new process: the idle ones may have died with the same node
                worker = self._take(uri) if self._idle and not failures else await self._start(uri)
                try:
                    report, frames = await self._decode_on(worker, specs)
                except (RayActorError, WorkerCrashedError) as error:
                    detail = f"decoding ended its process {1 + len(PAUSES_S)} times ({type(error).__name__})"
                    failures.append(ClipError(uri, "crashed", detail))
                except TimeoutError:  # the process may have been stopped
                    failures.append(ClipError(uri, "timeout", f"not decoded after {self._timeout_s:g} s"))
                else:
                    self._idle.append(worker)
                    if self._keeps_bytes:
                        self._last_files[worker] = uri
                    if isinstance(report, ClipError):
                        raise report
                    infos, seconds = report
                    return infos, seconds, frames
                if sum(failure.kind == "timeout" for failure in failures) == MAX_TIMEOUTS:
                    break
            raise failures[-1]

    async def shuffle(self, frames: Any, seed: int) -> Any:
        """Return a reference to the frames in a seeded random order. Raises TimeoutError or RayActorError."""
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

    def close(self) -> None:
        """Stop the idle processes; suspended ones would not end with the run by themselves."""
        while self._idle:
            ray.kill(self._idle.pop())

    def _take(self, uri: str) -> Any:
        """Return an idle process, the one that has the file open if there is one."""
        for index, worker in enumerate(self._idle):
            if self._last_files.get(worker) == uri:
                return self._idle.pop(index)
        return self._idle.pop()

    async def _decode_on(self, worker: Any, specs: Sequence[MediaSpec]) -> tuple[Any, list[Any]]:
        report, *frames = worker.decode.options(num_returns=1 + len(specs)).remote(tuple(specs))
        try:
            async with asyncio.timeout(self._timeout_s):
                return await report, frames
        except (TimeoutError, asyncio.CancelledError):
            ray.kill(worker)
            raise

    async def _start(self, what: str) -> Any:
        """Start a new process. A failed start does not count against the clip. Raises RayActorError after retries."""
        for left in reversed(range(START_TRIES)):
            worker = self._actor.remote(self._keeps_bytes)
            try:
                await self._until_ready(worker, what)
            except RayActorError:
                if not left:
                    raise
                log.warning("%s: a decoding process died during its start; starting another.", what)
                await asyncio.sleep(PAUSES_S[0])
            else:
                return worker
        raise AssertionError("the last try returns or raises")

    async def _until_ready(self, worker: Any, what: str) -> None:
        """Wait until the process is up; waiting for a free CPU is logged."""
        ready = asyncio.ensure_future(worker.ready.remote())
        while not (await asyncio.wait((ready,), timeout=self._timeout_s))[0]:
            log.warning(
                "%s: decoding has waited another %g s for %g of a CPU; the cluster is full: "
                "leave some CPUs free or lower data.decode_workers.",
                what,
                self._timeout_s,
                CPUS_PER_DECODE,
            )
        ready.result()
