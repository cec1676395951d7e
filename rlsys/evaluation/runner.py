"""Evaluation over the same path as training: decode once, sample, score; nothing learns."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import islice
from typing import Protocol

from rlsys.config.run import RunConfig
from rlsys.errors import RowUnusable
from rlsys.evaluation.metrics import answer_metrics, by_task
from rlsys.loop.collect import awaited, why_left_out
from rlsys.loop.producer import sampling_seed
from rlsys.loop.staleness import evaluated_at_once
from rlsys.types import PromptItem, Sampling, ScoredGroup


class GroupSource(Protocol):
    def start(self, item: PromptItem, sampling: Sampling) -> Future[ScoredGroup]: ...


def evaluate(
    source: GroupSource, items: Sequence[PromptItem], config: RunConfig, check: Callable[[], None] = lambda: None
) -> dict[str, dict[str, float]]:
    """Metrics of the published policy: {"greedy": …, "sampled": …} (temperature 1, every sample counted).

    With rows of several tasks also {"greedy/<task>": …, "sampled/<task>": …} for each.
    Rows that cannot be used are left out as in training (`data.on_bad_clip`), and counted in `rows_left_out`; when
    none is left, the last one's error goes through.
    Seeds depend on the run's seed and the row, so two evaluations of equal weights agree.
    check: asked while a group is waited for; raises where that is in vain.
    """
    answers = {
        "greedy": _answer(source, items, config, check, temperature=0.0, num_samples=1),
        "sampled": _answer(source, items, config, check, temperature=1.0, num_samples=config.evaluation.num_samples),
    }
    results = {
        decoding: {**answer_metrics(groups), "rows_left_out": float(len(items) - len(groups))}
        for decoding, groups in answers.items()
    }
    for decoding, groups in answers.items():
        tasks = by_task(groups)
        if len(tasks) > 1:
            results |= {f"{decoding}/{task}": answer_metrics(of_task) for task, of_task in tasks.items()}
    return results


def _answer(
    source: GroupSource,
    items: Sequence[PromptItem],
    config: RunConfig,
    check: Callable[[], None],
    *,
    temperature: float,
    num_samples: int,
) -> list[ScoredGroup]:
    def start(row: int, item: PromptItem) -> Future[ScoredGroup]:
        # seeds far from the draws of training, which count up from 0
        seed = sampling_seed(config.seed, -1 - row, item.prompt_id)
        return source.start(
            item,
            Sampling(
                num_samples=num_samples,
                temperature=temperature,
                top_p=1.0,
                max_tokens=config.rollout.max_tokens,
                seed=seed,
            ),
        )

    rows = iter(enumerate(items))
    under_way = deque(start(*one) for one in islice(rows, evaluated_at_once(config, num_samples)))
    answered: list[ScoredGroup] = []
    try:
        while under_way:
            try:
                answered.append(_without_clips(awaited(under_way[0], check)))
            except RowUnusable as error:
                why_left_out(error, config)
                if not answered and len(under_way) == 1:
                    raise
            under_way.popleft()
            under_way.extend(start(*one) for one in islice(rows, 1))
    finally:
        for future in under_way:
            future.cancel()
    return answered


def _without_clips(scored: ScoredGroup) -> ScoredGroup:
    """Whoever holds a clip keeps its frames in memory, and metrics need none."""
    return replace(scored, group=replace(scored.group, clips=()))


def with_shuffled_videos(items: Sequence[PromptItem]) -> list[PromptItem]:
    """The same questions and truths, each shown the video of another question.

    A policy that reads the video loses its skill here; one that only knows the prior does not.
    Videos are shifted by half the list, past the neighbouring rows that share a video.
    """
    shift = len(items) // 2
    media = [item.media for item in items]
    return [
        replace(item, prompt_id=f"{item.prompt_id}~shuffled", media=media[(row + shift) % len(items)])
        for row, item in enumerate(items)
    ]
