"""Production of scored groups from prompt items: decode, build the prompt, generate, check, score.

Each group is one coroutine on a background event loop, so groups are independent: a group is scored as soon as its
last rollout ends, while others are still being generated.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, Protocol, TypeVar

from tenacity import AsyncRetrying, RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt

from rlsys.algorithm.order_contrast import wants_contrast, with_order_contrast
from rlsys.config.run import RunConfig
from rlsys.errors import FramesLost, TruthOutside, UserError
from rlsys.models.prompts import PromptBuilder, PromptContractError, check_contract
from rlsys.tasks.truth_fit import fit_truth
from rlsys.types import (
    ClipRef,
    MediaSpec,
    Prompt,
    PromptItem,
    Rollout,
    RolloutGroup,
    Sampling,
    ScoredGroup,
    VideoSpec,
)

log = logging.getLogger(__name__)

Computed = TypeVar("Computed")
OnDirtyRow = Literal["drop", "clip", "stop"]

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


class Pool(Protocol):
    """The actors that generate rollouts; see `actors.pool.RolloutPool`."""

    async def generate(
        self, item: PromptItem, prompt: Prompt, clips: tuple[ClipRef, ...], sampling: Sampling
    ) -> tuple[Rollout, ...]: ...


class Scorer(Protocol):
    """The client of the reward servers; see `reward_servers.client`."""

    async def score(self, group: RolloutGroup, spans: Mapping[str, tuple[float, float]]) -> ScoredGroup: ...

    async def close(self) -> None: ...


def sampling_seed(run_seed: int, prompt_index: int, prompt_id: str) -> int:
    """Return the 48-bit seed of a group's first response, a function of run seed, prompt index and prompt id.

    Response i uses seed + i. A prompt has another seed in a later epoch, because its index differs.
    """
    key = f"{run_seed}|{prompt_index}|{prompt_id}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:6], "big")


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

    def with_frames(
        self, groups: Sequence[RolloutGroup], compute: Callable[[tuple[RolloutGroup, ...]], Computed]
    ) -> Computed:
        """Return `compute(groups)`; clips whose frames were lost are decoded again, and `compute` is retried."""
        present = list(groups)

        def decode_again(attempt: RetryCallState) -> None:
            lost = _lost_in(attempt)
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
        with _span(spans, "decode"):
            clips = await self._fetch(item)
        with _span(spans, "prompt"):
            prompt = self._prompts.build(item, [clip.info for clip in clips], response_tokens)
        return prompt, clips


class Answerer(Preparer):
    """A producer of groups that are not scored, for evaluation. `answer` returns at once."""

    def __init__(self, clips: Clips, prompts: PromptBuilder, pool: Pool) -> None:
        super().__init__(clips, prompts)
        self._pool = pool

    def answer(self, item: PromptItem, sampling: Sampling) -> Future[RolloutGroup]:
        """Sample one group. Its future raises ClipError if a clip is unusable."""
        return asyncio.run_coroutine_threadsafe(self._with_frames_kept(self._answer_once, item, sampling), self._events)

    async def _answer_once(self, item: PromptItem, sampling: Sampling) -> RolloutGroup:
        prompt, clips = await self._prepare(item, {})
        return await self._generated(item, prompt, clips, sampling)

    async def _with_frames_kept(self, make: Callable[..., Awaitable[Computed]], *arguments: Any) -> Computed:  # noqa: ANN401
        """Return `make(*arguments)`, made again after clips whose frames were lost are forgotten."""

        def forget(attempt: RetryCallState) -> None:
            self._clips.forget(_lost_in(attempt))

        return await AsyncRetrying(**LOST_FRAMES, before_sleep=forget)(make, *arguments)

    async def _generated(
        self, item: PromptItem, prompt: Prompt, clips: tuple[ClipRef, ...], sampling: Sampling
    ) -> RolloutGroup:
        """Return the group, whose prompt the engine has seen exactly as it was built."""
        rollouts = await self._pool.generate(item, prompt, clips, sampling)
        for rollout in rollouts:
            try:
                check_contract(prompt, rollout.prompt_ids, self._prompts.decode)
            except PromptContractError as error:
                raise PromptContractError(f"{rollout.rollout_id}: {error}") from None
        return RolloutGroup(item=item, prompt=prompt, clips=clips, rollouts=rollouts)


class GroupProducer(Answerer):
    """A producer of scored groups. `start` returns at once; its future holds the group or the error."""

    def __init__(self, clips: Clips, prompts: PromptBuilder, pool: Pool, scorer: Scorer, config: RunConfig) -> None:
        super().__init__(clips, prompts, pool)
        self._scorer = scorer
        self._reward, self._shuffled_group_size = config.reward, config.rollout.shuffled_group_size

    def start(self, item: PromptItem, sampling: Sampling, on_outside: OnDirtyRow | None = None) -> Future[ScoredGroup]:
        """Start one group. Its future raises ClipError if a clip is unusable.

        on_outside: what to do with a truth whose times are outside the decoded clip, as `data.on_dirty_row`: the future
        raises TruthOutside, the truth is cut to the clip, or UserError ends the run. None scores it as it is, so that
        every published row counts in an evaluation.
        """
        made = self._with_frames_kept(self._make_once, item, sampling, on_outside)
        return asyncio.run_coroutine_threadsafe(made, self._events)

    def use_scorer(self, scorer: Scorer) -> None:
        """Use another scorer for the groups that start from now on."""
        self._scorer = scorer

    async def _make_once(self, item: PromptItem, sampling: Sampling, on_outside: OnDirtyRow | None) -> ScoredGroup:
        spans: dict[str, tuple[float, float]] = {}
        prompt, clips = await self._prepare(item, spans)
        if on_outside is not None:
            item = fitted(item, clips, on_outside)
        if not wants_contrast(item.task, self._reward):
            return await self._scored(item, prompt, clips, sampling, spans)
        # concurrently, so that the second group adds no waiting time
        scored, shuffled = await asyncio.gather(
            self._scored(item, prompt, clips, sampling, spans),
            self._with_shuffled_frames(item, prompt, clips, sampling),
        )
        return with_order_contrast(scored, shuffled, self._reward)

    async def _with_shuffled_frames(
        self, item: PromptItem, prompt: Prompt, clips: tuple[ClipRef, ...], sampling: Sampling
    ) -> ScoredGroup:
        """Return a second group of the same prompt with shuffled frames. Source: T-GRPO of Video-R1."""
        shuffled = tuple(await asyncio.gather(*(self._clips.shuffled(clip, sampling.seed) for clip in clips)))
        num_samples = self._shuffled_group_size if sampling.temperature else 1  # greedy responses are all equal
        second = replace(sampling, num_samples=num_samples, seed=sampling.seed + sampling.num_samples)
        return await self._scored(item, prompt, shuffled, second, {})

    async def _scored(
        self,
        item: PromptItem,
        prompt: Prompt,
        clips: tuple[ClipRef, ...],
        sampling: Sampling,
        spans: dict[str, tuple[float, float]],
    ) -> ScoredGroup:
        with _span(spans, "generate"):
            group = await self._generated(item, prompt, clips, sampling)
        return await self._scorer.score(group, spans)

    async def _stop(self) -> None:
        await super()._stop()
        await self._scorer.close()


def fitted(item: PromptItem, clips: Sequence[ClipRef], on_outside: OnDirtyRow) -> PromptItem:
    """Return the item with its truth cut to its decoded clip, where `on_outside` is "clip".

    Raises TruthOutside for a truth with times outside the clip that is not cut, UserError if `on_outside` is "stop".
    """
    if len(clips) != 1 or clips[0].info.kind != "video":
        return item
    (spec,), length_s = item.media, clips[0].info.duration_s
    if isinstance(spec, VideoSpec) and spec.window_s is not None:
        length_s = min(spec.window_s[1], length_s) - spec.window_s[0]
    fit = fit_truth(item.task, item.truth, length_s)
    if not fit.problem:
        return item
    message = f"{item.prompt_id}: {fit.problem} ({spec.uri})"
    if on_outside == "stop":
        raise UserError(f"{message}; fix the row, or set data.on_dirty_row to drop or clip.")
    if on_outside == "drop" or fit.truth is None:
        raise TruthOutside(message)
    log.warning("cut a truth to its clip: %s", message)
    return replace(item, truth=fit.truth)


def _lost_in(attempt: RetryCallState) -> tuple[str, ...]:
    error = attempt.outcome.exception() if attempt.outcome else None
    if not isinstance(error, FramesLost):
        raise TypeError(f"retried after {error!r}, which is not a FramesLost error.")
    log.warning("%s; decoding them again", error)
    return error.references


@contextmanager
def _span(spans: dict[str, tuple[float, float]], phase: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    spans[phase] = (start, time.monotonic())
