"""Metrics of held-out answers, computed from the reward servers' scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlsys.evaluation.statistics.constant_interval import best_interval
from rlsys.types import PromptItem, ScoredGroup

RECALL_THRESHOLDS = (0.3, 0.5, 0.7)


def iou_metrics(ious: np.ndarray) -> dict[str, float]:
    """Return mIoU and R@m, the share of answers with an IoU of at least m, as reported for Charades-STA.

    ious: f64 [N] in [0, 1]; an answer that could not be parsed counts as 0.
    Raises ValueError when N is 0.
    """
    if ious.size == 0:
        raise ValueError("no scored answers: mIoU and R@m need at least one; check that the reward servers score.")
    recalls = {f"r_at_{threshold}": float(np.mean(ious >= threshold)) for threshold in RECALL_THRESHOLDS}
    return {"miou": float(ious.mean()), **recalls}


def answer_metrics(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Return held-out metrics over all scored responses of `groups`: the mean reward and the mean of each score.

    `iou` becomes mIoU and R@m, see `iou_metrics`. `num_responses` counts the scored responses; `failed_frac` is the
    share that could not be scored and is excluded. When no response was scored, these two are the only metrics.
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
    """Return the groups of each task, with tasks sorted by name."""
    tasks = sorted({scored.group.item.task for scored in groups})
    return {task: [scored for scored in groups if scored.group.item.task == task] for task in tasks}


def best_constant_interval(items: Sequence[PromptItem], step_s: float = 0.25) -> tuple[tuple[float, float], np.ndarray]:
    """Return the interval that has the highest mIoU on `items` when it is the answer to all of them.

    It is chosen with the true answers known, so it is the strongest baseline that never looks at a video.
    Returns ((start_s, end_s), f64 [N] IoU per item). Items are temporal grounding: truth is [start_s, end_s].
    """
    truths = np.array([item.truth for item in items], dtype=np.float64)
    start_s, end_s, ious = best_interval(truths[:, 0], truths[:, 1], step_s)
    return (start_s, end_s), ious
