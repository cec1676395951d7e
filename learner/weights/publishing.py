"""What a learner rank publishes, bucket by bucket: no rank ever holds more of the model whole than one bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from learner.weights.weights_out import Gather, Outlet, assist, collect
from rlsys.weights.manifest import Bucket, NamedTensor, TensorEntry, manifest_of, plan_buckets

Put = Callable[[Mapping[str, NamedTensor]], Any]
"""Stores a bucket's tensors and returns the reference by which others get them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Parcel:
    """The outlets of one bucket. is_frozen: none of them has a parameter that is trained."""

    outlets: Mapping[str, Outlet]
    is_frozen: bool

    @property
    def num_bytes(self) -> int:
        """What is moved; what leaves under two names counts once."""
        return sum(outlet.spec.num_bytes for outlet in dict.fromkeys(self.outlets.values()))


def plan_parcels(outlets: Mapping[str, Outlet], max_bytes: int) -> list[Parcel]:
    """All outlets in parcels of at most `max_bytes`, frozen ones apart from trained ones, in their order otherwise.

    What leaves under two names (a tied head) is in one parcel under both.
    """
    names: dict[Outlet, list[str]] = {}
    for name, outlet in outlets.items():
        names.setdefault(outlet, []).append(name)
    parcels = []
    for is_frozen in (False, True):
        sizes = {outlet: outlet.spec.num_bytes for outlet in names if _is_frozen(outlet) == is_frozen}
        for chosen in plan_buckets(sizes, max_bytes):
            parcel = {name: outlet for outlet in chosen for name in names[outlet]}
            parcels.append(Parcel(outlets=parcel, is_frozen=is_frozen))
    return parcels


def _is_frozen(outlet: Outlet) -> bool:
    return not any(parameter.requires_grad for parameter in outlet.parameters)


class Publisher:
    """Publishes one model again and again; what is frozen is gathered, hashed and stored the first time only.

    All ranks make one and call `publish` together, because gathering a partitioned parameter takes all of them.
    Make another one when the weights were replaced, as by a checkpoint.
    """

    def __init__(
        self, outlets: Mapping[str, Outlet], gather: Gather, max_bytes: int, *, stores: bool, shares: bool = False
    ) -> None:
        """stores: whether this rank puts the weights into the store.  shares: by CUDA IPC too, from its own GPU."""
        self._shares = shares
        self._parcels = plan_parcels(outlets, max_bytes)
        self._gather = gather
        self._stores = stores
        self._kept: dict[int, tuple[Bucket, dict[str, TensorEntry]]] = {}
        self._has_published = False

    def publish(self, put: Put) -> tuple[tuple[Bucket, ...], dict[str, TensorEntry]]:
        """The buckets and what is in them, on the rank that stores; nothing on the others."""
        buckets: list[Bucket] = []
        manifest: dict[str, TensorEntry] = {}
        for bucket, entries in self._published(put):
            buckets.append(bucket)
            manifest.update(entries)
        self._has_published = True
        return tuple(buckets), manifest

    def _published(self, put: Put) -> Iterator[tuple[Bucket, dict[str, TensorEntry]]]:
        for index, parcel in enumerate(self._parcels):
            is_kept = parcel.is_frozen and self._has_published
            if not self._stores:
                if not is_kept:
                    # what leaves under two names is gathered once
                    assist(dict.fromkeys(parcel.outlets.values()), self._gather)
                continue
            found = self._kept[index] if is_kept else self._stored(parcel, put)
            if parcel.is_frozen:
                self._kept[index] = found
            yield found

    def _stored(self, parcel: Parcel, put: Put) -> tuple[Bucket, dict[str, TensorEntry]]:
        payload = collect(parcel.outlets, self._gather)
        bucket = Bucket(
            names=tuple(parcel.outlets), num_bytes=parcel.num_bytes, stored=put(payload), handles=self._handles(parcel)
        )
        return bucket, manifest_of(payload)

    def _handles(self, parcel: Parcel) -> dict[str, dict[str, Any]]:
        """What opens the parcel's own tensors from another process on this GPU; {} where they are not shared."""
        if not self._shares:
            return {}
        from torch.multiprocessing.reductions import reduce_tensor

        gpu = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
        # a merged tensor is made when it is read and gone afterwards: no handle
        return {
            name: {gpu: reduce_tensor(outlet.read())[1]}
            for name, outlet in parcel.outlets.items()
            if len(outlet.parameters) == 1
        }
