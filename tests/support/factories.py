"""Small records for tests of pure code."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlsys.algorithm.batch import group_advantages_of, make_batch
from rlsys.config.run import AlgorithmConfig, RewardConfig
from rlsys.types import Prompt, PromptItem, Rollout, RolloutGroup, ScoredGroup, TrainBatch


def make_item(prompt_id: str = "file:0", truth: object = (1.0, 2.0)) -> PromptItem:
    return PromptItem(
        prompt_id=prompt_id, task="temporal_grounding", question="When?", options=(), media=(), truth=truth
    )


def make_group(
    prompt_id: str = "file:0", num_rollouts: int = 4, weight_version: int = 0, response_tokens: int = 3
) -> RolloutGroup:
    ids = np.arange(5, dtype=np.int32)
    rollouts = tuple(
        Rollout(
            rollout_id=f"{prompt_id}/{index}",
            prompt_id=prompt_id,
            sample_index=index,
            prompt_ids=ids,
            response_ids=np.arange(response_tokens, dtype=np.int32),
            response_logprobs=np.full(response_tokens, -1.0, np.float32),
            text="<answer>1.0 to 2.0</answer>",
            finish_reason="stop",
            token_versions=np.full(response_tokens, weight_version, np.int32),
            generate_s=0.5,
        )
        for index in range(num_rollouts)
    )
    prompt = Prompt(engine_ids=ids, prompt_ids=ids, position_ids=np.stack([ids] * 3), next_position=5)
    return RolloutGroup(item=make_item(prompt_id), prompt=prompt, clips=(), rollouts=rollouts)


def make_scored(group: RolloutGroup, rewards: Sequence[float], is_valid: Sequence[bool] | None = None) -> ScoredGroup:
    """Return a scored group whose only score, `iou`, equals the reward."""
    array = np.array(rewards, np.float32)
    valid = np.ones(len(rewards), bool) if is_valid is None else np.array(is_valid)
    array = np.where(valid, array, np.nan).astype(np.float32)
    return ScoredGroup(
        group=group,
        score_names=("iou",),
        scores=array[:, None],
        rewards=array,
        is_valid=valid,
        reasons=tuple("" if ok else "judge timed out" for ok in valid),
        evidence=(None,) * len(rewards),
        spans={"decode": (0.0, 0.1), "prompt": (0.1, 0.2), "generate": (0.2, 1.0), "score": (1.0, 1.1)},
    )


def batch_of(groups: Sequence[ScoredGroup], reward: RewardConfig) -> TrainBatch:
    """Return the batch that GRPO with its defaults makes of scored groups."""
    return make_batch(tuple(groups), group_advantages_of(groups, AlgorithmConfig(), reward), reward)
