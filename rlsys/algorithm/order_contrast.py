"""A bonus for answers that depend on the order of the frames: T-GRPO, over two groups of responses to one prompt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rlsys.config.run import RewardConfig
from rlsys.tasks.table import CORRECT_ABOVE, score_weights, task_named
from rlsys.types import ScoredGroup

NAME = "order_contrast"


def wants_contrast(task: str, reward: RewardConfig) -> bool:
    """Return whether groups of `task` need a second group with shuffled frames."""
    return NAME in score_weights(task, reward)


def with_order_contrast(scored: ScoredGroup, shuffled: ScoredGroup, reward: RewardConfig) -> ScoredGroup:
    """Return `scored` with the score `order_contrast` added, and its weighted value added to the rewards.

    shuffled: the group of the same prompt whose responses saw the frames in shuffled order. When none of its
    responses could be scored, the contrast is missing, and so is every reward that would contain it.
    """
    task = task_named(scored.group.item.task)
    bonus = order_contrast(_column(scored, task.correctness), _column(shuffled, task.correctness))
    is_missing = np.isnan(bonus) & scored.is_valid
    reason = f"infra: no response with shuffled frames could be scored; first reason: {shuffled.reasons[0]}"
    weight = np.float32(score_weights(task.name, reward)[NAME])
    return replace(
        scored,
        score_names=(*scored.score_names, NAME),
        scores=np.column_stack([scored.scores, bonus]).astype(np.float32),
        rewards=scored.rewards + weight * bonus,
        is_valid=scored.is_valid & ~is_missing,
        reasons=tuple(reason if missing else own for own, missing in zip(scored.reasons, is_missing, strict=True)),
    )


def _column(scored: ScoredGroup, name: str) -> np.ndarray:
    return scored.scores[:, scored.score_names.index(name)]


def order_contrast(correct: np.ndarray, shuffled: np.ndarray, min_ratio: float = 1.0) -> np.ndarray:
    """Return 1 for each correct response of a group that does at least as well as the shuffled group, else 0.

    correct: f32 [G], the task's `correctness` score of the responses that saw the frames in order.
    shuffled: f32 [S], the same score of the responses that saw them shuffled.  NaN marks a failed score.
    A response is correct if its score is above `CORRECT_ABOVE`. The group does well enough when its share of correct
    responses is at least `min_ratio` times that of the shuffled group. Returns f32 [G]: NaN where `correct` is NaN,
    and all NaN when either group has no score at all, because a missing contrast is not a contrast of 0.
    Source: T-GRPO of Video-R1, arXiv:2503.21776, eq. 2 and 3, whose bonus is 0.3 (the weight); its code compares
    with 0.8 times the shuffled group's mean accuracy.
    """
    is_scored = ~np.isnan(correct)
    bonus = np.full(correct.shape, np.nan, np.float32)
    is_shuffled_scored = ~np.isnan(shuffled)
    if not is_scored.any() or not is_shuffled_scored.any():
        return bonus
    is_correct = correct[is_scored] > CORRECT_ABOVE
    share_shuffled = float(np.mean(shuffled[is_shuffled_scored] > CORRECT_ABOVE))
    does_well = float(np.mean(is_correct)) >= min_ratio * share_shuffled
    bonus[is_scored] = is_correct & does_well
    return bonus
