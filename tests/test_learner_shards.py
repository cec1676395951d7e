from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fixtures_learner import make_batch, make_group
from hypothesis import given
from hypothesis import strategies as st

from learner.passes import plan_passes
from learner.shards import split_batch
from rlsys.types import TrainBatch

BUDGET = 100


@given(st.lists(st.integers(1, 150), max_size=30), st.integers(1, 4))
def test_every_row_is_computed_once_within_the_budget_and_ranks_make_equal_passes(
    lengths: list[int], num_ranks: int
) -> None:
    plan = plan_passes(lengths, num_ranks, BUDGET)
    assert sorted(index for passes in plan for rows in passes for index in rows) == list(range(len(lengths)))
    assert len({len(passes) for passes in plan}) == 1
    assert len(plan[0]) >= 1
    for rows in (rows for passes in plan for rows in passes if len(rows) > 1):
        assert len(rows) * max(lengths[index] for index in rows) <= BUDGET


def test_rows_are_balanced_by_length() -> None:
    # longest first, always to the rank with least: 60 | 50, then 40 to 50, 30 to 60, 10 to the first of two equals
    lengths = [10, 60, 30, 50, 40]
    plan = plan_passes(lengths, 2, 1000)
    assert plan == [[[1, 2, 0]], [[3, 4]]]


def test_a_row_over_the_budget_goes_alone_and_short_rows_share() -> None:
    assert plan_passes([150, 40, 40, 40], 1, BUDGET) == [[[0], [1, 2], [3]]]


def test_a_rank_without_rows_still_makes_its_pass() -> None:
    assert plan_passes([5], 2, BUDGET) == [[[0]], [[]]]


@pytest.fixture
def batch() -> TrainBatch:
    rng = np.random.default_rng(0)
    return make_batch(rng, [make_group(rng, str(i), (), [3, 1, 2]) for i in range(4)])


def test_rollouts_outside_the_loss_are_not_computed(batch: TrainBatch) -> None:
    is_trained = (np.array([True, False, True]), np.zeros(3, bool), np.ones(3, bool), np.ones(3, bool))
    shards = split_batch(replace(batch, is_trained=is_trained), 2, BUDGET)
    rows = {row.prompt_id: row for shard in shards for rows in shard.micro_batches for row in rows}
    assert {name: [len(response.ids) for response in row.responses] for name, row in rows.items()} == {
        "0": [3, 2],
        "2": [3, 1, 2],
        "3": [3, 1, 2],
    }
    assert rows["0"].responses[1].advantage == pytest.approx(batch.advantages[0][2])


@pytest.mark.parametrize(
    ("loss_mean", "expected"),
    [("token", [1 / 17] * 3), ("sequence", [1 / 24, 1 / 8, 1 / 16]), ("constant", [1 / 64] * 3)],
)
def test_weights_of_tokens_are_those_of_the_paper(batch: TrainBatch, loss_mean: str, expected: list[float]) -> None:
    is_trained = (np.array([True, False, True]), np.zeros(3, bool), np.ones(3, bool), np.ones(3, bool))
    shards = split_batch(replace(batch, is_trained=is_trained), 2, BUDGET, loss_mean=loss_mean, max_tokens=8)
    rows = {row.prompt_id: row for shard in shards for rows in shard.micro_batches for row in rows}
    assert [response.weight for response in rows["2"].responses] == pytest.approx(expected)


def test_a_batch_without_trained_tokens_is_refused(batch: TrainBatch) -> None:
    nothing = tuple(np.zeros(3, bool) for _ in batch.groups)
    with pytest.raises(ValueError, match="none of the batch's 4 groups has a trained token"):
        split_batch(replace(batch, is_trained=nothing), 2, BUDGET)
