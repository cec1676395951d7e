"""Evaluation of a policy by the same path as training: decode, generate and score, without an update."""

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
from rlsys.loop.collect import awaited, skip_reason
from rlsys.loop.producer import sampling_seed
from rlsys.loop.staleness import evaluated_at_once
from rlsys.types import PromptItem, Sampling, ScoredGroup


class GroupSource(Protocol):
    """A source of groups that are sampled and scored."""

    def start(self, item: PromptItem, sampling: Sampling) -> Future[ScoredGroup]:
        """Start sampling and scoring responses to `item`. The future raises what `GroupProducer.start` raises."""


def evaluate(
    source: GroupSource, items: Sequence[PromptItem], config: RunConfig, check: Callable[[], None] = lambda: None
) -> dict[str, dict[str, float]]:
    """Return the held-out metrics of the published policy: {"greedy": …, "sampled": …}.

    "sampled" is at temperature 1 and averages over all samples. If `items` has several tasks, each task also has
    {"greedy/<task>": …, "sampled/<task>": …}.
    Unusable rows are skipped as in training (`data.on_bad_clip`) and counted in `rows_left_out`; if every row is
    unusable, the last one's error is raised.
    Seeds depend on the run's seed and the row, so two evaluations of equal weights agree.
    check: called while waiting for a group; raises an error if no group can arrive any more.
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
        # negative, unlike the prompt indices of training, so that an evaluation never repeats a seed of training
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
    in_flight = deque(start(*one) for one in islice(rows, evaluated_at_once(config, num_samples)))
    answered: list[ScoredGroup] = []
    try:
        while in_flight:
            try:
                answered.append(_without_clips(awaited(in_flight[0], check)))
            except RowUnusable as error:
                skip_reason(error, config)
                if not answered and len(in_flight) == 1:
                    raise
            in_flight.popleft()
            in_flight.extend(start(*one) for one in islice(rows, 1))
    finally:
        for future in in_flight:
            future.cancel()
    return answered


def _without_clips(scored: ScoredGroup) -> ScoredGroup:
    """Return the group without its clips, which would keep frames in memory that metrics do not need."""
    return replace(scored, group=replace(scored.group, clips=()))


def with_shuffled_videos(items: Sequence[PromptItem]) -> list[PromptItem]:
    """Return the same questions and true answers, each with the video of another question.

    A policy that uses the video does worse on these items; one that only knows the prior does not.
    Videos are shifted by half the list, past the neighbouring rows that share a video.
    """
    shift = len(items) // 2
    media = [item.media for item in items]
    return [
        replace(item, prompt_id=f"{item.prompt_id}~shuffled", media=media[(row + shift) % len(items)])
        for row, item in enumerate(items)
    ]
