"""Advantages of the rollouts of one group, one function a method. Which one: `algorithm.advantage`.

In all of them rollouts that could not be scored are outside mean, deviation and loss, and a group
with fewer than `min_valid` scored ones or without spread has only zeros.
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
    """f32 [G]. weights: score name -> its share of the reward; read by "gdpo" alone, which sees scores and no rewards.

    Of "gdpo" this is the part within the group; `scaled_over_batch` is the other.
    """
    if method == "gdpo":
        by_score = np.array([weights[name] for name in scored.score_names])
        return decoupled_advantages(scored.scores, by_score, scored.is_valid, min_valid)
    of_rewards = {
        "grpo": group_advantages,
        "dr_grpo": centred_advantages,
        "rloo": leave_one_out_advantages,
    }
    return of_rewards[method](scored.rewards, scored.is_valid, min_valid)


def group_advantages(rewards: np.ndarray, is_valid: np.ndarray, min_valid: int = 2, eps: float = 1e-4) -> np.ndarray:
    """How much better each rollout did than its group, in group standard deviations.

    rewards: f32 [G].  is_valid: bool [G], False where scoring failed.
    Returns f32 [G]; 0 for invalid rollouts, for a group with fewer than `min_valid` valid
    ones and for a group without spread.
    Source: GRPO, arXiv:2402.03300, outcome supervision; VideoChat-R1 eq. 1.
    """
    found = np.zeros(rewards.shape, np.float32)
    valid = rewards[is_valid].astype(np.float64)
    if _teaches_nothing(valid, min_valid):
        return found
    # ddof=1 as torch.std, which TRL, verl and OpenRLHF use; numpy's own default is ddof=0
    found[is_valid] = (valid - valid.mean()) / (valid.std(ddof=1) + eps)
    return found


def centred_advantages(rewards: np.ndarray, is_valid: np.ndarray, min_valid: int = 2) -> np.ndarray:
    """Rewards minus the group's mean, in units of the reward: groups with little spread keep little weight.

    Arguments and zeros as in `group_advantages`. Source: Dr. GRPO, arXiv:2503.20783.
    """
    found = np.zeros(rewards.shape, np.float32)
    valid = rewards[is_valid].astype(np.float64)
    if not _teaches_nothing(valid, min_valid):
        found[is_valid] = valid - valid.mean()
    return found


def leave_one_out_advantages(rewards: np.ndarray, is_valid: np.ndarray, min_valid: int = 2) -> np.ndarray:
    """Each reward minus the mean of the others', a baseline that does not depend on the rollout itself.

    It is `centred_advantages` times n / (n - 1) for n valid rollouts. Arguments and zeros as in
    `group_advantages`. Source: RLOO, arXiv:2402.14740.
    """
    found = np.zeros(rewards.shape, np.float32)
    valid = rewards[is_valid].astype(np.float64)
    if not _teaches_nothing(valid, min_valid):
        found[is_valid] = valid - (valid.sum() - valid) / (valid.size - 1)
    return found


def decoupled_advantages(
    scores: np.ndarray, weights: np.ndarray, is_valid: np.ndarray, min_valid: int = 2, eps: float = 1e-4
) -> np.ndarray:
    """Each score normalised in the group as `group_advantages` does, then the weighted sum.

    So (0, 1) and (1, 0) differ from each other where their sums do not, and a score with little spread
    counts as much as one with much. A score without spread adds nothing.
    scores: f32 [G, K].  weights: f64 [K]; a score of weight 0 is left out.  Returns f32 [G].
    Source: GDPO, arXiv:2601.05242, eq. 4 and 5.
    """
    total = np.zeros(len(scores), np.float32)
    for column in np.flatnonzero(weights):
        total += np.float32(weights[column]) * group_advantages(scores[:, column], is_valid, min_valid, eps)
    return total


def scaled_over_batch(
    by_group: Sequence[np.ndarray], is_trained: Sequence[np.ndarray], eps: float = 1e-4
) -> tuple[np.ndarray, ...]:
    """The batch's advantages over their standard deviation, so that more scores do not mean larger steps.

    by_group: advantages, f32 [G] each.  is_trained: bool [G] each; the others are 0 and stay out of it.
    The paper subtracts the batch's mean too. It is 0 already, group by group, and subtracting what rounding
    leaves of it would give groups without spread an advantage.
    Source: GDPO, arXiv:2601.05242, eq. 6.
    """
    trained = np.concatenate([adv[mask] for adv, mask in zip(by_group, is_trained, strict=True)]).astype(np.float64)
    if trained.size < 2:
        return tuple(by_group)
    scale = np.float32(1.0 / (trained.std(ddof=1) + eps))
    return tuple(adv * scale for adv in by_group)


def _teaches_nothing(valid: np.ndarray, min_valid: int) -> bool:
    return valid.size < max(2, min_valid) or np.ptp(valid) == 0
