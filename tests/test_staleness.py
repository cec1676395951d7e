from collections import deque

import pytest

from rlsys.staleness import how_many_may_start, lag_updates


def test_a_synchronous_run_starts_exactly_the_groups_of_the_next_update() -> None:
    assert how_many_may_start(in_flight=0, collected=0, prompts_per_step=16, max_lag=0) == 16
    assert how_many_may_start(in_flight=10, collected=6, prompts_per_step=16, max_lag=0) == 0


@pytest.mark.parametrize("max_lag", [0, 1, 2, 5])
def test_no_group_is_older_than_the_bound_when_it_is_trained_on(max_lag: int) -> None:
    started_at, lags = deque[int](), []
    for version in range(50):
        room = how_many_may_start(in_flight=len(started_at), collected=0, prompts_per_step=3, max_lag=max_lag)
        started_at.extend([version] * room)
        lags += [lag_updates(version=version, weight_version=started_at.popleft()) for _ in range(3)]
    assert max(lags) == max_lag
