"""Weights, and their transfers, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import ray

from rlsys.weights.manifest import Bucket, NamedTensor, TensorSpec, WeightTransfer, digest_of, manifest_of, plan_buckets
from rlsys.weights.stored import stored_tensors
from rlsys.weights.version import WeightVersion
from tests.support.pace import patience

NamedTensors = Mapping[str, NamedTensor]


def named(array: np.ndarray) -> NamedTensor:
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return NamedTensor(spec=TensorSpec(shape=array.shape, dtype=str(array.dtype)), data=data)


def version_of(tensors: NamedTensors, version: int = 0, kind: Literal["full", "adapter"] = "full") -> WeightVersion:
    """Return the version of some tensors, with their digest and manifest."""
    manifest = manifest_of(tensors)
    return WeightVersion(
        version=version,
        transport="object_store",
        num_tensors=len(tensors),
        num_bytes=sum(tensor.data.nbytes for tensor in tensors.values()),
        digest=digest_of(manifest),
        kind=kind,
        manifest=manifest,
    )


def transfer_of(tensors: NamedTensors, max_bytes: int = 1 << 20) -> WeightTransfer:
    """Put tensors into the object store, in buckets of at most `max_bytes`, and return their transfer."""
    buckets = plan_buckets({name: tensor.data.nbytes for name, tensor in tensors.items()}, max_bytes)
    return WeightTransfer(
        buckets=tuple(bucket_of({name: tensors[name] for name in names}) for names in buckets), timeout_s=patience(30.0)
    )


def bucket_of(tensors: NamedTensors) -> Bucket:
    size = sum(tensor.data.nbytes for tensor in tensors.values())
    return Bucket(names=tuple(tensors), num_bytes=size, stored=ray.put(dict(tensors)))


def tensors_of(transfer: WeightTransfer) -> dict[str, NamedTensor]:
    """Return all tensors of a transfer."""
    return {name: tensor for bucket in transfer.buckets for name, tensor in stored_tensors(bucket).items()}
