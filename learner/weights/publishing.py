"""Publication of a learner's weights bucket by bucket, so that no rank gathers more than one bucket at a time."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch

from learner.weights.weights_out import (
    ExportedTensor,
    Gather,
    assist,
    collect,
    gathered,
    identified,
    identified_in_place,
    names_of,
)
from rlsys.clock import Clock
from rlsys.weights.delta import encode, num_bytes, num_numbers
from rlsys.weights.manifest import (
    Bucket,
    Delta,
    NamedTensors,
    PublishStats,
    TensorEntry,
    Uncopied,
    manifest_of,
    plan_buckets,
)

Put = Callable[[NamedTensors], Any]
"""A function that stores a bucket's tensors and returns the reference by which other processes get them."""
Get = Callable[[Any], NamedTensors]
"""A function that returns the tensors behind such a reference."""
Identify = Callable[[Mapping[str, ExportedTensor]], dict[str, TensorEntry]]
"""A function that returns the manifest of parameters that no rank has whole; every rank must call it."""
Published: TypeAlias = tuple[Bucket, dict[str, TensorEntry]]
"""A bucket and its tensors' entries."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PlannedBucket:
    """The exported tensors of one bucket. is_frozen: none of their parameters is trained."""

    exported: Mapping[str, ExportedTensor]
    is_frozen: bool

    @property
    def num_bytes(self) -> int:
        """Size of the transfer; a tensor with two names counts once."""
        return sum(tensor.spec.num_bytes for tensor in dict.fromkeys(self.exported.values()))

    @property
    def is_made(self) -> bool:
        """Whether a tensor is computed when it is read; anew it could differ in the last bit from its checksum."""
        return any(tensor.is_made for tensor in self.exported.values())


def plan_export(exported: Mapping[str, ExportedTensor], max_bytes: int) -> list[PlannedBucket]:
    """Group exported tensors into buckets of at most `max_bytes`: first trained tensors, then frozen ones.

    Otherwise the order is kept. A tensor with two names (a tied head) is in one bucket under both.
    """
    names = names_of(exported)
    planned = []
    for is_frozen in (False, True):
        sizes = {tensor: tensor.spec.num_bytes for tensor in names if _is_frozen(tensor) == is_frozen}
        for chosen in plan_buckets(sizes, max_bytes):
            by_name = {name: tensor for tensor in chosen for name in names[tensor]}
            planned.append(PlannedBucket(exported=by_name, is_frozen=is_frozen))
    return planned


def _is_frozen(tensor: ExportedTensor) -> bool:
    return not any(parameter.requires_grad for parameter in tensor.parameters)


class Publisher:
    """A publisher of one model's weights, which gathers, hashes and stores frozen parts only the first time.

    Every rank must create one and call `publish`, because gathering a partitioned parameter is a collective. A new one
    is needed after the weights were replaced, for example by a checkpoint.
    """

    def __init__(
        self,
        exported: Mapping[str, ExportedTensor],
        gather: Gather,
        max_bytes: int,
        *,
        stores: bool,
        shares: bool = False,
        identify: Identify | None = None,
    ) -> None:
        """Plan the buckets of the exported tensors.

        stores: whether this rank puts the weights into the object store.  shares: whether it also shares them by CUDA
        IPC from its GPU.  identify: None if the rank that stores has the parameters whole.
        """
        self._shares = shares
        self._identify = identify
        self._exported = exported
        self._planned = plan_export(exported, max_bytes)
        self._gather = gather
        self._stores = stores
        self._kept: dict[int, Published] = {}
        self._has_published = False
        self.stats = PublishStats()
        """Of the last version."""

    def publish(
        self, put: Put, get: Get | None = None, *, copies_later: bool = False
    ) -> tuple[tuple[Bucket, ...], dict[str, TensorEntry]]:
        """Return the buckets and their manifest on the rank that stores; empty ones on the others.

        A bucket whose tensors have not changed is that of the version before.
        get: returns a stored bucket's tensors; if given, changed buckets have deltas from the version before.
        copies_later: store no changed bucket whose tensors are parameters; it is `Uncopied`, and `copy` returns them.
        Every rank must be told the same.
        """
        buckets: list[Bucket] = []
        manifest: dict[str, TensorEntry] = {}
        self.stats = PublishStats()
        for bucket, entries in self._published(put, get, copies_later):
            buckets.append(bucket)
            manifest.update(entries)
        self._has_published = True
        return tuple(buckets), manifest

    def copy(self, stored: Uncopied) -> NamedTensors:
        """Return the tensors of a bucket that was not stored. On CPU they are the parameters' own memory."""
        return collect(self._planned[stored.index].exported, self._gather)

    def assist(self, index: int) -> None:
        """Take part in the gathers of `copy`, or of `live`, of the rank that stores."""
        assist(self._planned[index].exported, self._gather)

    def tensors(self, bucket: Bucket, get: Get) -> NamedTensors:
        """Return the tensors of a published bucket. get: returns those of a stored one."""
        return self.copy(bucket.stored) if isinstance(bucket.stored, Uncopied) else get(bucket.stored)

    def live(self, bucket: Bucket) -> dict[str, torch.Tensor]:
        """Return a whole bucket's tensors by name, where the parameters lie; {} if one of them is computed when read.

        They are what was published until the next update. Partitioned parameters are gathered for it.
        """
        exported = {name: self._exported[name] for name in bucket.names}
        if any(tensor.is_made for tensor in exported.values()):
            return {}
        found: dict[ExportedTensor, torch.Tensor] = {}
        for tensor in names_of(exported):
            with self._gather(tensor.parameters):
                found[tensor] = tensor.read()
        return {name: found[tensor] for name, tensor in exported.items()}

    def _published(
        self, put: Put, get: Get | None, copies_later: bool
    ) -> Iterator[tuple[Bucket, dict[str, TensorEntry]]]:
        for index, planned in enumerate(self._planned):
            if not (planned.is_frozen and self._has_published):
                copies = copies_later and not planned.is_made
                if not self._stores:
                    self._assist_publishing(planned, copies)
                elif copies:
                    self._kept[index] = self._uncopied(index)
                else:
                    self._kept[index] = self._stored(index, put, get)
            if not self._stores:
                continue
            bucket, entries = self._kept[index]
            # what did not change may have moved since, see `learner.offloading`
            yield (replace(bucket, handles=self._handles(planned)) if self._shares else bucket), entries

    def _assist_publishing(self, planned: PlannedBucket, copies: bool) -> None:
        if copies and self._identify is not None:
            self._identify(planned.exported)
        else:
            assist(planned.exported, self._gather)

    def _uncopied(self, index: int) -> Published:
        planned, before, clock = self._planned[index], self._kept.get(index), Clock()
        identify = self._identify or partial(identified_in_place, gather=self._gather)
        with clock("checksum"):
            entries = identify(planned.exported)
        self._note(clock)
        if before is not None and before[1] == entries:
            return before
        self.stats.sent_bytes += planned.num_bytes
        names, stored = tuple(planned.exported), Uncopied(uuid.uuid4().hex, index)
        return Bucket(names=names, num_bytes=planned.num_bytes, stored=stored), entries

    def _stored(self, index: int, put: Put, get: Get | None) -> Published:
        planned, before, clock = self._planned[index], self._kept.get(index), Clock()
        with clock("gather"):
            tensors, of_gpu = gathered(planned.exported, self._gather)
        with clock("checksum"):
            entries = identified(planned.exported, tensors, of_gpu)
        if before is not None and before[1] == entries:
            self._note(clock)
            return replace(before[0], delta=None), entries
        with clock("store"):
            stored = put(tensors)
        self.stats.stored_bytes += planned.num_bytes
        delta = None
        if before is not None and get is not None and not isinstance(before[0].stored, Uncopied):
            with clock("encode"):
                delta = self._delta(before, tensors, entries, put, get)
        self._note(clock)
        self.stats.sent_bytes += delta.bucket.num_bytes if delta else planned.num_bytes
        bucket = Bucket(
            names=tuple(planned.exported),
            num_bytes=planned.num_bytes,
            stored=stored,
            delta=delta,
        )
        return bucket, entries

    def _delta(
        self, before: Published, tensors: NamedTensors, entries: dict[str, TensorEntry], put: Put, get: Get
    ) -> Delta | None:
        """Return what changed since `before`; None if that is no less than everything."""
        bucket, base = before
        pieces, num_changed = encode(tensors, get(bucket.stored))
        self.stats.num_changed += num_changed
        self.stats.num_compared += num_numbers(tensors)
        size = num_bytes(pieces)
        if size >= bucket.num_bytes:
            return None
        self.stats.stored_bytes += size
        sent = Bucket(names=tuple(pieces), num_bytes=size, stored=put(pieces))
        return Delta(base=base, entries=entries, bucket=sent, manifest=manifest_of(pieces))

    def _note(self, clock: Clock) -> None:
        for part, seconds in clock.seconds.items():
            setattr(self.stats, f"{part}_s", getattr(self.stats, f"{part}_s") + seconds)

    def _handles(self, planned: PlannedBucket) -> dict[str, dict[str, Any]]:
        """Return the handles that open the bucket's tensors from another process on this GPU; {} if not shared."""
        if not self._shares:
            return {}
        from torch.multiprocessing.reductions import reduce_tensor

        gpu = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        # a merged or turned tensor exists only while it is read, so it has no handle
        return {
            name: {gpu: reduce_tensor(tensor.read())[1]}
            for name, tensor in planned.exported.items()
            if not tensor.is_made
        }
