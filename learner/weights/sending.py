"""The learner's side of a broadcast. At ZeRO-3 all ranks take part: they gather a bucket when rank 0 is to send it."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
import torch.distributed as dist

from learner.weights.publishing import Get, Publisher
from rlsys.weights.manifest import Bucket, NamedTensors, Uncopied

END = "end"

Live: TypeAlias = dict[str, torch.Tensor]


class RanksLost(Exception):
    """A bucket could not be gathered. Not a RuntimeError, which a broadcast takes for the loss of a receiver."""


class Cues:
    """Rank 0's word to the other ranks that a bucket is to be gathered now.

    When that is, and for which buckets, depends on the receivers. The others wait for it at the store, because a
    collective would have a deadline and, on GPUs, a kernel that waits. Every rank makes one, and all follow each other.
    """

    def __init__(self, store: dist.Store, timeout_s: float) -> None:
        # with a connection of its own: a wait blocks it, and the process group uses the other one meanwhile
        self._store, self._timeout = dist.PrefixStore("cues", store.clone()), datetime.timedelta(seconds=timeout_s)
        self._number = 0
        self._past: list[str] = []

    def give(self, index: int) -> None:
        """Tell the other ranks to gather a bucket; on rank 0, which gathers it next."""
        self._set(str(index))

    @contextmanager
    def giving(self) -> Iterator[None]:
        """Be the context of a broadcast; on rank 0. The next one begins when all ranks have returned from this one."""
        for key in self._past:
            self._store.delete_key(key)
        self._past = []
        try:
            yield
        finally:
            self._set(END)

    def _set(self, value: str) -> None:
        self._past.append(self._next())
        self._store.set(self._past[-1], value)

    def taken(self) -> Iterator[int]:
        """Yield the buckets of one broadcast as rank 0 names them; on the other ranks."""
        while True:
            key = self._next()
            self._store.wait([key], self._timeout)
            value = self._store.get(key).decode()
            if value == END:
                return
            yield int(value)

    def _next(self) -> str:
        self._number += 1
        return str(self._number)


class Outgoing:
    """The tensors of a published version while rank 0 broadcasts it. cues: None if it has the parameters whole."""

    def __init__(self, publisher: Publisher, get: Get, cues: Cues | None) -> None:
        self._publisher, self._get, self._cues = publisher, get, cues

    def tensors(self, bucket: Bucket) -> NamedTensors:
        """Return a bucket's tensors in host memory. Raises RanksLost if they cannot be gathered."""
        self._give_cue(bucket)
        try:
            return self._publisher.tensors(bucket, self._get)
        except RuntimeError as error:
            raise _lost(bucket, error) from error

    def live(self, bucket: Bucket) -> Live:
        """Return a bucket's tensors on the GPU, {} for those that `tensors` must return, see `Publisher.live`."""
        if self._cues is not None and not isinstance(bucket.stored, Uncopied):
            return {}
        self._give_cue(bucket)
        try:
            return self._publisher.live(bucket)
        except RuntimeError as error:
            raise _lost(bucket, error) from error

    def _give_cue(self, bucket: Bucket) -> None:
        if self._cues is not None and isinstance(bucket.stored, Uncopied):
            self._cues.give(bucket.stored.index)


def _lost(bucket: Bucket, error: RuntimeError) -> RanksLost:
    return RanksLost(f"a bucket of weights ({bucket.names[0]}, …) could not be read: {error}")
