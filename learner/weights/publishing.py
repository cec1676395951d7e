"""Publication of a learner's weights bucket by bucket, so that no rank gathers more than one bucket at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from learner.weights.weights_out import ExportedTensor, Gather, assist, identified
from rlsys.weights.manifest import Bucket, NamedTensors, TensorEntry, plan_buckets

Put = Callable[[NamedTensors], Any]
"""A function that stores a bucket's tensors and returns the reference by which other processes get them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PlannedBucket:
    """The exported tensors of one bucket. is_frozen: none of their parameters is trained."""

    exported: Mapping[str, ExportedTensor]
    is_frozen: bool

    @property
    def num_bytes(self) -> int:
        """Size of the transfer; a tensor with two names counts once."""
        return sum(tensor.spec.num_bytes for tensor in dict.fromkeys(self.exported.values()))


def plan_export(exported: Mapping[str, ExportedTensor], max_bytes: int) -> list[PlannedBucket]:
    """Group exported tensors into buckets of at most `max_bytes`: first trained tensors, then frozen ones.

    Otherwise the order is kept. A tensor with two names (a tied head) is in one bucket under both.
    """
    names: dict[ExportedTensor, list[str]] = {}
    for name, tensor in exported.items():
        names.setdefault(tensor, []).append(name)
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
    ) -> None:
        """Plan the buckets of the exported tensors.

        stores: whether this rank puts the weights into the object store.  shares: whether it also shares them by CUDA
        IPC from its GPU.
        """
        self._shares = shares
        self._planned = plan_export(exported, max_bytes)
        self._gather = gather
        self._stores = stores
        self._kept: dict[int, tuple[Bucket, dict[str, TensorEntry]]] = {}
        self._has_published = False

    def publish(self, put: Put) -> tuple[tuple[Bucket, ...], dict[str, TensorEntry]]:
        """Return the buckets and their manifest on the rank that stores; empty ones on the others."""
        buckets: list[Bucket] = []
        manifest: dict[str, TensorEntry] = {}
        for bucket, entries in self._published(put):
            buckets.append(bucket)
            manifest.update(entries)
        self._has_published = True
        return tuple(buckets), manifest

    def _published(self, put: Put) -> Iterator[tuple[Bucket, dict[str, TensorEntry]]]:
        for index, planned in enumerate(self._planned):
            is_kept = planned.is_frozen and self._has_published
            if not self._stores:
                if not is_kept:
                    # a tensor with two names is gathered once
                    assist(dict.fromkeys(planned.exported.values()), self._gather)
                continue
            found = self._kept[index] if is_kept else self._stored(planned, put)
            if planned.is_frozen:
                self._kept[index] = found
            yield found

    def _stored(self, planned: PlannedBucket, put: Put) -> tuple[Bucket, dict[str, TensorEntry]]:
        tensors, entries = identified(planned.exported, self._gather)
        bucket = Bucket(
            names=tuple(planned.exported),
            num_bytes=planned.num_bytes,
            stored=put(tensors),
            handles=self._handles(planned),
        )
        return bucket, entries

    def _handles(self, planned: PlannedBucket) -> dict[str, dict[str, Any]]:
        """Return the handles that open the bucket's tensors from another process on this GPU; {} if not shared."""
        if not self._shares:
            return {}
        from torch.multiprocessing.reductions import reduce_tensor

        gpu = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        # a merged tensor exists only while it is read, so it has no handle
        return {
            name: {gpu: reduce_tensor(tensor.read())[1]}
            for name, tensor in planned.exported.items()
            if len(tensor.parameters) == 1
        }
