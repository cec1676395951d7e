from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from learner.packing.mini_batches import part_of, plan_updates
from rlsys.config.algorithm import AlgorithmConfig
from rlsys.types import TrainBatch
from tests.support.learner import make_batch, make_group


@pytest.fixture
def batch() -> TrainBatch:
    rng = np.random.default_rng(0)
    return make_batch(rng, [make_group(rng, str(i), (), [3, 1]) for i in range(6)])


def test_one_update_takes_all_groups(batch: TrainBatch) -> None:
    assert plan_updates(batch, AlgorithmConfig(), seed=0) == [[0, 1, 2, 3, 4, 5]]


def test_the_first_epoch_is_in_order_and_later_ones_are_shuffled_by_the_seed(batch: TrainBatch) -> None:
    algorithm = AlgorithmConfig(mini_batches=3, epochs_per_batch=3)
    plan = plan_updates(batch, algorithm, seed=1)
    assert plan[:3] == [[0, 1], [2, 3], [4, 5]]
    epochs = [sum(plan[start : start + 3], []) for start in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert plan == plan_updates(batch, algorithm, seed=1)
    assert plan != plan_updates(batch, algorithm, seed=2)


def test_a_mini_batch_without_a_trained_token_is_skipped(batch: TrainBatch) -> None:
    is_trained = tuple(np.full(2, index not in (2, 3)) for index in range(6))
    plan = plan_updates(replace(batch, is_trained=is_trained), AlgorithmConfig(mini_batches=3), seed=0)
    assert plan == [[0, 1], [4, 5]]
    nothing = tuple(np.zeros(2, bool) for _ in range(6))
    assert plan_updates(replace(batch, is_trained=nothing), AlgorithmConfig(mini_batches=3), seed=0) == []


def test_a_supervised_batch_is_one_update(batch: TrainBatch) -> None:
    algorithm = AlgorithmConfig(mini_batches=3, epochs_per_batch=2)
    assert plan_updates(replace(batch, objective="nll"), algorithm, seed=0) == [[0, 1, 2, 3, 4, 5]]


def test_a_part_has_its_groups_with_their_advantages_and_masks(batch: TrainBatch) -> None:
    part = part_of(batch, [4, 1])
    assert [group.item.prompt_id for group in part.groups] == ["4", "1"]
    assert part.advantages == (batch.advantages[4], batch.advantages[1])
    assert part.is_trained == (batch.is_trained[4], batch.is_trained[1])
