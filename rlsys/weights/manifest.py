"""Weights as named bytes, the form in which they are compared, transferred and identified.

A tensor is its raw bytes in numpy together with the name of its dtype, because numpy has no bfloat16.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar

import numpy as np

from rlsys.weights.checksum import Sums, sums_of

CHECKSUM_THREADS = min(8, len(os.sched_getaffinity(0)))
"""Number of threads that compute checksums; numpy releases the GIL meanwhile."""
PIECE_BYTES = 16 << 20
"""Bytes that a thread does at a time."""
SCHEME = "sum128"
"""What a digest begins with: how the checksums of its tensors are computed."""

Key = TypeVar("Key")


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """The shape and dtype name ("float32", "bfloat16", ...) of one tensor."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        """Size of the data in bytes."""
        return math.prod(self.shape) * (2 if self.dtype == "bfloat16" else np.dtype(self.dtype).itemsize)


@dataclass(frozen=True, kw_only=True, eq=False)
class NamedTensor:
    """A tensor as raw bytes: data is u8 [num_bytes], C order."""

    spec: TensorSpec
    data: np.ndarray


NamedTensors: TypeAlias = Mapping[str, NamedTensor]
"""Tensors by name. A tensor with two names is one object under both."""


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """The entry of a tensor in a manifest. checksum: of its bytes, see `rlsys.weights.checksum`."""

    spec: TensorSpec
    checksum: str


Manifest: TypeAlias = Mapping[str, TensorEntry]
"""Spec and checksum of every tensor of a set of weights, by name, with which they can be verified one by one."""


def entry_of(tensor: NamedTensor) -> TensorEntry:
    """Return the tensor's entry in a manifest."""
    return TensorEntry(spec=tensor.spec, checksum=sums_of(tensor.data).hex)


def manifest_of(tensors: NamedTensors, threads: int = CHECKSUM_THREADS) -> dict[str, TensorEntry]:
    """Return the manifest of some tensors. A tensor with two names is read once."""
    distinct = {id(tensor): tensor for tensor in tensors.values()}
    pieces = [
        (key, start) for key, tensor in distinct.items() for start in range(0, max(1, tensor.data.size), PIECE_BYTES)
    ]

    def sums_of_piece(piece: tuple[int, int]) -> Sums:
        key, start = piece
        return sums_of(distinct[key].data[start : start + PIECE_BYTES], start)

    if threads > 1 and sum(tensor.data.nbytes for tensor in distinct.values()) > PIECE_BYTES:
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(sums_of_piece, pieces))
    else:
        found = [sums_of_piece(piece) for piece in pieces]
    totals = dict.fromkeys(distinct, Sums())
    for (key, _), sums in zip(pieces, found, strict=True):
        totals[key] += sums
    return {name: TensorEntry(spec=tensor.spec, checksum=totals[id(tensor)].hex) for name, tensor in tensors.items()}


def digest_of(manifest: Manifest) -> str:
    """Return "sum128-" and the SHA-256 (hex) over the manifest's entries, sorted by name.

    Only tensors that changed have to be read again for a new digest.
    """
    sha = hashlib.sha256()
    for name in sorted(manifest):
        entry = manifest[name]
        shape = ",".join(map(str, entry.spec.shape))
        sha.update(f"{name}|{shape}|{entry.spec.dtype}|{entry.checksum}\n".encode())
    return f"{SCHEME}-{sha.hexdigest()}"


def are_different(one: str, other: str) -> bool:
    """Return whether two digests say that the weights differ.

    They say nothing if one of them is "", or if they are of different schemes; rlsys 0.1 wrote them without one.
    """
    are_comparable = bool(one and other) and one.rpartition("-")[0] == other.rpartition("-")[0]
    return are_comparable and one != other


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

    num_bytes: size of the transfer; a tensor with two names counts once.
    stored: reference to their `NamedTensors` in the object store, see `rlsys.weights.stored`.
    handles: by name of a tensor on a GPU, a mapping from the GPU's UUID to the arguments of torch's
    `rebuild_cuda_tensor`, which opens the tensor from another process on the same GPU.
    delta: the shorter way for a receiver that holds the version before; None if there is none.
    """

    names: tuple[str, ...]
    num_bytes: int
    stored: Any
    handles: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    delta: Delta | None = None


@dataclass(frozen=True)
class Uncopied:
    """What rank 0 gives for `Bucket.stored` of a bucket that it will copy after the broadcast.

    name: unique.  index: of the bucket in its version.
    """

    name: str
    index: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Delta:
    """What changed in a bucket since a base, see `rlsys.weights.delta`.

    base, entries: entries of the bucket's tensors before and after.  bucket: the pieces.  manifest: of the pieces.
    """

    base: Manifest
    entries: Manifest
    bucket: Bucket
    manifest: Manifest


@dataclass(frozen=True, kw_only=True)
class Rendezvous:
    """The address at which the receivers of one broadcast meet its sender; closed once the broadcast has ended.

    name: unique to this broadcast.  num_receivers: expected number; the broadcast begins when all have joined, or
    `timeout_s` after it was opened, without the missing ones.  timeout_s: also the time limit of every further step.
    """

    name: str
    host: str
    port: int
    num_receivers: int
    timeout_s: float


@dataclass(kw_only=True)
class PublishStats:
    """The learner's end of one version: seconds by part, and sizes.

    gather_s: gathering partitions and copying to the host.  checksum_s, encode_s: checksums; finding what changed.
    store_s: writing to the object store.  stored_bytes: written to it, deltas included.  sent_bytes: what an actor with
    the version before needs, whole buckets or deltas.  num_changed, num_compared: numbers that changed, of those
    compared with the version before.
    """

    gather_s: float = 0.0
    checksum_s: float = 0.0
    encode_s: float = 0.0
    store_s: float = 0.0
    stored_bytes: int = 0
    sent_bytes: int = 0
    num_changed: int = 0
    num_compared: int = 0

    def metrics(self) -> dict[str, float]:
        """Return metrics by name; without the fraction of changed numbers if none were compared."""
        found = {f"weights/{part}": float(getattr(self, part)) for part in ("gather_s", "checksum_s", "store_s")}
        found["weights/bytes"] = float(self.sent_bytes)
        if self.num_compared:
            found["weights/encode_s"] = self.encode_s
            found["weights/changed_frac"] = self.num_changed / self.num_compared
        return found


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightTransfer:
    """The ways to get the bytes of one version: always from the object store, and by broadcast if there is one.

    timeout_s: time limit for fetching one bucket.  sends_deltas: whether receivers should keep a copy of the tensors
    for the deltas of the next version.
    """

    buckets: tuple[Bucket, ...]
    timeout_s: float
    rendezvous: Rendezvous | None = None
    sends_deltas: bool = False


def with_copies(
    transfer: WeightTransfer, known: Mapping[Uncopied, Any], copy: Callable[[Uncopied], Any]
) -> tuple[WeightTransfer, dict[Uncopied, Any]]:
    """Return the transfer with references to the copies that are made after the broadcast, and these references.

    known: those of the version before.  copy: has a bucket copied, when the broadcast has ended, and returns the
    reference at once.
    """
    wanted = [bucket.stored for bucket in transfer.buckets if isinstance(bucket.stored, Uncopied)]
    if not wanted:
        return transfer, {}
    copies = {stored: known[stored] if stored in known else copy(stored) for stored in wanted}
    buckets = tuple(replace(bucket, stored=copies.get(bucket.stored, bucket.stored)) for bucket in transfer.buckets)
    # a broadcast waits for receivers that are missing, and then for one that it loses
    return replace(transfer, buckets=buckets, timeout_s=3 * transfer.timeout_s), copies


def plan_buckets(sizes: Mapping[Key, int], max_bytes: int) -> list[list[Key]]:
    """Return the keys grouped in order into buckets of at most `max_bytes`; a larger one has a bucket to itself."""
    buckets: list[list[Key]] = []
    used = 0
    for key, size in sizes.items():
        if not buckets or used + size > max_bytes:
            buckets.append([])
            used = 0
        buckets[-1].append(key)
        used += size
    return buckets
