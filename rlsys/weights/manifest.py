"""Weights as named bytes: the one form in which they are compared, transferred and identified.

Everything is numpy: bfloat16 has no numpy dtype, so a tensor travels as its raw bytes together with the name of its
dtype.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import numpy as np

HASH_THREADS = min(8, len(os.sched_getaffinity(0)))
"""hashlib releases the GIL while it hashes."""
THREADS_PAY_BYTES = 8 << 20

Key = TypeVar("Key")


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Shape and dtype name ("float32", "bfloat16", ...) of one tensor."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        """Size of the data."""
        return math.prod(self.shape) * (2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize)


@dataclass(frozen=True, kw_only=True, eq=False)
class NamedTensor:
    """A tensor as raw bytes: data is u8 [num_bytes], C order."""

    spec: TensorSpec
    data: np.ndarray


NamedTensors: TypeAlias = Mapping[str, NamedTensor]
"""Tensors by name. One that has two names is one object under both."""


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """A tensor's line in a manifest. sha256: of its bytes, hex."""

    spec: TensorSpec
    sha256: str


Manifest: TypeAlias = Mapping[str, TensorEntry]
"""Spec and hash of every tensor of a set of weights, by name: enough to verify them one by one."""


def entry_of(tensor: NamedTensor) -> TensorEntry:
    """Return the tensor's line in a manifest."""
    data = np.ascontiguousarray(tensor.data).data
    return TensorEntry(spec=tensor.spec, sha256=hashlib.sha256(data).hexdigest())


def manifest_of(tensors: NamedTensors, threads: int = HASH_THREADS) -> dict[str, TensorEntry]:
    """Return the manifest of some tensors. A tensor with two names is hashed once."""
    distinct = list({id(tensor): tensor for tensor in tensors.values()}.values())
    if threads > 1 and sum(tensor.data.nbytes for tensor in distinct) >= THREADS_PAY_BYTES:
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(entry_of, distinct))
    else:
        found = [entry_of(tensor) for tensor in distinct]
    by_id = {id(tensor): entry for tensor, entry in zip(distinct, found, strict=True)}
    return {name: by_id[id(tensor)] for name, tensor in tensors.items()}


def digest_of(manifest: Manifest) -> str:
    """Return the SHA-256 (hex) over the manifest's lines, sorted by name.

    A new digest needs no tensor hashed again that did not change.
    """
    sha = hashlib.sha256()
    for name in sorted(manifest):
        entry = manifest[name]
        shape = ",".join(map(str, entry.spec.shape))
        sha.update(f"{name}|{shape}|{entry.spec.dtype}|{entry.sha256}\n".encode())
    return sha.hexdigest()


def digest(tensors: NamedTensors) -> str:
    """Return the digest that identifies these weights everywhere: in messages, checkpoints and summaries."""
    return digest_of(manifest_of(tensors))


class RunningDigest:
    """The `digest` of tensors that are added one at a time, each once."""

    def __init__(self) -> None:
        self._entries: dict[str, TensorEntry] = {}

    def add(self, name: str, tensor: NamedTensor) -> None:
        """Add one tensor. Raises ValueError if its name was added before."""
        if name in self._entries:
            raise ValueError(f"{name} was added twice; each tensor is digested once.")
        self._entries[name] = entry_of(tensor)

    def hexdigest(self) -> str:
        """Return the digest of everything added so far."""
        return digest_of(self._entries)


def differences(expected: Mapping[str, TensorSpec], got: Mapping[str, TensorSpec]) -> list[str]:
    """Return one line for each name, shape or dtype in which `got` differs from `expected`; [] when none does."""
    lines = [f"{name}: missing" for name in sorted(expected.keys() - got.keys())]
    lines += [f"{name}: not a weight of this model" for name in sorted(got.keys() - expected.keys())]
    for name in sorted(expected.keys() & got.keys()):
        want, have = expected[name], got[name]
        if want != have:
            lines.append(f"{name}: expected {want.dtype}{list(want.shape)}, got {have.dtype}{list(have.shape)}")
    return lines


@dataclass(frozen=True, kw_only=True, eq=False)
class Bucket:
    """Tensors that are transferred together.

    num_bytes: what is moved; a tensor with two names counts once.
    stored: reference to their `NamedTensors` in the object store.
    handles: for tensors on a GPU, by name, what opens each from another process on the same GPU: a mapping from
    the GPU's UUID to the arguments of torch's `rebuild_cuda_tensor`.
    """

    names: tuple[str, ...]
    num_bytes: int
    stored: Any
    handles: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Rendezvous:
    """The address at which the receivers of one broadcast meet its sender; closed once the broadcast has ended.

    name: unique to this broadcast.  num_receivers: how many are expected; the broadcast begins when all have joined,
    or `timeout_s` after it was opened without those that have not. Every further step may take `timeout_s`.
    """

    name: str
    host: str
    port: int
    num_receivers: int
    timeout_s: float


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightTransfer:
    """How to get the bytes of one version: always from the object store, and by broadcast where there is one.

    timeout_s: what fetching one bucket may take.
    """

    buckets: tuple[Bucket, ...]
    timeout_s: float
    rendezvous: Rendezvous | None = None


def plan_buckets(sizes: Mapping[Key, int], max_bytes: int) -> list[list[Key]]:
    """Group keys, in their order, up to `max_bytes` a bucket; a larger one has a bucket to itself."""
    buckets: list[list[Key]] = []
    used = 0
    for key, size in sizes.items():
        if not buckets or used + size > max_bytes:
            buckets.append([])
            used = 0
        buckets[-1].append(key)
        used += size
    return buckets
