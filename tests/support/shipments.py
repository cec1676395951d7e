"""Weights as tests send and read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import ray

from rlsys.weights.manifest import Bucket, NamedTensor, Shipment, TensorSpec, digest_of, manifest_of, plan_buckets
from rlsys.weights.version import WeightVersion

Payload = Mapping[str, NamedTensor]


def named(array: np.ndarray) -> NamedTensor:
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return NamedTensor(spec=TensorSpec(shape=array.shape, dtype=str(array.dtype)), data=data)


def version_of(payload: Payload, version: int = 0, kind: Literal["full", "adapter"] = "full") -> WeightVersion:
    """The version that a payload truly is."""
    manifest = manifest_of(payload)
    return WeightVersion(
        version=version,
        transport="object_store",
        num_tensors=len(payload),
        num_bytes=sum(tensor.data.nbytes for tensor in payload.values()),
        digest=digest_of(manifest),
        kind=kind,
        manifest=manifest,
    )


def ship(payload: Payload, max_bytes: int = 1 << 20) -> Shipment:
    """The payload in the object store, in several buckets."""
    buckets = plan_buckets({name: tensor.data.nbytes for name, tensor in payload.items()}, max_bytes)
    return Shipment(
        buckets=tuple(bucket_of({name: payload[name] for name in names}) for names in buckets), timeout_s=30
    )


def bucket_of(payload: Payload) -> Bucket:
    size = sum(tensor.data.nbytes for tensor in payload.values())
    return Bucket(names=tuple(payload), num_bytes=size, stored=ray.put(dict(payload)))


def payload_of(shipment: Shipment) -> dict[str, NamedTensor]:
    """All that was shipped."""
    return {name: tensor for bucket in shipment.buckets for name, tensor in ray.get(bucket.stored).items()}
