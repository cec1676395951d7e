"""The clip store: decodes each clip once, in a separate process, and passes it on by reference."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections import OrderedDict, deque
from collections.abc import Collection, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

from rlsys.config.run import DataConfig
from rlsys.data.video.content import Address, Key, Signature, address_of, digest, signature, without_address
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
    keeps_bytes: bytes of frames that each decoding process keeps for further clips of the same file, such as those of
    later rounds.
    All methods except `counters` must be called on one event loop.
    """

    def __init__(self, data: DataConfig, keeps_bytes: int = 0) -> None:
        self._cache_bytes, self._timeout_s = data.cache_bytes, data.decode_timeout_s
        self._decoders = Decoders(data.decode_workers, data.decode_timeout_s, keeps_bytes)
        self._contents: dict[Address, tuple[Signature, str]] = {}
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
        found = self._found(key := await self._key_in_time(spec), spec)
        if found is None:
            self._misses += 1
            found = self._start(key, self._fill(key, spec))
        # shielded: cancelling one caller must not cancel the decode for the others
        return found if isinstance(found, ClipRef) else await asyncio.shield(found)

    async def get_all(self, specs: Sequence[MediaSpec]) -> list[ClipRef]:
        """Return the clips of several specs; those of one file that are not there yet share one decode.

        Raises ClipError. In a file of which some clip cannot be decoded, the others are decoded by themselves.
        """
        keys = [await self._key_in_time(spec) for spec in specs]
        found: list[ClipRef | asyncio.Task[ClipRef] | None] = []
        missing: dict[Address, dict[Key, MediaSpec]] = {}
        for key, spec in zip(keys, specs, strict=True):
            found.append(self._found(key, spec))
            if found[-1] is None:
                self._misses += 1
                missing.setdefault(address_of(spec), {})[key] = spec
        started: dict[Key, asyncio.Task[ClipRef]] = {}
        for of_file in missing.values():
            together = asyncio.create_task(self._fill_all(of_file))
            for key, spec in of_file.items():
                started[key] = self._start(key, self._one_of(together, key, spec))
        waiting = [one or started[key] for key, one in zip(keys, found, strict=True)]
        return [one if isinstance(one, ClipRef) else await asyncio.shield(one) for one in waiting]

    async def _key_in_time(self, spec: MediaSpec) -> Key:
        try:
            return await asyncio.wait_for(asyncio.to_thread(self._key, spec), self._timeout_s)
        except TimeoutError:  # a file system that hangs
            raise ClipError(
                spec.uri, "timeout", f"not read after {self._timeout_s:g} s; raise `data.decode_timeout_s`"
            ) from None

    def _found(self, key: Key, spec: MediaSpec) -> ClipRef | asyncio.Task[ClipRef] | None:
        """Return a clip that is there or being decoded, None if it must be decoded. Raises ClipError if it failed."""
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
        return self._decoding.get(key)

    def _start(self, key: Key, decoding: Coroutine[Any, Any, ClipRef]) -> asyncio.Task[ClipRef]:
        self._decoding[key] = asyncio.create_task(decoding)
        self._decoding[key].add_done_callback(_look_at_error)
        return self._decoding[key]

    def _key(self, spec: MediaSpec) -> Key:
        """Read a file at its first use, and again when its size or time of change differ. Runs in a thread."""
        address = address_of(spec)
        found = signature(address)
        if found is None:
            return spec, ""
        known = self._contents.get(address)
        if known is None or known[0] != found:
            try:
                content = digest(address)
            except OSError:
                return spec, ""
            if known is not None and known[1] != content:
                self._num_edited += 1
                log.warning("%s was changed during the run; it is decoded again", spec.uri)
            known = self._contents[address] = (found, content)
        return without_address(spec), known[1]

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
            (info,), seconds, (frames,) = await self._decoders.decode((spec,))
        except ClipError as error:
            self._failed[key] = error
            raise
        finally:
            del self._decoding[key]
        self._decode_s += seconds
        clip = ClipRef(info=info, frames=frames, decode_s=seconds)
        self._keep(key, clip)
        return clip

    async def _fill_all(self, specs: Mapping[Key, MediaSpec]) -> dict[Key, ClipRef]:
        """Decode clips of one file together; return {} if one of them cannot be decoded."""
        try:
            self._decodes += 1
            infos, seconds, frames = await self._decoders.decode(tuple(specs.values()))
        except ClipError:
            return {}
        self._decode_s += seconds
        return {
            key: ClipRef(info=info, frames=one, decode_s=seconds / len(infos))
            for key, info, one in zip(specs, infos, frames, strict=True)
        }

    async def _one_of(self, together: asyncio.Task[dict[Key, ClipRef]], key: Key, spec: MediaSpec) -> ClipRef:
        try:
            found = (await asyncio.shield(together)).pop(key, None)
        except BaseException:
            del self._decoding[key]
            raise
        if found is None:
            return await self._fill(key, spec)
        del self._decoding[key]
        self._keep(key, found)
        return found

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
