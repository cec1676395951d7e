"""The clip store: decodes each clip once, in a separate process, and passes it on by reference."""

from __future__ import annotations

import asyncio
import weakref
from collections import OrderedDict, deque
from collections.abc import Collection
from dataclasses import replace
from weakref import WeakValueDictionary

from rlsys.config.run import DataConfig
from rlsys.data.video.decoders import Decoders
from rlsys.data.video.errors import ClipError
from rlsys.types import ClipRef, MediaSpec


class ClipStore:
    """Clips by reference: the u8 frames are in Ray's object store and never pass through this process.

    Least recently used clips are evicted while more than `data.cache_bytes` are alive. A ClipRef keeps its frames
    alive, and a clip with a live ClipRef is not decoded again. So the bytes alive never exceed the larger of the cache
    limit and the bytes in use. A clip that failed fails again at once, without another decode.
    All methods except `counters` must be called on one event loop.
    """

    def __init__(self, data: DataConfig) -> None:
        self._cache_bytes = data.cache_bytes
        self._decoders = Decoders(data.decode_workers, data.decode_timeout_s)
        self._cached: OrderedDict[MediaSpec, ClipRef] = OrderedDict()
        self._alive: WeakValueDictionary[MediaSpec, ClipRef] = WeakValueDictionary()
        self._born_bytes = self._dead_bytes = 0
        self._deaths: deque[int] = deque()  # bytes of clips that were released, on any thread
        self._decoding: dict[MediaSpec, asyncio.Task[ClipRef]] = {}
        self._failed: dict[MediaSpec, ClipError] = {}
        self._asked: set[MediaSpec] = set()
        self._hits = self._misses = self._evictions = self._decodes = self._bytes_cached = 0
        self._decode_s = 0.0

    async def get(self, spec: MediaSpec) -> ClipRef:
        """Return a clip; concurrent calls for one spec share one decode. Raises ClipError."""
        self._asked.add(spec)
        if spec in self._cached:
            self._hits += 1
            self._cached.move_to_end(spec)
            return self._cached[spec]
        if (alive := self._alive.get(spec)) is not None:
            self._hits += 1
            return alive
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
        # shielded: cancelling one caller must not cancel the decode for the others
        return await asyncio.shield(self._decoding[spec])

    async def shuffled(self, clip: ClipRef, seed: int) -> ClipRef:
        """Return the clip with its frames in a seeded random order, at unchanged times. Never cached."""
        info = replace(clip.info, digest=f"{clip.info.digest}~shuffled:{seed}")
        shuffled = ClipRef(info=info, frames=await self._decoders.shuffle(clip.frames, seed))
        self._watch(shuffled)
        return shuffled

    def has_room(self) -> bool:
        """Return whether the live clips are within the cache limit; clips are decoded ahead only then."""
        return self._bytes_alive() <= self._cache_bytes

    def forget(self, references: Collection[str]) -> None:
        """Drop the clips whose frames are the objects of these hex ids, so that they are decoded again on demand."""
        for spec, clip in list(self._alive.items()):
            if clip.frames.hex() in references:
                del self._alive[spec]
                if self._cached.pop(spec, None) is not None:
                    self._bytes_cached -= clip.info.num_bytes

    def close(self) -> None:
        """Stop the decoding processes."""
        self._decoders.close()

    def counters(self) -> dict[str, float]:
        """Return totals since the store was created.

        decode_s: total seconds in decoders.  data/decodes_per_clip: 1 is ideal.
        bytes_alive: bytes of clips with a live ClipRef, when the newest clip arrived.
        """
        asked = self._hits + self._misses
        return {
            "decodes": self._decodes,
            "hits": self._hits,
            "misses": self._misses,
            "hit_rate": self._hits / asked if asked else 0.0,
            "evictions": self._evictions,
            "bytes_cached": self._bytes_cached,
            "bytes_alive": self._born_bytes - self._dead_bytes,
            "decode_s": self._decode_s,
            "bad_clips": len(self._failed),
            "data/decodes_per_clip": self._decodes / len(self._asked) if self._asked else 0.0,
        }

    async def _fill(self, spec: MediaSpec) -> ClipRef:
        try:
            self._decodes += 1
            info, seconds, frames = await self._decoders.decode(spec)
        except ClipError as error:
            self._failed[spec] = error
            raise
        finally:
            del self._decoding[spec]
        self._decode_s += seconds
        clip = ClipRef(info=info, frames=frames)
        self._keep(spec, clip)
        return clip

    def _keep(self, spec: MediaSpec, clip: ClipRef) -> None:
        self._watch(clip)
        self._alive[spec] = self._cached[spec] = clip
        self._bytes_cached += clip.info.num_bytes
        del clip  # so that clips evicted here are no longer alive
        while self._cached and self._bytes_alive() > self._cache_bytes:
            _, oldest = self._cached.popitem(last=False)
            self._bytes_cached -= oldest.info.num_bytes
            self._evictions += 1
            del oldest

    def _watch(self, clip: ClipRef) -> None:
        self._born_bytes += clip.info.num_bytes
        # runs on any thread, where appending to a deque is the only safe operation
        weakref.finalize(clip, self._deaths.append, clip.info.num_bytes).atexit = False

    def _bytes_alive(self) -> int:
        while self._deaths:
            self._dead_bytes += self._deaths.popleft()
        return self._born_bytes - self._dead_bytes


def _look_at_error(task: asyncio.Task[ClipRef]) -> None:
    """Retrieve the error of a decode whose callers were all cancelled; asyncio would log it as unretrieved."""
    if not task.cancelled():
        task.exception()
