from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from learner.packing.shards import split_batch
from rlsys.types import TrainBatch
from tests.support.learner import cost_model, make_batch, make_group

BUDGET = 100


@pytest.fixture
def batch() -> TrainBatch:
    rng = np.random.default_rng(0)
    return make_batch(rng, [make_group(rng, str(i), (), [3, 1, 2]) for i in range(4)])


def test_rollouts_outside_the_loss_are_not_computed(batch: TrainBatch) -> None:
    is_trained = (np.array([True, False, True]), np.zeros(3, bool), np.ones(3, bool), np.ones(3, bool))
    shards = split_batch(replace(batch, is_trained=is_trained), 2, BUDGET, cost_model())
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
    shards = split_batch(
        replace(batch, is_trained=is_trained), 2, BUDGET, cost_model(), loss_mean=loss_mean, max_tokens=8
    )
    rows = {row.prompt_id: row for shard in shards for rows in shard.micro_batches for row in rows}
    assert [response.weight for response in rows["2"].responses] == pytest.approx(expected)


def test_a_batch_without_trained_tokens_is_refused(batch: TrainBatch) -> None:
    nothing = tuple(np.zeros(3, bool) for _ in batch.groups)
    with pytest.raises(ValueError, match="none of the batch's 4 groups has a trained token"):
        split_batch(replace(batch, is_trained=nothing), 2, BUDGET, cost_model())
