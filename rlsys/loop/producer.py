"""Production of scored groups from prompt items: decode, build the prompt, generate, check, score.

Each group is one coroutine on a background event loop, so groups are independent: a group is scored as soon as its
last rollout ends, while others are still being generated.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Literal, Protocol

from tenacity import AsyncRetrying, RetryCallState

from rlsys.algorithm.order_contrast import wants_contrast, with_order_contrast
from rlsys.algorithm.trajectories import trajectories
from rlsys.config.run import RunConfig
from rlsys.data.video.errors import ClipError
from rlsys.errors import TruthOutside, UserError
from rlsys.loop.preparer import LOST_FRAMES, Clips, Computed, Preparer, lost_in, span
from rlsys.models.prompts import PromptBuilder, PromptContractError, check_contract
from rlsys.perception.choose import first_item, next_turn_of
from rlsys.perception.media import WholeClip, whole_of
from rlsys.perception.turns import Show, item_of, shown_after
from rlsys.tasks.truth_fit import fit_truth, past_the_file
from rlsys.types import (
    ClipRef,
    LaterRound,
    Prompt,
    PromptItem,
    Rollout,
    RolloutGroup,
    Sampling,
    ScoredGroup,
    VideoSpec,
)

log = logging.getLogger(__name__)

OnDirtyRow = Literal["drop", "clip", "stop"]


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


def round_seed(sampling: Sampling, sample_index: int, number: int) -> int:
    """Return the 48-bit seed of a trajectory's response in a later round, a function of the group's seed."""
    return sampling_seed(sampling.seed, sample_index, f"round {number}")


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
            self._clips.forget(lost_in(attempt))

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
        self._perception = config.perception
        self._next_turn = next_turn_of(config.perception, config.answers.reading)

    def start(self, item: PromptItem, sampling: Sampling, on_outside: OnDirtyRow | None = None) -> Future[ScoredGroup]:
        """Start one group, with all its rounds. Its future raises ClipError if a clip is unusable.

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
        prompt, clips = await self._prepare(first_item(item, self._perception), spans)
        if on_outside is not None:
            item = fitted(item, clips, on_outside)
        if self._perception.rounds > 1:
            return await self._in_rounds(item, prompt, clips, sampling, spans)
        if not wants_contrast(item.task, self._reward):
            return await self._scored(item, prompt, clips, sampling, spans)
        # concurrently, so that the second group adds no waiting time
        scored, shuffled = await asyncio.gather(
            self._scored(item, prompt, clips, sampling, spans),
            self._with_shuffled_frames(item, prompt, clips, sampling),
        )
        return with_order_contrast(scored, shuffled, self._reward)

    async def _in_rounds(
        self,
        item: PromptItem,
        prompt: Prompt,
        clips: tuple[ClipRef, ...],
        sampling: Sampling,
        spans: dict[str, tuple[float, float]],
    ) -> ScoredGroup:
        """Return the group with the later rounds of each response, every one sampled from a prompt of its own.

        The rounds of a trajectory follow each other without waiting for other trajectories, or for scores.
        """
        whole = whole_of(item.media, [clip.info for clip in clips])
        with span(spans, "generate"):
            group = await self._generated(first_item(item, self._perception), prompt, clips, sampling)
            scoring = asyncio.create_task(self._scorer.score(group, {}))
            try:
                later = await asyncio.gather(*(self._followed(item, whole, one, sampling) for one in group.rollouts))
                first = await scoring
            finally:
                scoring.cancel()
        scored = trajectories(first, [one for of_one in later for one in of_one])
        return replace(scored, spans={**first.spans, **spans})

    async def _followed(
        self, item: PromptItem, whole: WholeClip | None, first: Rollout, sampling: Sampling
    ) -> list[LaterRound]:
        """Return the later rounds of a response. One that cannot be shown ends them: the answer before stands."""
        responses, looks, scoring = [(first.text, first.confidence)], [], []
        try:
            while isinstance(shown := shown_after(item, whole, responses, self._next_turn), Show):
                number = len(responses) + 1
                asked = item_of(item, shown)
                try:
                    prompt, clips = await self._prepare(asked, {})
                except ClipError as error:
                    log.warning("%s: round %d could not be shown: %s", first.rollout_id, number, error)
                    break
                seed = round_seed(sampling, first.sample_index, number)
                group = await self._generated(asked, prompt, clips, replace(sampling, num_samples=1, seed=seed))
                (rollout,) = group.rollouts
                responses.append((rollout.text, rollout.confidence))
                looks.append((None if shown.clue is None else shown.clue.to_json(), shown.reason))
                scoring.append(asyncio.create_task(self._scorer.score(group, {})))
            scores = await asyncio.gather(*scoring)
        finally:
            for task in scoring:
                task.cancel()
        return [
            LaterRound(sample_index=first.sample_index, number=number, scored=scored, clue=clue, reason=reason)
            for number, (scored, (clue, reason)) in enumerate(zip(scores, looks, strict=True), start=2)
        ]

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
        with span(spans, "generate"):
            group = await self._generated(item, prompt, clips, sampling)
        return await self._scorer.score(group, spans)

    async def _stop(self) -> None:
        await super()._stop()
        await self._scorer.close()


def fitted(item: PromptItem, clips: Sequence[ClipRef], on_outside: OnDirtyRow) -> PromptItem:
    """Return the item with its truth cut to its decoded clip, where `on_outside` is "clip".

    Raises TruthOutside for a truth with times outside the clip that is not cut, and for a part that goes past the end
    of its file; UserError if `on_outside` is "stop".
    """
    if len(clips) != 1 or clips[0].info.kind != "video":
        return item
    (spec,), length_s = item.media, clips[0].info.duration_s
    problems = []
    if isinstance(spec, VideoSpec) and spec.window_s is not None:
        problems.append(past_the_file(spec.window_s, length_s))
        length_s = min(spec.window_s[1], length_s) - spec.window_s[0]
    fit = fit_truth(item.task, item.truth, length_s)
    problems.append(fit.problem)
    if not any(problems):
        return item
    message = f"{item.prompt_id}: {'; '.join(filter(None, problems))} ({spec.uri})"
    if on_outside == "stop":
        raise UserError(f"{message}; fix the row, or set data.on_dirty_row to drop or clip.")
    if on_outside == "drop" or fit.truth is None:
        raise TruthOutside(message)
    log.warning("cut to the file: %s", message)
    return replace(item, truth=fit.truth)
