"""The clip store: decodes each clip once, in a separate process, and passes it on by reference."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections import OrderedDict, deque
from collections.abc import Collection
from dataclasses import replace
from weakref import WeakValueDictionary

from rlsys.config.run import DataConfig
from rlsys.data.video.content import Key, Signature, digest, signature
from rlsys.data.video.decoders import Decoders
from rlsys.data.video.errors import ClipError
from rlsys.types import ClipRef, MediaSpec

log = logging.getLogger(__name__)


class ClipStore:
    """Clips by reference: the u8 frames are in Ray's object store and never pass through this process.

    Least recently used clips are evicted while more than `data.cache_bytes` are alive. A ClipRef keeps its frames
    alive, and a clip with a live ClipRef is not decoded again. So the bytes alive never exceed the larger of the cache
    limit and the bytes in use. A clip that failed fails again at once, without another decode.
    Clips are known by the content of their files: copies are decoded once, and a file that is edited during the run is
    decoded again, with a warning and a count.
    All methods except `counters` must be called on one event loop.
    """

    def __init__(self, data: DataConfig) -> None:
        self._cache_bytes, self._timeout_s = data.cache_bytes, data.decode_timeout_s
        self._decoders = Decoders(data.decode_workers, data.decode_timeout_s)
        self._contents: dict[str, tuple[Signature, str]] = {}
        self._cached: OrderedDict[Key, ClipRef] = OrderedDict()
        self._alive: WeakValueDictionary[Key, ClipRef] = WeakValueDictionary()
        self._born_bytes = self._dead_bytes = 0
        self._deaths: deque[int] = deque()  # bytes of clips that were released, on any thread
        self._decoding: dict[Key, asyncio.Task[ClipRef]] = {}
        self._failed: dict[Key, ClipError] = {}
        self._asked: set[Key] = set()
        self._num_edited = 0
        self._hits = self._misses = self._evictions = self._decodes = self._bytes_cached = 0
        self._decode_s = 0.0

    async def get(self, spec: MediaSpec) -> ClipRef:
        """Return a clip; concurrent calls for one content and spec share one decode. Raises ClipError."""
        try:
            key = await asyncio.wait_for(asyncio.to_thread(self._key, spec), self._timeout_s)
        except TimeoutError:  # a file system that hangs
            raise ClipError(
                spec.uri, "timeout", f"not read after {self._timeout_s:g} s; raise `data.decode_timeout_s`"
            ) from None
        self._asked.add(key)
        if key in self._cached:
            self._hits += 1
            self._cached.move_to_end(key)
            return self._cached[key]
        if (alive := self._alive.get(key)) is not None:
            self._hits += 1
            return alive
        if key in self._failed:
            self._hits += 1
            error = self._failed[key]
            raise ClipError(spec.uri, error.kind, error.detail)
        if key in self._decoding:
            self._hits += 1
        else:
            self._misses += 1
            self._decoding[key] = asyncio.create_task(self._fill(key, spec))
            self._decoding[key].add_done_callback(_look_at_error)
        # shielded: cancelling one caller must not cancel the decode for the others
        return await asyncio.shield(self._decoding[key])

    def _key(self, spec: MediaSpec) -> Key:
        """Read a file at its first use, and again when its size or time of change differ. Runs in a thread."""
        found = signature(spec.uri)
        if found is None:
            return spec, ""
        known = self._contents.get(spec.uri)
        if known is None or known[0] != found:
            try:
                content = digest(spec.uri)
            except OSError:
                return spec, ""
            if known is not None and known[1] != content:
                self._num_edited += 1
                log.warning("%s was changed during the run; it is decoded again", spec.uri)
            known = self._contents[spec.uri] = (found, content)
        return replace(spec, uri=""), known[1]

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
        for key, clip in list(self._alive.items()):
            if clip.frames.hex() in references:
                del self._alive[key]
                if self._cached.pop(key, None) is not None:
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
            "edited_files": self._num_edited,
            "data/decodes_per_clip": self._decodes / len(self._asked) if self._asked else 0.0,
        }

    async def _fill(self, key: Key, spec: MediaSpec) -> ClipRef:
        try:
            self._decodes += 1
            info, seconds, frames = await self._decoders.decode(spec)
        except ClipError as error:
            self._failed[key] = error
            raise
        finally:
            del self._decoding[key]
        self._decode_s += seconds
        clip = ClipRef(info=info, frames=frames)
        self._keep(key, clip)
        return clip

    def _keep(self, key: Key, clip: ClipRef) -> None:
        self._watch(clip)
        self._alive[key] = self._cached[key] = clip
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
