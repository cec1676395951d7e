"""From scored groups to what one update learns from."""

from __future__ import annotations

from collections import Counter

from rlsys.advantages import group_advantages
from rlsys.errors import UserError
from rlsys.types import ScoredGroup, TrainBatch


class ScoringFailed(UserError, RuntimeError):
    """No rollout of a whole step could be scored; the message has the commonest reason."""


def require_scores(groups: tuple[ScoredGroup, ...], batch: TrainBatch) -> None:
    """An update without one scored rollout would move the weights by momentum alone, and hide that scoring is down."""
    if batch.num_trained_tokens == 0:
        reasons = Counter(reason for scored in groups for reason in scored.reasons)
        reason, count = reasons.most_common(1)[0]
        raise ScoringFailed(
            "no group of this step has enough scored rollouts to learn from; "
            f"{count} times: {reason or 'no reason given'}. "
            "Nothing was lost: mend the reward servers and go on with --resume."
        )


def make_batch(groups: tuple[ScoredGroup, ...], min_valid: int) -> TrainBatch:
    """Advantages and loss masks of scored groups: what failed to be scored is outside mean, std and loss."""
    is_trained = tuple(g.is_valid if g.is_valid.sum() >= min_valid else g.is_valid & False for g in groups)
    return TrainBatch(
        objective="grpo",
        groups=tuple(scored.group for scored in groups),
        advantages=tuple(group_advantages(scored.rewards, scored.is_valid, min_valid) for scored in groups),
        is_trained=is_trained,
    )
