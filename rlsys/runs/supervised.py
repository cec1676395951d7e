"""Demonstrations as groups of the main loop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlsys.types import ClipRef, Prompt, PromptItem, Rollout, RolloutGroup, ScoredGroup


@dataclass(frozen=True, kw_only=True, eq=False)
class Demonstration:
    """A row and the response to imitate.

    response_ids: i32 [R], end token included.  where: location for messages.
    is_later: whether the row is as a later round asks it.
    """

    item: PromptItem
    response_ids: np.ndarray
    where: str
    is_later: bool = False


def demonstration_group(one: Demonstration, prompt: Prompt, clips: tuple[ClipRef, ...]) -> ScoredGroup:
    """Return a demonstration as a group of one response that was not sampled and is not scored."""
    size = one.response_ids.size
    rollout = Rollout(
        rollout_id=f"{one.item.prompt_id}/demonstration",
        prompt_id=one.item.prompt_id,
        sample_index=0,
        prompt_ids=prompt.prompt_ids,
        response_ids=one.response_ids,
        response_logprobs=np.zeros(size, np.float32),
        text="",
        finish_reason="stop",
        token_versions=np.zeros(size, np.int32),
        generate_s=0.0,
    )
    return ScoredGroup(
        group=RolloutGroup(item=one.item, prompt=prompt, clips=clips, rollouts=(rollout,)),
        score_names=(),
        scores=np.zeros((1, 0), np.float32),
        rewards=np.zeros(1, np.float32),
        is_valid=np.ones(1, bool),
        reasons=("",),
        evidence=(None,),
        spans={},
    )
