"""The order in which the rows of one list are sampled: a pure function of the seed, unless a curriculum ranks them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Rank = Callable[[int, np.ndarray], np.ndarray]
"""(epoch, shuffled indices i64 [N]) -> the same indices in the order in which the epoch takes them."""


class Sampler:
    """Maps a prompt index (0, 1, …, over all epochs) to an item: each item once per epoch, reshuffled every epoch.

    stream: makes the orders of several lists with one seed independent; None is the order of a single list.
    rank: of a curriculum; None takes the items as they were shuffled.
    """

    def __init__(self, num_items: int, seed: int, stream: int | None = None, rank: Rank | None = None) -> None:
        if num_items < 1:
            raise ValueError(f"num_items={num_items}: there is nothing to sample from; check the annotations.")
        self._num_items, self._seed, self._stream = num_items, seed, () if stream is None else (stream,)
        self._rank = rank
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def epoch_of(self, prompt_index: int) -> int:
        """Return the epoch, counted from 0, of a prompt index."""
        return prompt_index // self._num_items

    def index_at(self, prompt_index: int) -> int:
        """Return the index of the item at a prompt index."""
        if prompt_index < 0:
            raise ValueError(f"prompt_index={prompt_index}: prompt indices are counted from 0.")
        return int(self.order_of(self.epoch_of(prompt_index))[prompt_index % self._num_items])

    def order_of(self, epoch: int) -> np.ndarray:
        """Return the indices of all items in the order of an epoch."""
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._permutation(epoch)
        return self._order if self._rank is None else self._rank(epoch, self._order)

    def _permutation(self, epoch: int) -> np.ndarray:
        # sorting raw random words, because numpy promises the same words in every release, not the same permutations
        entropy = np.random.SeedSequence((self._seed, epoch, *self._stream))
        return np.argsort(np.random.PCG64(entropy).random_raw(self._num_items), kind="stable")
