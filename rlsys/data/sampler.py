"""In which order items are drawn: a pure function of the seed, so that resuming needs only a number."""

from __future__ import annotations

import numpy as np


class Sampler:
    """Draws every item once per epoch, each epoch in an order of its own."""

    def __init__(self, num_items: int, seed: int) -> None:
        if num_items < 1:
            raise ValueError(f"num_items={num_items}: there is nothing to draw from; check the annotations.")
        self._num_items, self._seed = num_items, seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def epoch_of(self, draw: int) -> int:
        """The epoch, from 0, that the draw-th draw (from 0) belongs to."""
        return draw // self._num_items

    def index_at(self, draw: int) -> int:
        """The item of the draw-th draw."""
        if draw < 0:
            raise ValueError(f"draw={draw}: draws are counted from 0.")
        epoch = self.epoch_of(draw)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._permutation(epoch)
        return int(self._order[draw % self._num_items])

    def _permutation(self, epoch: int) -> np.ndarray:
        # sorting raw random words, because numpy promises the same words in every release, not the same permutations
        words = np.random.PCG64(np.random.SeedSequence((self._seed, epoch))).random_raw(self._num_items)
        return np.argsort(words, kind="stable")
