import numpy as np
import pytest

from rlsys.advantages import group_advantages

ALL = np.ones(4, bool)


def test_advantages_are_rewards_minus_mean_over_the_sample_deviation() -> None:
    # mean 1, deviations -1 -1 1 1, sample variance 4/3
    got = group_advantages(np.array([0, 0, 2, 2], np.float32), ALL, eps=0.0)
    np.testing.assert_allclose(got, np.array([-1, -1, 1, 1]) / np.sqrt(4 / 3), rtol=1e-6)


def test_a_failed_score_moves_neither_mean_nor_deviation_and_gets_no_advantage() -> None:
    rewards = np.array([0, 2, np.nan, 1], np.float32)
    got = group_advantages(rewards, np.array([True, True, False, True]))
    np.testing.assert_array_equal(got[[0, 1, 3]], group_advantages(np.array([0, 2, 1], np.float32), np.ones(3, bool)))
    assert got[2] == 0


@pytest.mark.parametrize(
    ("rewards", "is_valid"),
    [([1, 1, 1, 1], [True] * 4), ([0, 1, 2, 3], [True, False, False, False]), ([0, 1, 2, 3], [False] * 4)],
)
def test_a_group_without_spread_or_with_one_score_teaches_nothing(rewards: list[float], is_valid: list[bool]) -> None:
    assert not group_advantages(np.array(rewards, np.float32), np.array(is_valid)).any()


def test_permuting_a_group_permutes_its_advantages() -> None:
    rng = np.random.default_rng(0)
    rewards, is_valid = rng.random(8).astype(np.float32), rng.random(8) > 0.3
    order = rng.permutation(8)
    np.testing.assert_allclose(
        group_advantages(rewards[order], is_valid[order]), group_advantages(rewards, is_valid)[order], atol=1e-7
    )
