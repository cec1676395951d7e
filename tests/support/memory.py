"""A count of the bytes of tensors, for tests of what a computation may hold."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryMeter(TorchDispatchMode):
    """A counter of the bytes of tensors created since it was entered: alive now, and at most; largest: of one tensor.

    What operators need inside is not seen. `restart` counts from what is alive then.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = self.largest = 0
        self._known: set[int] = set()

    def restart(self) -> None:
        """Forget earlier peaks."""
        self.peak, self.largest = self.alive, 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        given = {
            tensor.untyped_storage()._cdata
            for tensor in tree_leaves((args, kwargs))
            if isinstance(tensor, torch.Tensor)
        }
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata in self._known or storage._cdata in given:  # what is given was there before
                continue
            self._known.add(storage._cdata)
            self.alive += storage.nbytes()
            self.peak, self.largest = max(self.peak, self.alive), max(self.largest, storage.nbytes())
            weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        return made

    def _freed(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self.alive -= num_bytes
