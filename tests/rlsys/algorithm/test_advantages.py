import numpy as np
import pytest

from rlsys.algorithm.advantages import (
    advantages,
    centred_advantages,
    decoupled_advantages,
    group_advantages,
    leave_one_out_advantages,
    scaled_over_batch,
)
from tests.support.factories import make_group, make_scored
from tests.support.rounding import FLOAT32

ALL = np.ones(4, bool)


def test_grpo_advantages_are_centred_rewards_over_the_sample_standard_deviation() -> None:
    # mean 1, deviations -1 -1 1 1, sample variance 4/3
    got = group_advantages(np.array([0, 0, 2, 2], np.float32), ALL, eps=0.0)
    np.testing.assert_allclose(got, np.array([-1, -1, 1, 1]) / np.sqrt(4 / 3), rtol=FLOAT32)


def test_a_failed_score_does_not_move_mean_or_deviation_and_has_no_advantage() -> None:
    rewards = np.array([0, 2, np.nan, 1], np.float32)
    got = group_advantages(rewards, np.array([True, True, False, True]))
    np.testing.assert_array_equal(got[[0, 1, 3]], group_advantages(np.array([0, 2, 1], np.float32), np.ones(3, bool)))
    assert got[2] == 0


@pytest.mark.parametrize(
    ("rewards", "is_valid"),
    [([1, 1, 1, 1], [True] * 4), ([0, 1, 2, 3], [True, False, False, False]), ([0, 1, 2, 3], [False] * 4)],
)
def test_a_group_with_equal_rewards_or_one_score_has_zero_advantages(
    rewards: list[float], is_valid: list[bool]
) -> None:
    assert not group_advantages(np.array(rewards, np.float32), np.array(is_valid)).any()


def test_permuting_a_group_permutes_its_advantages() -> None:
    rng = np.random.default_rng(0)
    rewards, is_valid = rng.random(8).astype(np.float32), rng.random(8) > 0.3
    order = rng.permutation(8)
    np.testing.assert_allclose(
        group_advantages(rewards[order], is_valid[order]), group_advantages(rewards, is_valid)[order], atol=FLOAT32
    )


def test_centred_advantages_keep_the_unit_of_the_reward() -> None:
    np.testing.assert_allclose(centred_advantages(np.array([0, 0, 2, 4], np.float32), ALL), [-1.5, -1.5, 0.5, 2.5])


def test_leave_one_out_advantage_is_the_reward_minus_the_mean_of_the_others() -> None:
    # others' means: 6/3, 6/3, 4/3, 2/3
    got = leave_one_out_advantages(np.array([0, 0, 2, 4], np.float32), ALL)
    np.testing.assert_allclose(got, [-2, -2, 2 / 3, 10 / 3], rtol=FLOAT32)


def test_leave_one_out_advantage_is_the_centred_one_times_n_over_n_minus_1() -> None:
    rewards, is_valid = np.array([0.3, 0.9, np.nan, 0.1], np.float32), np.array([True, True, False, True])
    np.testing.assert_allclose(
        leave_one_out_advantages(rewards, is_valid), centred_advantages(rewards, is_valid) * 3 / 2, rtol=FLOAT32
    )


def test_decoupled_advantages_separate_rollouts_whose_scores_have_equal_sums() -> None:
    scores = np.array([[1, 0], [0, 1], [0, 0], [0, 0]], np.float32)
    # deviations of (1, 0, 0, 0): 0.75 -0.25 -0.25 -0.25, sample variance 0.25
    one = np.array([1.5, -0.5, -0.5, -0.5])
    got = decoupled_advantages(scores, np.array([1.0, 2.0]), ALL, eps=0.0)
    np.testing.assert_allclose(got, one + 2 * one[[1, 0, 2, 3]], rtol=FLOAT32)


def test_decoupled_advantages_separate_the_two_rewards_of_the_paper_s_example() -> None:
    # GDPO's figure 2: sums (0, 1) and (0, 2) of two binary scores collapse under GRPO
    both = decoupled_advantages(np.array([[0, 0], [1, 1]], np.float32), np.ones(2), np.ones(2, bool), eps=0.0)
    single = decoupled_advantages(np.array([[0, 0], [0, 1]], np.float32), np.ones(2), np.ones(2, bool), eps=0.0)
    np.testing.assert_allclose(both, [-np.sqrt(2), np.sqrt(2)], rtol=FLOAT32)
    np.testing.assert_allclose(single, [-np.sqrt(0.5), np.sqrt(0.5)], rtol=FLOAT32)


def test_a_score_of_weight_0_is_skipped() -> None:
    scores = np.array([[1, np.nan], [0, 5], [0, 0], [1, 0]], np.float32)
    got = decoupled_advantages(scores, np.array([1.0, 0.0]), ALL)
    np.testing.assert_array_equal(got, group_advantages(scores[:, 0], ALL))


def test_scaling_over_the_batch_gives_deviation_1_and_keeps_mean_0_and_zeros() -> None:
    by_group = (np.array([2, -2, 0], np.float32), np.zeros(3, np.float32), np.zeros(3, np.float32))
    is_trained = (np.array([True, True, False]), np.ones(3, bool), np.zeros(3, bool))
    scaled = scaled_over_batch(by_group, is_trained, eps=0.0)
    # trained: 2 -2 0 0 0, sample variance 8 / 4
    np.testing.assert_allclose(scaled[0], np.array([2, -2, 0]) / np.sqrt(2), rtol=FLOAT32)
    assert not scaled[1].any() and not scaled[2].any()


def test_a_batch_of_zero_advantages_is_not_scaled_up() -> None:
    zeros = (np.zeros(4, np.float32),)
    assert not scaled_over_batch(zeros, (ALL,))[0].any()
    assert not scaled_over_batch(zeros, (~ALL,))[0].any()


METHODS = ("grpo", "dr_grpo", "rloo", "gdpo")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("rewards", "is_valid", "min_valid"),
    [([1, 1, 1, 1], [1, 1, 1, 1], 2), ([0, 1, 2, 3], [1, 0, 0, 0], 2), ([0, 1, 2, 3], [1, 1, 0, 0], 3)],
)
def test_in_every_method_a_group_with_equal_rewards_or_too_few_scores_has_zero_advantages(
    method: str, rewards: list[float], is_valid: list[int], min_valid: int
) -> None:
    scored = make_scored(make_group(), rewards, [bool(one) for one in is_valid])
    assert not advantages(scored, method, {"iou": 1.0}, min_valid).any()


@pytest.mark.parametrize("method", METHODS)
def test_in_every_method_a_failed_score_changes_nothing_and_the_mean_is_0(method: str) -> None:
    with_failure = make_scored(make_group(), [0, 2, 7, 1], [True, True, False, True])
    without = make_scored(make_group(num_rollouts=3), [0, 2, 1])
    got = advantages(with_failure, method, {"iou": 1.0})
    np.testing.assert_array_equal(got[[0, 1, 3]], advantages(without, method, {"iou": 1.0}))
    assert got[2] == 0
    assert got.sum() == pytest.approx(0, abs=FLOAT32)


@pytest.mark.parametrize("method", METHODS)
def test_in_every_method_permuting_a_group_permutes_its_advantages(method: str) -> None:
    rng = np.random.default_rng(1)
    rewards, is_valid, order = rng.random(8), rng.random(8) > 0.3, rng.permutation(8)
    one = make_scored(make_group(num_rollouts=8), rewards.tolist(), is_valid.tolist())
    other = make_scored(make_group(num_rollouts=8), rewards[order].tolist(), is_valid[order].tolist())
    np.testing.assert_allclose(
        advantages(other, method, {"iou": 1.0}), advantages(one, method, {"iou": 1.0})[order], atol=FLOAT32
    )
