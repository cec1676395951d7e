from collections import deque

import pytest

from rlsys.loop.staleness import groups_under_way, is_fresh, lag_steps


def test_a_synchronous_run_starts_exactly_the_groups_of_the_next_update() -> None:
    assert groups_under_way(collected=0, prompts_per_step=16, max_lag=0) == 16
    assert groups_under_way(collected=6, prompts_per_step=16, max_lag=0) == 10


@pytest.mark.parametrize("max_lag", [0, 1, 2, 5])
def test_no_group_is_older_than_the_bound_when_it_is_trained_on(max_lag: int) -> None:
    started_at, lags = deque[int](), []
    for version in range(50):
        room = groups_under_way(collected=0, prompts_per_step=3, max_lag=max_lag) - len(started_at)
        started_at.extend([version] * room)
        lags += [lag_steps(version=version, weight_version=started_at.popleft()) for _ in range(3)]
    assert max(lags) == max_lag


def test_tokens_of_a_version_that_is_still_to_come_are_not_fresh() -> None:
    assert [is_fresh(version=5, weight_version=found, max_lag=2) for found in (2, 3, 5, 6)] == [
        False,
        True,
        True,
        False,
    ]
