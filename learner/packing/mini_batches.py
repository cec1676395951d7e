"""Assignment of a batch's groups to optimiser updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rlsys.config.algorithm import AlgorithmConfig
from rlsys.types import TrainBatch


def plan_updates(batch: TrainBatch, algorithm: AlgorithmConfig, seed: int) -> list[list[int]]:
    """Return the indices of each update's groups: `mini_batches` parts of nearly equal size, `epochs_per_batch` times.

    The first epoch takes the groups in order; later ones shuffle them by `seed` and the epoch's number, in the same
    way for every batch. A part without a trained token is skipped. A supervised batch is one update.
    """
    everything = np.arange(len(batch.groups))
    if batch.objective == "nll":
        return [everything.tolist()]
    orders = [everything]
    orders += [
        np.random.default_rng([seed, epoch]).permutation(everything) for epoch in range(1, algorithm.epochs_per_batch)
    ]
    parts = [part.tolist() for order in orders for part in np.array_split(order, algorithm.mini_batches)]
    return [part for part in parts if part_of(batch, part).num_trained_tokens]


def part_of(batch: TrainBatch, indices: Sequence[int]) -> TrainBatch:
    """Return the batch reduced to the groups at `indices`."""
    return replace(
        batch,
        groups=tuple(batch.groups[index] for index in indices),
        advantages=tuple(batch.advantages[index] for index in indices),
        is_trained=tuple(batch.is_trained[index] for index in indices),
    )
