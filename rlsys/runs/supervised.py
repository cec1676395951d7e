"""Demonstrations as batches of the learner: those of one prompt are a group, packed behind it together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlsys.types import ClipRef, Prompt, PromptItem, Rollout, RolloutGroup, TrainBatch


@dataclass(frozen=True, kw_only=True, eq=False)
class Demonstration:
    """A row and the response to imitate. response_ids: i32 [R], end token included.  where: its name in messages."""

    item: PromptItem
    response_ids: np.ndarray
    where: str


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedDemonstration:
    """A demonstration with its prompt made and its clips decoded."""

    demonstration: Demonstration
    prompt: Prompt
    clips: tuple[ClipRef, ...]


def supervised_batch(prepared: Sequence[PreparedDemonstration]) -> TrainBatch:
    """Demonstrations as a batch whose loss is the mean negative log-likelihood of response tokens.

    Groups are in the order in which their prompts first appear.
    """
    by_prompt: dict[str, list[PreparedDemonstration]] = {}
    for one in prepared:
        by_prompt.setdefault(one.demonstration.item.prompt_id, []).append(one)
    groups = tuple(_as_group(same) for same in by_prompt.values())
    return TrainBatch(
        objective="nll",
        groups=groups,
        advantages=tuple(np.ones(len(group.rollouts), np.float32) for group in groups),
        is_trained=tuple(np.ones(len(group.rollouts), bool) for group in groups),
    )


def _as_group(same_prompt: Sequence[PreparedDemonstration]) -> RolloutGroup:
    first = same_prompt[0]
    item = first.demonstration.item
    rollouts = tuple(
        Rollout(
            rollout_id=f"{item.prompt_id}/demonstration/{index}",
            prompt_id=item.prompt_id,
            sample_index=index,
            prompt_ids=first.prompt.prompt_ids,
            response_ids=one.demonstration.response_ids,
            response_logprobs=np.zeros(one.demonstration.response_ids.size, np.float32),
            text="",
            finish_reason="stop",
            token_versions=np.zeros(one.demonstration.response_ids.size, np.int32),
            generate_s=0.0,
        )
        for index, one in enumerate(same_prompt)
    )
    return RolloutGroup(item=item, prompt=first.prompt, clips=first.clips, rollouts=rollouts)
