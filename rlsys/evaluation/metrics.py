"""Metrics of held-out answers, from the scores that the reward servers gave them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlsys.types import PromptItem, ScoredGroup

RECALL_THRESHOLDS = (0.3, 0.5, 0.7)


def iou_metrics(ious: np.ndarray) -> dict[str, float]:
    """mIoU and R@m (share of answers with IoU of m or more), as Charades-STA reports them.

    ious: f64 [N] in [0, 1]; an answer that could not be parsed counts as 0.
    Raises ValueError when N is 0.
    """
    if ious.size == 0:
        raise ValueError("no scored answers: nothing to average.")
    recalls = {f"r_at_{threshold}": float(np.mean(ious >= threshold)) for threshold in RECALL_THRESHOLDS}
    return {"miou": float(ious.mean()), **recalls}


def answer_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Held-out metrics over all valid responses of `groups`: reward, format, and what the task has.

    `num_responses` is their number and `failed_frac` the share that could not be scored and is left out; when that
    is all of them there is nothing else.
    """
    is_valid = np.concatenate([scored.is_valid for scored in groups])
    if not is_valid.any():
        return {"num_responses": 0.0, "failed_frac": 1.0}
    rewards = np.concatenate([scored.rewards for scored in groups])[is_valid]
    metrics = {
        "reward": float(rewards.mean()),
        "num_responses": float(is_valid.sum()),
        "failed_frac": float(1 - is_valid.mean()),
    }
    for name in sorted({name for scored in groups for name in scored.score_names}):
        column = [
            scored.scores[scored.is_valid, scored.score_names.index(name)]
            for scored in groups
            if name in scored.score_names
        ]
        values = np.concatenate(column).astype(np.float64)
        metrics.update(iou_metrics(values) if name == "iou" else {name: float(values.mean())})
    return metrics


def by_task(groups: Sequence[ScoredGroup]) -> dict[str, list[ScoredGroup]]:
    """The groups of each task, tasks in order of their names."""
    tasks = sorted({scored.group.item.task for scored in groups})
    return {task: [scored for scored in groups if scored.group.item.task == task] for task in tasks}


def best_constant_interval(items: Sequence[PromptItem], step_s: float = 0.25) -> tuple[tuple[float, float], np.ndarray]:
    """The one interval that, given as every answer, has the highest mIoU on these very items.

    Chosen with the answers in view, so it is the strongest control that never looks at a video.
    Returns ((start_s, end_s), f64 [N] IoU per item). Items are temporal grounding: truth is [s, e].
    """
    truths = np.array([item.truth for item in items], dtype=np.float64)
    grid = np.arange(0.0, truths[:, 1].max() + step_s, step_s)
    best, best_ious = (0.0, step_s), np.zeros(len(truths))
    for start_s in grid:
        for end_s in grid[grid > start_s]:
            shared = np.minimum(end_s, truths[:, 1]) - np.maximum(start_s, truths[:, 0])
            covered = np.maximum(end_s, truths[:, 1]) - np.minimum(start_s, truths[:, 0])
            ious = np.clip(shared, 0, None) / covered
            if ious.mean() > best_ious.mean():
                best, best_ious = (float(start_s), float(end_s)), ious
    return best, best_ious
