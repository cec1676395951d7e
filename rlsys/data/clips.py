"""The clip store: decodes each clip once in a Ray task of its own and hands it on by reference."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError

from rlsys.config import DataConfig
from rlsys.data.errors import ClipError
from rlsys.types import ClipRef, MediaSpec

log = logging.getLogger(__name__)

CPUS_PER_DECODE = 0.25  # a decode keeps one core busy, but must find room beside engines and ranks
# a worker may die of its node's trouble, so a clip gets a second chance; Ray also uses it to make lost frames again
MAX_RETRIES = 1


def _decode_in_task(spec: MediaSpec) -> Iterator[Any]:
    """Yields None when ready (the deadline counts from here), then (ClipInfo, seconds) and frames, or a ClipError."""
    from rlsys.data.decode import decode  # decord stays out of the driver

    yield None
    started = time.monotonic()
    try:
        clip = decode(spec)
    except ClipError as error:
        yield error
        return
    yield clip.info, time.monotonic() - started
    yield clip.frames


class ClipStore:
    """Clips by reference: u8 frames lie in Ray's object store and never pass through this process.

    Least recently used clips are let go when more than `data.cache_bytes` are held; whoever holds a ClipRef
    keeps its frames alive. A clip that failed fails again at once, without another decode.
    All methods but `counters` belong to one event loop.
    """

    def __init__(self, data: DataConfig) -> None:
        self._timeout_s, self._cache_bytes = data.decode_timeout_s, data.cache_bytes
        self._slots = asyncio.Semaphore(data.decode_workers)
        self._task = ray.remote(num_cpus=CPUS_PER_DECODE, max_retries=MAX_RETRIES, num_returns="streaming")(
            _decode_in_task
        )
        self._cached: OrderedDict[MediaSpec, ClipRef] = OrderedDict()
        self._decoding: dict[MediaSpec, asyncio.Task[ClipRef]] = {}
        self._failed: dict[MediaSpec, ClipError] = {}
        self._asked: set[MediaSpec] = set()
        self._hits = self._misses = self._evictions = self._decodes = self._bytes_cached = 0
        self._decode_s = 0.0

    async def get(self, spec: MediaSpec) -> ClipRef:
        """The clip; concurrent calls for one spec share one decode. Raises ClipError."""
        self._asked.add(spec)
        if spec in self._cached:
            self._hits += 1
            self._cached.move_to_end(spec)
            return self._cached[spec]
        if spec in self._failed:
            self._hits += 1
            error = self._failed[spec]
            raise ClipError(error.uri, error.kind, error.detail)
        if spec in self._decoding:
            self._hits += 1
        else:
            self._misses += 1
            self._decoding[spec] = asyncio.create_task(self._fill(spec))
            self._decoding[spec].add_done_callback(_look_at_error)
        # shielded: a caller that is cancelled must not take the clip from the others
        return await asyncio.shield(self._decoding[spec])

    def counters(self) -> dict[str, float]:
        """Since the store was made. decode_s: seconds in decoders, summed. data/decodes_per_clip: 1 is ideal."""
        asked = self._hits + self._misses
        return {
            "decodes": self._decodes,
            "hits": self._hits,
            "misses": self._misses,
            "hit_rate": self._hits / asked if asked else 0.0,
            "evictions": self._evictions,
            "bytes_cached": self._bytes_cached,
            "decode_s": self._decode_s,
            "bad_clips": len(self._failed),
            "data/decodes_per_clip": self._decodes / len(self._asked) if self._asked else 0.0,
        }

    async def _fill(self, spec: MediaSpec) -> ClipRef:
        try:
            async with self._slots:
                clip = await self._decode(spec)
        except ClipError as error:
            self._failed[spec] = error
            raise
        finally:
            del self._decoding[spec]
        self._keep(spec, clip)
        return clip

    async def _decode(self, spec: MediaSpec) -> ClipRef:
        self._decodes += 1
        results: Any = self._task.remote(spec)  # an ObjectRefGenerator, which Ray's annotations do not say
        try:
            await self._wait_for_start(results, spec)
            async with asyncio.timeout(self._timeout_s):
                report = await (await anext(results))
                if isinstance(report, ClipError):
                    raise report
                info, seconds = report
                frames = await anext(results)
        except TimeoutError:
            ray.cancel(results, force=True)
            raise ClipError(spec.uri, "timeout", f"not decoded after {self._timeout_s:g} s") from None
        except (WorkerCrashedError, OutOfMemoryError, NodeDiedError) as error:
            detail = f"decoding ended its process {MAX_RETRIES + 1} times ({type(error).__name__})"
            raise ClipError(spec.uri, "crashed", detail) from error
        except asyncio.CancelledError:
            ray.cancel(results, force=True)
            raise
        self._decode_s += seconds
        return ClipRef(info=info, frames=frames)

    async def _wait_for_start(self, results: Any, spec: MediaSpec) -> None:
        """A task that waits for a free CPU is not a clip that hangs: said in the log, never held against the clip."""
        started = asyncio.ensure_future(anext(results))
        try:
            while not (await asyncio.wait((started,), timeout=self._timeout_s))[0]:
                log.warning(
                    "%s: its decode has waited %g s more for %g of a CPU; the cluster is full, "
                    "leave some CPUs free or lower data.decode_workers.",
                    spec.uri,
                    self._timeout_s,
                    CPUS_PER_DECODE,
                )
            await started.result()
        finally:
            started.cancel()

    def _keep(self, spec: MediaSpec, clip: ClipRef) -> None:
        self._cached[spec] = clip
        self._bytes_cached += clip.info.num_bytes
        while self._bytes_cached > self._cache_bytes:
            _, oldest = self._cached.popitem(last=False)
            self._bytes_cached -= oldest.info.num_bytes
            self._evictions += 1


def _look_at_error(task: asyncio.Task[ClipRef]) -> None:
    """Every caller may have gone away; asyncio would complain of an error that nobody read."""
    if not task.cancelled():
        task.exception()
