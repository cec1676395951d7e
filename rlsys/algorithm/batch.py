"""Batches for the learner, made from scored groups or from demonstrations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rlsys.algorithm.advantages import advantages, scaled_over_batch
from rlsys.algorithm.trajectories import spread_over_rounds
from rlsys.config.run import AlgorithmConfig, RewardConfig
from rlsys.errors import UserError
from rlsys.tasks.table import score_weights
from rlsys.types import RolloutGroup, ScoredGroup, TrainBatch


class ScoringFailed(UserError, RuntimeError):
    """An error for a step of which no rollout could be scored; the message gives the most common reason."""


def require_scores(groups: tuple[ScoredGroup, ...], batch: TrainBatch) -> None:
    """Raise ScoringFailed for a batch without a single scored rollout.

    Such an update would move the weights by momentum alone and hide that scoring is down.
    """
    if batch.num_trained_tokens == 0:
        reasons = Counter(reason for scored in groups for reason in scored.reasons)
        reason, count = reasons.most_common(1)[0]
        raise ScoringFailed(
            "no group of this step has enough scored rollouts to learn from; "
            f"{count} times: {reason or 'no reason given'}. "
            "Nothing was lost: fix the reward servers and continue with --resume."
        )


def group_advantages_of(
    groups: Sequence[ScoredGroup], algorithm: AlgorithmConfig, reward: RewardConfig
) -> tuple[np.ndarray, ...]:
    """Return the advantages of each group's rollouts, f32 [G] per group; 0 for rollouts that could not be scored."""
    by_group = tuple(
        advantages(scored, algorithm.advantage, score_weights(scored.group.item.task, reward), reward.min_valid)
        for scored in groups
    )
    if algorithm.advantage == "gdpo":
        return scaled_over_batch(by_group, tuple(_is_trained(scored, reward) for scored in groups))
    return by_group


def make_batch(groups: tuple[ScoredGroup, ...], by_group: tuple[np.ndarray, ...], reward: RewardConfig) -> TrainBatch:
    """Return the batch of scored groups; rollouts that could not be scored are excluded from the loss.

    by_group: advantages, f32 [G] for each group of each round: for those of `scored.groups`, one after the other.
    A trajectory is trained on in all its rounds, or in none if its last one could not be scored.
    """
    return TrainBatch(
        objective="grpo",
        groups=tuple(group for scored in groups for group in scored.groups),
        advantages=by_group,
        is_trained=tuple(mask for scored in groups for mask in spread_over_rounds(scored, _is_trained(scored, reward))),
    )


def imitation_batch(groups: Sequence[RolloutGroup], by_group: Sequence[np.ndarray]) -> TrainBatch:
    """Return demonstrations as a batch whose loss is the mean negative log-likelihood of response tokens.

    Demonstrations of one prompt become one group, so that they share the prompt when packed. Groups are in the order
    in which their prompts first appear.
    by_group: weights of the responses, f32 [G] each.
    """
    merged: dict[str, tuple[RolloutGroup, list[np.ndarray]]] = {}
    for group, weights in zip(groups, by_group, strict=True):
        known = merged.get(group.item.prompt_id)
        if known is None:
            merged[group.item.prompt_id] = (group, [weights])
        else:
            first = len(known[0].rollouts)
            more = (replace(one, sample_index=first + index) for index, one in enumerate(group.rollouts))
            whole = replace(known[0], rollouts=(*known[0].rollouts, *more))
            merged[group.item.prompt_id] = (whole, [*known[1], weights])
    return TrainBatch(
        objective="nll",
        groups=tuple(group for group, _ in merged.values()),
        advantages=tuple(np.concatenate(weights) for _, weights in merged.values()),
        is_trained=tuple(np.ones(len(group.rollouts), bool) for group, _ in merged.values()),
    )


def has_spread(scored: ScoredGroup, algorithm: AlgorithmConfig, reward: RewardConfig) -> bool:
    """Return whether the scorers give the group's rollouts different rewards; if not, all advantages are 0.

    Penalties of reward shaping do not count, because nearly every group differs in length or in KL.
    """
    if algorithm.advantage == "gdpo":  # normalised scores can cancel each other out
        weights = score_weights(scored.group.item.task, reward)
        return bool(advantages(scored, "gdpo", weights, reward.min_valid).any())
    valid = scored.rewards[scored.is_valid]
    return valid.size >= max(2, reward.min_valid) and bool(np.ptp(valid) > 0)


def _is_trained(scored: ScoredGroup, reward: RewardConfig) -> np.ndarray:
    return scored.is_valid if scored.is_valid.sum() >= reward.min_valid else scored.is_valid & False
