"""Supervised steps through the same learner: a demonstration is a group of one response."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rlsys.config import TrainConfig
from rlsys.types import ClipRef, Prompt, PromptItem, Rollout, RolloutGroup, TrainBatch

log = logging.getLogger(__name__)


class Learner(Protocol):
    def update(self, batch: TrainBatch) -> Mapping[str, float]: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Demonstration:
    """A prompt and the response to imitate. response_ids: i32 [R], end token included."""

    item: PromptItem
    prompt: Prompt
    clips: tuple[ClipRef, ...]
    response_ids: np.ndarray


def fit(
    learner: Learner,
    demonstrations: Sequence[Demonstration],
    train: TrainConfig,
    seed: int,
    on_step: Callable[[int, Mapping[str, float]], None],
) -> None:
    """`train.num_steps` updates on batches of `train.prompts_per_step` demonstrations, reshuffled each epoch."""
    order = _epochs(len(demonstrations), seed)
    for step in range(1, train.num_steps + 1):
        batch = [demonstrations[next(order)] for _ in range(train.prompts_per_step)]
        on_step(step, learner.update(supervised_batch(batch)))


def supervised_batch(demonstrations: Sequence[Demonstration]) -> TrainBatch:
    """Demonstrations as a batch whose loss is the mean negative log-likelihood of response tokens."""
    return TrainBatch(
        objective="nll",
        groups=tuple(_as_group(demonstration) for demonstration in demonstrations),
        advantages=tuple(np.ones(1, np.float32) for _ in demonstrations),
        is_trained=tuple(np.ones(1, bool) for _ in demonstrations),
    )


def _as_group(demonstration: Demonstration) -> RolloutGroup:
    rollout = Rollout(
        rollout_id=f"{demonstration.item.prompt_id}/demonstration",
        prompt_id=demonstration.item.prompt_id,
        sample_index=0,
        prompt_ids=demonstration.prompt.prompt_ids,
        response_ids=demonstration.response_ids,
        response_logprobs=np.zeros(demonstration.response_ids.size, np.float32),
        text="",
        finish_reason="stop",
        weight_version=0,
        generate_s=0.0,
    )
    return RolloutGroup(
        item=demonstration.item, prompt=demonstration.prompt, clips=demonstration.clips, rollouts=(rollout,)
    )


def _epochs(num_items: int, seed: int) -> Iterator[int]:
    rng = np.random.default_rng([seed, 2])
    while True:
        yield from rng.permutation(num_items).tolist()
