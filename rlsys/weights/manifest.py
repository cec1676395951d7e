"""Weights as named bytes: the one form in which they are compared, shipped and named.

Everything is numpy, because bfloat16 has no numpy dtype a tensor travels as its
raw bytes with its dtype's name beside it.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

HASH_THREADS = min(8, len(os.sched_getaffinity(0)))
"""hashlib lets other threads run while it hashes."""
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


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """A tensor's line in a manifest. sha256: of its bytes, hex."""

    spec: TensorSpec
    sha256: str


Manifest = Mapping[str, TensorEntry]
"""What weights are, by name: enough to check them one by one."""


def entry_of(tensor: NamedTensor) -> TensorEntry:
    """The tensor's line in a manifest."""
    data = np.ascontiguousarray(tensor.data).data
    return TensorEntry(spec=tensor.spec, sha256=hashlib.sha256(data).hexdigest())


def manifest_of(tensors: Mapping[str, NamedTensor], threads: int = HASH_THREADS) -> dict[str, TensorEntry]:
    """A line for each tensor. What is there under two names is hashed once."""
    distinct = list({id(tensor): tensor for tensor in tensors.values()}.values())
    if threads > 1 and sum(tensor.data.nbytes for tensor in distinct) >= THREADS_PAY_BYTES:
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(entry_of, distinct))
    else:
        found = [entry_of(tensor) for tensor in distinct]
    by_id = {id(tensor): entry for tensor, entry in zip(distinct, found, strict=True)}
    return {name: by_id[id(tensor)] for name, tensor in tensors.items()}


def digest_of(manifest: Manifest) -> str:
    """SHA-256 (hex) over the manifest's lines in the order of the names.

    What did not change need not be hashed again for it.
    """
    sha = hashlib.sha256()
    for name in sorted(manifest):
        entry = manifest[name]
        shape = ",".join(map(str, entry.spec.shape))
        sha.update(f"{name}|{shape}|{entry.spec.dtype}|{entry.sha256}\n".encode())
    return sha.hexdigest()


def digest(tensors: Mapping[str, NamedTensor]) -> str:
    """The digest that names these weights everywhere: in messages, checkpoints and summaries."""
    return digest_of(manifest_of(tensors))


class RunningDigest:
    """`digest` of tensors that come one at a time, each once."""

    def __init__(self) -> None:
        self._entries: dict[str, TensorEntry] = {}

    def add(self, name: str, tensor: NamedTensor) -> None:
        """Take in one tensor. Raises ValueError where its name came before."""
        if name in self._entries:
            raise ValueError(f"{name} came twice; a tensor is digested once.")
        self._entries[name] = entry_of(tensor)

    def hexdigest(self) -> str:
        """Of everything that was added."""
        return digest_of(self._entries)


def differences(expected: Mapping[str, TensorSpec], got: Mapping[str, TensorSpec]) -> list[str]:
    """One line for each name, shape or dtype in which `got` departs from `expected`; [] when none."""
    lines = [f"{name}: missing" for name in sorted(expected.keys() - got.keys())]
    lines += [f"{name}: not a weight of this model" for name in sorted(got.keys() - expected.keys())]
    for name in sorted(expected.keys() & got.keys()):
        want, have = expected[name], got[name]
        if want != have:
            lines.append(f"{name}: expected {want.dtype}{list(want.shape)}, got {have.dtype}{list(have.shape)}")
    return lines


@dataclass(frozen=True, kw_only=True, eq=False)
class Bucket:
    """Tensors that travel together.

    num_bytes: what is moved; a tensor under two names counts once.
    stored: reference to their `dict[str, NamedTensor]` in the object store.
    handles: for tensors on a GPU, by name, what opens each from another process on the same GPU: a mapping from
    the GPU's UUID to the arguments of torch's `rebuild_cuda_tensor`.
    """

    names: tuple[str, ...]
    num_bytes: int
    stored: Any
    handles: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Rendezvous:
    """Where the receivers of a broadcast meet its sender; gone once the broadcast is over.

    name: of this broadcast and no other.  num_receivers: those that are expected; the broadcast begins when all are
    there, or `timeout_s` after it was opened without those that are not. Every further step may take `timeout_s`.
    """

    name: str
    host: str
    port: int
    num_receivers: int
    timeout_s: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Shipment:
    """How to get the bytes of one version: always from the object store, and from a faster way where there is one.

    timeout_s: what fetching one bucket may take.
    """

    buckets: tuple[Bucket, ...]
    timeout_s: float
    rendezvous: Rendezvous | None = None


def plan_buckets(sizes: Mapping[Key, int], max_bytes: int) -> list[list[Key]]:
    """Keys in their order, put together up to `max_bytes`; one that is larger goes alone."""
    buckets: list[list[Key]] = []
    used = 0
    for key, size in sizes.items():
        if not buckets or used + size > max_bytes:
            buckets.append([])
            used = 0
        buckets[-1].append(key)
        used += size
    return buckets
