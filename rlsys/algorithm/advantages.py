"""Advantages of the rollouts of one group, with one function per method; `algorithm.advantage` selects it.

Every method excludes rollouts that could not be scored from mean, standard deviation and loss. All advantages of a
group are 0 when fewer than `min_valid` rollouts are scored or when all scored rewards are equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from rlsys.types import ScoredGroup


def advantages(
    scored: ScoredGroup,
    method: Literal["grpo", "dr_grpo", "rloo", "gdpo"],
    weights: Mapping[str, float],
    min_valid: int = 2,
) -> np.ndarray:
    """Return the advantages of one group by the named method, f32 [G].

    weights: score name -> its weight in the reward. Only "gdpo" reads them: it normalises scores, not rewards.
    For "gdpo" this is the normalisation within the group; `scaled_over_batch` is the one over the batch.
    """
    if method == "gdpo":
        by_score = np.array([weights[name] for name in scored.score_names])
        return decoupled_advantages(scored.scores, by_score, scored.is_valid, min_valid)
    functions = {
        "grpo": group_advantages,
        "dr_grpo": centred_advantages,
        "rloo": leave_one_out_advantages,
    }
    return functions[method](scored.rewards, scored.is_valid, min_valid)


def group_advantages(rewards: np.ndarray, is_valid: np.ndarray, min_valid: int = 2, eps: float = 1e-4) -> np.ndarray:
    """Return how much better each rollout did than its group, in standard deviations of the group.

    rewards: f32 [G].  is_valid: bool [G], False where scoring failed.
    Returns f32 [G]: 0 for invalid rollouts, and 0 throughout a group with fewer than `min_valid` valid rollouts or
    with equal rewards.
    Source: GRPO, arXiv:2402.03300, outcome supervision; VideoChat-R1 eq. 1.
    """
    found = np.zeros(rewards.shape, np.float32)
    valid = rewards[is_valid].astype(np.float64)
    if _has_no_signal(valid, min_valid):
        return found
    # ddof=1 as torch.std, which TRL, verl and OpenRLHF use; numpy's own default is ddof=0
    found[is_valid] = (valid - valid.mean()) / (valid.std(ddof=1) + eps)
    return found


def centred_advantages(rewards: np.ndarray, is_valid: np.ndarray, min_valid: int = 2) -> np.ndarray:
    """Return each reward minus the mean of its group, in units of the reward.

    Without division by the standard deviation, groups whose rewards differ little have little weight.
    Arguments and zero cases are those of `group_advantages`. Source: Dr. GRPO, arXiv:2503.20783.
    """
    found = np.zeros(rewards.shape, np.float32)
    valid = rewards[is_valid].astype(np.float64)
    if not _has_no_signal(valid, min_valid):
        found[is_valid] = valid - valid.mean()
    return found


def leave_one_out_advantages(rewards: np.ndarray, is_valid: np.ndarray, min_valid: int = 2) -> np.ndarray:
    """Return each reward minus the mean reward of the group's other rollouts.

    This baseline does not depend on the rollout itself. The result is `centred_advantages` times n / (n - 1) for n
    valid rollouts. Arguments and zero cases are those of `group_advantages`. Source: RLOO, arXiv:2402.14740.
    """
    found = np.zeros(rewards.shape, np.float32)
    valid = rewards[is_valid].astype(np.float64)
    if not _has_no_signal(valid, min_valid):
        found[is_valid] = valid - (valid.sum() - valid) / (valid.size - 1)
    return found


def decoupled_advantages(
    scores: np.ndarray, weights: np.ndarray, is_valid: np.ndarray, min_valid: int = 2, eps: float = 1e-4
) -> np.ndarray:
    """Return the weighted sum of scores that are each normalised within the group as in `group_advantages`.

    Rollouts with scores (0, 1) and (1, 0) can thus have different advantages although their sums are equal, and a
    score that varies little counts as much as one that varies a lot. A score that does not vary adds nothing.
    scores: f32 [G, K].  weights: f64 [K]; a score of weight 0 is skipped.  Returns f32 [G].
    Source: GDPO, arXiv:2601.05242, eq. 4 and 5.
    """
    total = np.zeros(len(scores), np.float32)
    for column in np.flatnonzero(weights):
        total += np.float32(weights[column]) * group_advantages(scores[:, column], is_valid, min_valid, eps)
    return total


def scaled_over_batch(
    by_group: Sequence[np.ndarray], is_trained: Sequence[np.ndarray], eps: float = 1e-4
) -> tuple[np.ndarray, ...]:
    """Return the batch's advantages divided by their standard deviation, so that more scores do not mean larger steps.

    by_group: advantages, f32 [G] each.  is_trained: bool [G] each; all other advantages are 0 and do not count.
    The paper also subtracts the batch's mean. That mean is 0 already, because each group's is, and subtracting its
    rounding error would give an advantage to groups with equal rewards.
    Source: GDPO, arXiv:2601.05242, eq. 6.
    """
    trained = np.concatenate([adv[mask] for adv, mask in zip(by_group, is_trained, strict=True)]).astype(np.float64)
    if trained.size < 2:
        return tuple(by_group)
    scale = np.float32(1.0 / (trained.std(ddof=1) + eps))
    return tuple(adv * scale for adv in by_group)


def _has_no_signal(valid: np.ndarray, min_valid: int) -> bool:
    return valid.size < max(2, min_valid) or np.ptp(valid) == 0
