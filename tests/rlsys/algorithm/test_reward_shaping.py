"""Reward penalties are compared with numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlsys.algorithm.reward_shaping import needs_reference, overlong_fraction, sequence_kl, shape_rewards
from rlsys.config.algorithm import AlgorithmConfig
from tests.support.factories import make_group, make_scored
from tests.support.rounding import FLOAT32


def test_the_overlong_penalty_rises_over_the_buffer() -> None:
    # DAPO's numbers: 16,384 tokens without a penalty, then a buffer of 4,096
    lengths = np.array([1, 16384, 17408, 18432, 20480])
    assert overlong_fraction(lengths, 20480, 4096).tolist() == [0, 0, 0.25, 0.5, 1]


def test_without_a_penalty_groups_are_unchanged() -> None:
    groups = (make_scored(make_group(), [0, 1, 2, 3]),)
    shaped = shape_rewards(groups, AlgorithmConfig(), 3)
    assert shaped.groups is groups
    assert shaped.metrics == {}


def test_overlong_responses_lose_reward_and_unscored_ones_do_not_count_in_the_metric() -> None:
    long = make_scored(make_group(response_tokens=8), [0.5, 1, 1, 1], [True, True, True, False])
    short = make_scored(make_group("file:1", response_tokens=5), [0, 1, 0, 1])
    shaped = shape_rewards((long, short), AlgorithmConfig(overlong_buffer_tokens=4, overlong_penalty=0.4), 8)
    np.testing.assert_allclose(shaped.groups[0].rewards, [0.1, 0.6, 0.6, np.nan], rtol=FLOAT32)
    np.testing.assert_allclose(shaped.groups[1].rewards, [-0.1, 0.9, -0.1, 0.9], rtol=FLOAT32)
    assert shaped.metrics == {"reward/overlong_penalty/mean": pytest.approx((3 * 0.4 + 4 * 0.1) / 7)}
    assert long.rewards[0] == 0.5


@pytest.mark.parametrize(
    ("estimator", "up", "down"),
    [
        ("k1", math.log(2), -math.log(2)),
        ("k2", math.log(2) ** 2 / 2, math.log(2) ** 2 / 2),
        ("k3", 0.5 - 1 + math.log(2), 2 - 1 - math.log(2)),
    ],
)
def test_kl_of_a_response_is_the_sum_over_its_tokens(estimator: str, up: float, down: float) -> None:
    group = make_group(num_rollouts=2)  # log-probs of -1, three tokens
    double, half = -1 + math.log(2), -1 - math.log(2)
    reference = [np.array([half, half, -1.0]), np.array([double, -1.0, -1.0])]
    np.testing.assert_allclose(sequence_kl(group, reference, estimator), [2 * up, down], rtol=FLOAT32)


def test_kl_is_subtracted_from_the_reward() -> None:
    scored = make_scored(make_group(num_rollouts=2), [1, 0])
    algorithm = AlgorithmConfig(kl_coef=0.1, kl_in="reward", kl_estimator="k1")
    shaped = shape_rewards((scored,), algorithm, 3, [[np.full(3, -2.0), np.full(3, -1.0)]])
    np.testing.assert_allclose(shaped.groups[0].rewards, [0.7, 0.0], rtol=FLOAT32)
    assert shaped.metrics == {"reward/kl_penalty/mean": pytest.approx(0.15)}


def test_both_penalties_add_up() -> None:
    scored = make_scored(make_group(num_rollouts=2), [1, 0])
    algorithm = AlgorithmConfig(kl_coef=0.1, kl_in="reward", kl_estimator="k1", overlong_buffer_tokens=2)
    shaped = shape_rewards((scored,), algorithm, 4, [[np.full(3, -2.0), np.full(3, -1.0)]])
    np.testing.assert_allclose(shaped.groups[0].rewards, [0.2, -0.5], rtol=FLOAT32)


def test_the_reference_is_needed_only_for_a_kl_in_the_reward() -> None:
    assert needs_reference(AlgorithmConfig(kl_coef=0.1, kl_in="reward"))
    assert not needs_reference(AlgorithmConfig(kl_in="reward"))
    assert not needs_reference(AlgorithmConfig(kl_coef=0.1))
    with pytest.raises(ValueError, match="kl_in=reward"):
        shape_rewards((make_scored(make_group(), [0, 1, 2, 3]),), AlgorithmConfig(kl_coef=0.1, kl_in="reward"), 4)
