"""Buckets in Ray's object store."""

from __future__ import annotations

import ray

from rlsys.weights.manifest import Bucket, NamedTensors


def stored_tensors(bucket: Bucket, timeout_s: float | None = None) -> NamedTensors:
    """Return a bucket's tensors, as views of the object store's memory; wait for a copy that is still to be made."""
    found = ray.get(bucket.stored, timeout=timeout_s)
    # what is made after a broadcast is behind a reference of its own
    return ray.get(found, timeout=timeout_s) if isinstance(found, ray.ObjectRef) else found
