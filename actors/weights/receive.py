"""Reception of weights: the buckets that an engine needs, and their sources and checks.

A bucket is checked against the manifest before any of its tensors is passed on. Buckets in the object store are all
checked before the first is passed on, so that a bad one leaves the engine unchanged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import ray

from actors.errors import WeightsGone, WeightsRefused
from actors.weights.weights_in import bucket_problems, refused
from rlsys.weights.broadcast import BroadcastFailed, receive_broadcast
from rlsys.weights.manifest import Bucket, Manifest, NamedTensors, WeightTransfer
from rlsys.weights.version import WeightVersion

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class TransferStats:
    """The size of one update: bytes by source, and the number of tensors loaded.

    num_verified: tensors of the version that were read back from every worker of the engine and compared.
    """

    stored_bytes: int = 0
    broadcast_bytes: int = 0
    num_loaded: int = 0
    num_tensors: int = 0
    num_verified: int = 0


def changed_names(manifest: Manifest, held: Manifest, module_of: Callable[[str], str]) -> set[str]:
    """Return the tensors to load into an engine that holds `held`: those of every module in which one differs.

    module_of: the engine's module that a tensor is loaded into. vLLM rebuilds a module from the tensors that it is
    given, so a missing tensor would leave a part of it undefined.
    """
    touched = {module_of(name) for name, entry in manifest.items() if held.get(name) != entry}
    return {name for name in manifest if module_of(name) in touched}


def holding(buckets: Sequence[Bucket], names: Collection[str]) -> tuple[Bucket, ...]:
    """Return the buckets that hold at least one of the tensors."""
    wanted = set(names)
    return tuple(bucket for bucket in buckets if not wanted.isdisjoint(bucket.names))


def fetch(bucket: Bucket, timeout_s: float) -> NamedTensors:
    """Return the bucket's tensors, as views of the object store's memory. Raises WeightsRefused if that fails."""
    try:
        return ray.get(bucket.stored, timeout=timeout_s)
    except ray.exceptions.RayError as error:
        kind = WeightsGone if isinstance(error, ray.exceptions.ObjectLostError) else WeightsRefused
        raise kind(
            f"a bucket of weights ({bucket.names[0]}, …) could not be fetched in weights.timeout_s={timeout_s:g} s: "
            f"{type(error).__name__}: {error}"
        ) from error


def receive(
    transfer: WeightTransfer, buckets: Sequence[Bucket], version: WeightVersion, stats: TransferStats
) -> Iterator[NamedTensors]:
    """Yield the checked tensors of one bucket after another, and count them in `stats`. Raises WeightsRefused.

    Buckets that a broadcast loses or damages are fetched from the object store instead.
    """
    remaining = list(buckets)
    if transfer.rendezvous is not None:  # even if no bucket is needed, because the sender waits for all
        try:
            for bucket, tensors in receive_broadcast(transfer, tuple(remaining), version.manifest):
                if problems := bucket_problems(tensors, bucket.names, version.manifest):
                    log.warning("version %d: broadcast bucket rejected: %s", version.version, problems[0])
                    continue
                stats.broadcast_bytes += bucket.num_bytes
                remaining.remove(bucket)
                yield tensors
        except BroadcastFailed as error:
            log.warning("version %d: %s; fetching the rest from the object store", version.version, error)
    for bucket in remaining:
        if problems := bucket_problems(fetch(bucket, transfer.timeout_s), bucket.names, version.manifest):
            raise refused(version, problems)
        stats.stored_bytes += bucket.num_bytes
    for bucket in remaining:
        yield fetch(bucket, transfer.timeout_s)
