"""Advantages of the rollouts of one group."""

import numpy as np


def group_advantages(rewards: np.ndarray, is_valid: np.ndarray, min_valid: int = 2, eps: float = 1e-4) -> np.ndarray:
    """How much better each rollout did than its group, in group standard deviations.

    rewards: f32 [G].  is_valid: bool [G], False where scoring failed.
    Returns f32 [G]; 0 for invalid rollouts, for a group with fewer than `min_valid` valid
    ones and for a group without spread.
    Source: GRPO, arXiv:2402.03300, outcome supervision; VideoChat-R1 eq. 1.
    """
    advantages = np.zeros(rewards.shape, np.float32)
    valid = rewards[is_valid].astype(np.float64)
    if valid.size < max(2, min_valid) or np.ptp(valid) == 0:
        return advantages
    # ddof=1 as torch.std, which TRL, verl and OpenRLHF use; numpy's own default is ddof=0
    advantages[is_valid] = (valid - valid.mean()) / (valid.std(ddof=1) + eps)
    return advantages
