"""Preparation of prompts and clips: decoded once, held until they are needed, decoded again when frames are lost."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt

from rlsys.errors import FramesLost
from rlsys.models.prompts import PromptBuilder
from rlsys.types import (
    ClipInfo,
    ClipRef,
    MediaSpec,
    Prompt,
    PromptItem,
    RolloutGroup,
    ScoredGroup,
)

log = logging.getLogger(__name__)

Computed = TypeVar("Computed")
Prepared = tuple[PromptItem, Prompt, tuple[ClipRef, ...]]

LOST_FRAMES: Mapping[str, Any] = {
    "retry": retry_if_exception_type(FramesLost),
    "stop": stop_after_attempt(4),
    "reraise": True,
}
"""The retry policy for clips whose frames are no longer in the object store, which are then decoded again."""


class Clips(Protocol):
    """The store of decoded clips; see `rlsys.data.video.clips`."""

    async def get(self, spec: MediaSpec) -> ClipRef: ...

    async def get_all(self, specs: Sequence[MediaSpec]) -> list[ClipRef]: ...

    async def shuffled(self, clip: ClipRef, seed: int) -> ClipRef: ...

    def has_room(self) -> bool: ...

    def forget(self, references: Collection[str]) -> None: ...

    def close(self) -> None: ...


class ClipFetcher:
    """A fetcher of the clips of items, on an event loop of its own."""

    def __init__(self, clips: Clips) -> None:
        self._clips = clips
        self._prefetched: dict[str, list[ClipRef]] = {}  # the cache may evict a clip before its prompt starts
        self._events = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._events.run_forever, name="group-producer", daemon=True)
        self._thread.start()

    def prefetch(self, item: PromptItem) -> None:
        """Decode the item's clips now and hold them until they are needed; errors are raised then.

        Nothing is decoded ahead while the live clips fill `data.cache_bytes`.
        """
        asyncio.run_coroutine_threadsafe(self._prefetch(item), self._events)

    async def _prefetch(self, item: PromptItem) -> None:
        if not self._clips.has_room():
            return
        found = await asyncio.gather(*(self._clips.get(spec) for spec in item.media), return_exceptions=True)
        self._prefetched[item.prompt_id] = [clip for clip in found if not isinstance(clip, BaseException)]

    async def _fetch(self, item: PromptItem) -> tuple[ClipRef, ...]:
        if len({spec.uri for spec in item.media}) < len(item.media):  # parts of one file are decoded together
            clips = tuple(await self._clips.get_all(item.media))
        else:
            clips = tuple(await asyncio.gather(*(self._clips.get(spec) for spec in item.media)))
        self._prefetched.pop(item.prompt_id, None)
        return clips

    def close(self) -> None:
        """Cancel running work and stop the decoding processes and the event loop."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._events).result(timeout=30)
        self._events.call_soon_threadsafe(self._events.stop)
        self._thread.join(timeout=30)

    async def _stop(self) -> None:
        running = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        self._clips.close()


class Preparer(ClipFetcher):
    """A preparer of prompts and clips. Only `with_frames` blocks."""

    def __init__(self, clips: Clips, prompts: PromptBuilder) -> None:
        super().__init__(clips)
        self._prompts = prompts

    def put_together(
        self,
        item: PromptItem,
        make: Callable[[Prompt, tuple[ClipRef, ...]], ScoredGroup],
        response_tokens: int | None = None,
    ) -> Future[ScoredGroup]:
        """Prepare the item and apply `make` to its prompt and clips. The future raises ClipError for a bad clip.

        response_tokens: length of the longest response that will follow the prompt; None means rollout.max_tokens.
        """

        async def put() -> ScoredGroup:
            return make(*await self._prepare(item, {}, response_tokens))

        return asyncio.run_coroutine_threadsafe(put(), self._events)

    def put_rounds_together(
        self,
        item: PromptItem,
        later: Callable[[Sequence[ClipInfo]], Sequence[PromptItem]],
        make: Callable[[Sequence[Prepared]], ScoredGroup],
    ) -> Future[ScoredGroup]:
        """Prepare the item and what later rounds show of it, and apply `make` to all of them; see `put_together`.

        later: what the first round told of the clips -> the items of later rounds.
        """

        async def put() -> ScoredGroup:
            prompt, clips = await self._prepare(item, {})
            others = later([clip.info for clip in clips])
            prepared = await asyncio.gather(*(self._prepare(one, {}) for one in others))
            return make([(item, prompt, clips), *((one, *rest) for one, rest in zip(others, prepared, strict=True))])

        return asyncio.run_coroutine_threadsafe(put(), self._events)

    def with_frames(
        self, groups: Sequence[RolloutGroup], compute: Callable[[tuple[RolloutGroup, ...]], Computed]
    ) -> Computed:
        """Return `compute(groups)`; clips whose frames were lost are decoded again, and `compute` is retried."""
        present = list(groups)

        def decode_again(attempt: RetryCallState) -> None:
            lost = lost_in(attempt)
            present[:] = [self._with_clips_again(group, lost) for group in present]

        return Retrying(**LOST_FRAMES, before_sleep=decode_again)(lambda: compute(tuple(present)))

    def _with_clips_again(self, group: RolloutGroup, lost: Collection[str]) -> RolloutGroup:
        if not any(clip.frames.hex() in lost for clip in group.clips):
            return group

        async def make_again() -> RolloutGroup:
            self._clips.forget(lost)
            _, clips = await self._prepare(group.item, {})
            return replace(group, clips=clips)

        return asyncio.run_coroutine_threadsafe(make_again(), self._events).result()

    async def _prepare(
        self, item: PromptItem, spans: dict[str, tuple[float, float]], response_tokens: int | None = None
    ) -> tuple[Prompt, tuple[ClipRef, ...]]:
        with span(spans, "decode"):
            clips = await self._fetch(item)
        with span(spans, "prompt"):
            prompt = self._prompts.build(item, [clip.info for clip in clips], response_tokens)
        return prompt, clips


def lost_in(attempt: RetryCallState) -> tuple[str, ...]:
    """Return the references of the frames whose loss made an attempt fail. Raises TypeError for another failure."""
    error = attempt.outcome.exception() if attempt.outcome else None
    if not isinstance(error, FramesLost):
        raise TypeError(f"retried after {error!r}, which is not a FramesLost error.")
    log.warning("%s; decoding them again", error)
    return error.references


@contextmanager
def span(spans: dict[str, tuple[float, float]], phase: str) -> Iterator[None]:
    """Note in `spans` when a phase begins and ends."""
    start = time.monotonic()
    yield
    spans[phase] = (start, time.monotonic())
