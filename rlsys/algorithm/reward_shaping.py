"""What is taken off rewards after they were scored and before they become advantages.

The scorers' own rewards stay in the records; the amounts taken off are metrics of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from rlsys.config.run import AlgorithmConfig
from rlsys.types import RolloutGroup, ScoredGroup


@dataclass(frozen=True, kw_only=True, eq=False)
class Shaped:
    """groups: with the rewards that advantages are made of.  metrics: mean of each penalty, in units of the reward."""

    groups: tuple[ScoredGroup, ...]
    metrics: Mapping[str, float]


def needs_reference(algorithm: AlgorithmConfig) -> bool:
    """Whether the reference policy's log-probs are wanted before the batch is made."""
    return algorithm.kl_coef > 0 and algorithm.kl_in == "reward"


def shape_rewards(
    groups: tuple[ScoredGroup, ...],
    algorithm: AlgorithmConfig,
    max_tokens: int,
    reference: Sequence[Sequence[np.ndarray]] | None = None,
) -> Shaped:
    """Rewards minus the penalties that `algorithm` asks for; the groups as they are where it asks for none.

    reference: log-probs of the reference policy, f32 [R], as [group][sample]; wanted where `needs_reference`.
    """
    penalties: dict[str, list[np.ndarray]] = {}
    if algorithm.overlong_buffer_tokens:
        penalties["reward/overlong_penalty/mean"] = [
            algorithm.overlong_penalty
            * overlong_fraction(response_lengths(scored.group), max_tokens, algorithm.overlong_buffer_tokens)
            for scored in groups
        ]
    if needs_reference(algorithm):
        if reference is None:
            raise ValueError("algorithm.kl_in=reward needs the reference policy's log-probs.")
        penalties["reward/kl_penalty/mean"] = [
            algorithm.kl_coef * sequence_kl(scored.group, logprobs, algorithm.kl_estimator)
            for scored, logprobs in zip(groups, reference, strict=True)
        ]
    shaped = groups
    for by_group in penalties.values():
        shaped = tuple(
            replace(scored, rewards=(scored.rewards - penalty).astype(np.float32))
            for scored, penalty in zip(shaped, by_group, strict=True)
        )
    is_valid = np.concatenate([scored.is_valid for scored in groups])
    metrics = {
        name: float(np.concatenate(by_group)[is_valid].mean()) if is_valid.any() else float("nan")
        for name, by_group in penalties.items()
    }
    return Shaped(groups=shaped, metrics=metrics)


def response_lengths(group: RolloutGroup) -> np.ndarray:
    """i64 [G], tokens of each response."""
    return np.array([rollout.response_ids.size for rollout in group.rollouts])


def overlong_fraction(num_tokens: np.ndarray, max_tokens: int, buffer_tokens: int) -> np.ndarray:
    """Share of the last `buffer_tokens` before `max_tokens` that each response has used, f64 [G] in [0, 1].

    Source: soft overlong punishment, DAPO, arXiv:2503.14476, eq. 13, with the sign turned round. No response here
    is longer than `max_tokens`, so the eq.'s third case is the end of its second.
    """
    return np.clip((num_tokens - (max_tokens - buffer_tokens)) / buffer_tokens, 0.0, 1.0)


def sequence_kl(
    group: RolloutGroup, reference: Sequence[np.ndarray], estimator: Literal["k1", "k2", "k3"]
) -> np.ndarray:
    """Estimate of KL(sampler || reference) of each response, the sum over its tokens, f64 [G].

    reference: log-probs of the reference policy, f32 [R] each. With k1 the expected reward has exactly the gradient
    of the expected KL; k1 of one response may be negative. Source: http://joschu.net/blog/kl-approx.html;
    the placement in the reward: arXiv:2009.01325.
    """
    pairs = zip(group.rollouts, reference, strict=True)
    return np.array(
        [_kl_estimate(rollout.response_logprobs - logprobs, estimator).sum() for rollout, logprobs in pairs]
    )


def _kl_estimate(difference: np.ndarray, estimator: Literal["k1", "k2", "k3"]) -> np.ndarray:
    difference = difference.astype(np.float64)
    if estimator == "k1":
        return difference
    return difference**2 / 2 if estimator == "k2" else np.expm1(-difference) + difference
