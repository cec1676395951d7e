"""The clip store: each clip is decoded once, in a process apart, and handed on by reference."""

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
    """Clips by reference: u8 frames lie in Ray's object store and never pass through this process.

    Least recently used clips are let go while more than `data.cache_bytes` are alive; whoever holds a ClipRef
    keeps its frames alive, and as long as anyone does nobody decodes the clip again. So no more is alive than the
    cache may hold or, if that is more, than is in use. A clip that failed fails again at once, without another decode.
    All methods but `counters` belong to one event loop.
    """

    def __init__(self, data: DataConfig) -> None:
        self._cache_bytes = data.cache_bytes
        self._decoders = Decoders(data.decode_workers, data.decode_timeout_s)
        self._cached: OrderedDict[MediaSpec, ClipRef] = OrderedDict()
        self._alive: WeakValueDictionary[MediaSpec, ClipRef] = WeakValueDictionary()
        self._born_bytes = self._dead_bytes = 0
        self._deaths: deque[int] = deque()  # bytes of clips that were let go, by whichever thread
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
        # shielded: a caller that is cancelled must not take the clip from the others
        return await asyncio.shield(self._decoding[spec])

    async def shuffled(self, clip: ClipRef, seed: int) -> ClipRef:
        """The clip with its frames in a seeded random order, at the times of the ordered ones. Never cached."""
        info = replace(clip.info, digest=f"{clip.info.digest}~shuffled:{seed}")
        shuffled = ClipRef(info=info, frames=await self._decoders.shuffle(clip.frames, seed))
        self._watch(shuffled)
        return shuffled

    def has_room(self) -> bool:
        """Whether no more bytes of clips are alive than the cache may hold: only then is anything decoded ahead."""
        return self._bytes_alive() <= self._cache_bytes

    def forget(self, references: Collection[str]) -> None:
        """Decode again, when they are next asked for, the clips whose frames are the objects of these hex ids."""
        for spec, clip in list(self._alive.items()):
            if clip.frames.hex() in references:
                del self._alive[spec]
                if self._cached.pop(spec, None) is not None:
                    self._bytes_cached -= clip.info.num_bytes

    def close(self) -> None:
        """End the decoding processes."""
        self._decoders.close()

    def counters(self) -> dict[str, float]:
        """Since the store was made. decode_s: seconds in decoders, summed. data/decodes_per_clip: 1 is ideal.

        bytes_alive: of clips that somebody holds, when the newest one came.
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
        del clip  # so that what is let go here is no longer alive
        while self._cached and self._bytes_alive() > self._cache_bytes:
            _, oldest = self._cached.popitem(last=False)
            self._bytes_cached -= oldest.info.num_bytes
            self._evictions += 1
            del oldest

    def _watch(self, clip: ClipRef) -> None:
        self._born_bytes += clip.info.num_bytes
        # any thread may let go of it: adding to a deque is the only thing that is safe there
        weakref.finalize(clip, self._deaths.append, clip.info.num_bytes).atexit = False

    def _bytes_alive(self) -> int:
        while self._deaths:
            self._dead_bytes += self._deaths.popleft()
        return self._born_bytes - self._dead_bytes


def _look_at_error(task: asyncio.Task[ClipRef]) -> None:
    """Every caller may have gone away; asyncio would complain of an error that nobody read."""
    if not task.cancelled():
        task.exception()
