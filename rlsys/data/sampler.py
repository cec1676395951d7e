"""The order in which items are sampled: a pure function of the seed, so that resuming needs only a number."""

from __future__ import annotations

import numpy as np


class Sampler:
    """Maps a prompt index (0, 1, …, over all epochs) to an item: each item once per epoch, reshuffled every epoch."""

    def __init__(self, num_items: int, seed: int) -> None:
        if num_items < 1:
            raise ValueError(f"num_items={num_items}: there is nothing to sample from; check the annotations.")
        self._num_items, self._seed = num_items, seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def epoch_of(self, prompt_index: int) -> int:
        """Return the epoch, counted from 0, of a prompt index."""
        return prompt_index // self._num_items

    def index_at(self, prompt_index: int) -> int:
        """Return the index of the item at a prompt index."""
        if prompt_index < 0:
            raise ValueError(f"prompt_index={prompt_index}: prompt indices are counted from 0.")
        epoch = self.epoch_of(prompt_index)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._permutation(epoch)
        return int(self._order[prompt_index % self._num_items])

    def _permutation(self, epoch: int) -> np.ndarray:
        # sorting raw random words, because numpy promises the same words in every release, not the same permutations
        words = np.random.PCG64(np.random.SeedSequence((self._seed, epoch))).random_raw(self._num_items)
        return np.argsort(words, kind="stable")
