"""From scored groups to what one update learns from."""

from __future__ import annotations

from collections import Counter

from rlsys.algorithm.advantages import advantages, scaled_over_batch
from rlsys.config.run import AlgorithmConfig, RewardConfig
from rlsys.errors import UserError
from rlsys.tasks.table import score_weights
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


def make_batch(groups: tuple[ScoredGroup, ...], algorithm: AlgorithmConfig, reward: RewardConfig) -> TrainBatch:
    """Advantages and loss masks of scored groups: what failed to be scored is outside mean, std and loss."""
    is_trained = tuple(g.is_valid if g.is_valid.sum() >= reward.min_valid else g.is_valid & False for g in groups)
    by_group = tuple(
        advantages(scored, algorithm.advantage, score_weights(scored.group.item.task, reward), reward.min_valid)
        for scored in groups
    )
    return TrainBatch(
        objective="grpo",
        groups=tuple(scored.group for scored in groups),
        advantages=scaled_over_batch(by_group, is_trained) if algorithm.advantage == "gdpo" else by_group,
        is_trained=is_trained,
    )


def has_spread(scored: ScoredGroup, algorithm: AlgorithmConfig, reward: RewardConfig) -> bool:
    """Whether the scorers tell the group's rollouts apart; without that all advantages are 0.

    Penalties that shape rewards have no say in it: nearly every group differs in length or in KL.
    """
    weights = score_weights(scored.group.item.task, reward)
    return bool(advantages(scored, algorithm.advantage, weights, reward.min_valid).any())
