"""Penalties that are subtracted from rewards after scoring and before advantages are computed.

The records keep the scorers' rewards; the penalties are separate metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from rlsys.algorithm.trajectories import summed_over_rounds
from rlsys.config.run import AlgorithmConfig
from rlsys.types import RolloutGroup, ScoredGroup


@dataclass(frozen=True, kw_only=True, eq=False)
class Shaped:
    """Scored groups after the penalties.

    groups: with the rewards that advantages are computed from.  metrics: mean of each penalty, in units of the reward.
    """

    groups: tuple[ScoredGroup, ...]
    metrics: Mapping[str, float]


def needs_reference(algorithm: AlgorithmConfig) -> bool:
    """Return whether reward shaping needs the reference policy's log-probs."""
    return algorithm.kl_coef > 0 and algorithm.kl_in == "reward"


def shape_rewards(
    groups: tuple[ScoredGroup, ...],
    algorithm: AlgorithmConfig,
    max_tokens: int,
    reference: Sequence[Sequence[np.ndarray]] | None = None,
) -> Shaped:
    """Return the groups with the penalties of `algorithm` subtracted from their rewards; unchanged if it has none.

    reference: log-probs of the reference policy, f32 [R], as `[group][sample]`, for the groups of all rounds; required
    if `needs_reference`. A trajectory has the penalties of all its rounds.
    """
    penalties: dict[str, list[np.ndarray]] = {}
    if algorithm.overlong_buffer_tokens:
        penalties["reward/overlong_penalty/mean"] = [
            algorithm.overlong_penalty
            * summed_over_rounds(
                scored,
                [
                    overlong_fraction(response_lengths(group), max_tokens, algorithm.overlong_buffer_tokens)
                    for group in scored.groups
                ],
            )
            for scored in groups
        ]
    if needs_reference(algorithm):
        if reference is None:
            raise ValueError("algorithm.kl_in=reward needs the reference policy's log-probs; pass them as `reference`.")
        rest = iter(reference)
        penalties["reward/kl_penalty/mean"] = [
            algorithm.kl_coef
            * summed_over_rounds(
                scored, [sequence_kl(group, next(rest), algorithm.kl_estimator) for group in scored.groups]
            )
            for scored in groups
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
    """Return the number of tokens of each response, i64 [G]."""
    return np.array([rollout.response_ids.size for rollout in group.rollouts])


def overlong_fraction(num_tokens: np.ndarray, max_tokens: int, buffer_tokens: int) -> np.ndarray:
    """Return the fraction of the last `buffer_tokens` before `max_tokens` that each response uses, f64 [G] in [0, 1].

    Source: soft overlong punishment, DAPO, arXiv:2503.14476, eq. 13, with the opposite sign. No response here is
    longer than `max_tokens`, so the equation's third case never occurs.
    """
    return np.clip((num_tokens - (max_tokens - buffer_tokens)) / buffer_tokens, 0.0, 1.0)


def sequence_kl(
    group: RolloutGroup, reference: Sequence[np.ndarray], estimator: Literal["k1", "k2", "k3"]
) -> np.ndarray:
    """Return an estimate of KL(sampler || reference) for each response, summed over its tokens, f64 [G].

    reference: log-probs of the reference policy, f32 [R] each. With k1, the gradient of the expected penalty is
    exactly that of the KL; the k1 estimate of a single response can be negative.
    Source: http://joschu.net/blog/kl-approx.html; KL as part of the reward: arXiv:2009.01325.
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
