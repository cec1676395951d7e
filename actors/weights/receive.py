"""Reception of weights: the buckets that an engine needs, and their sources and checks.

A bucket is checked against the manifest before any of its tensors is passed on. Buckets in the object store are all
checked before the first is passed on, so that a bad one leaves the engine unchanged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import ray

from actors.errors import WeightsGone, WeightsRefused
from actors.weights.host_copy import HostCopy
from actors.weights.weights_in import bucket_problems, refused
from rlsys.clock import Clock
from rlsys.weights.broadcast import BroadcastFailed, receive_broadcast
from rlsys.weights.delta import as_sent
from rlsys.weights.manifest import Bucket, Manifest, NamedTensors, WeightTransfer
from rlsys.weights.stored import stored_tensors
from rlsys.weights.version import WeightVersion

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class TransferStats:
    """The size of one update: bytes by source, and the number of tensors loaded.

    delta_bytes: those of both that were deltas.
    num_verified: tensors of the version that were read back from every worker of the engine and compared.
    parts_s: seconds by part: "transfer" with the checks before loading, "engine_load", "verify".
    """

    stored_bytes: int = 0
    broadcast_bytes: int = 0
    delta_bytes: int = 0
    num_loaded: int = 0
    num_tensors: int = 0
    num_verified: int = 0
    parts_s: dict[str, float] = field(default_factory=dict)


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
        return stored_tensors(bucket, timeout_s)
    except ray.exceptions.RayError as error:
        is_gone = isinstance(error, (ray.exceptions.ObjectLostError, ray.exceptions.RayActorError))
        kind = WeightsGone if is_gone else WeightsRefused
        raise kind(
            f"a bucket of weights ({bucket.names[0]}, …) could not be fetched in {timeout_s:g} s: "
            f"{type(error).__name__}: {error}"
        ) from error


def receive(
    transfer: WeightTransfer,
    buckets: Sequence[Bucket],
    version: WeightVersion,
    stats: TransferStats,
    base: HostCopy | None = None,
) -> Iterator[NamedTensors]:
    """Yield the checked tensors of one bucket after another, and count them in `stats`. Raises WeightsRefused.

    Buckets that a broadcast loses or damages are fetched from the object store instead.
    base: to apply deltas to, and to keep a copy of the tensors; None takes whole buckets. A delta that is damaged is
    replaced by the whole bucket.
    """
    taking = _Taking(transfer, version, stats, base)
    remaining = list(buckets)
    if transfer.rendezvous is not None:  # even if no bucket is needed, because the sender waits for all
        as_deltas = [bucket for bucket in remaining if taking.can_apply(bucket)]
        try:
            for bucket, tensors, as_delta in receive_broadcast(transfer, tuple(remaining), version.manifest, as_deltas):
                whole, problems = taking.checked(bucket, tensors, as_delta=as_delta)
                if problems:
                    log.warning("version %d: broadcast bucket rejected: %s", version.version, problems[0])
                    continue
                stats.broadcast_bytes += as_sent(bucket, as_delta=as_delta).num_bytes
                remaining.remove(bucket)
                yield whole
        except BroadcastFailed as error:
            log.warning("version %d: %s; fetching the rest from the object store", version.version, error)
    # those made of deltas are in the copy; the others are read in place again
    made = {bucket: taking.from_store(bucket) for bucket in remaining}
    for bucket in remaining:
        yield made[bucket] or fetch(bucket, transfer.timeout_s)


def timed(parts: Iterator[NamedTensors], clock: Clock) -> Iterator[NamedTensors]:
    """Yield the same, with the time that each takes to come as phase "transfer"."""
    while True:
        with clock("transfer"):
            part = next(parts, None)
        if part is None:
            return
        yield part


class _Taking:
    """The checks of one update's buckets, whole or as deltas."""

    def __init__(
        self, transfer: WeightTransfer, version: WeightVersion, stats: TransferStats, base: HostCopy | None
    ) -> None:
        self._transfer, self._version, self._stats, self._base = transfer, version, stats, base

    def can_apply(self, bucket: Bucket) -> bool:
        """Return whether the copy is what the bucket's delta starts from."""
        return self._base is not None and self._base.fits(bucket.delta)

    def checked(self, bucket: Bucket, tensors: NamedTensors, *, as_delta: bool) -> tuple[NamedTensors, list[str]]:
        """Return the bucket's whole tensors, and what is wrong with them; they are in the copy if nothing is."""
        manifest = self._version.manifest
        if as_delta and self._base is not None and bucket.delta is not None:
            pieces = bucket.delta
            if problems := bucket_problems(tensors, pieces.bucket.names, pieces.manifest):
                return {}, problems
            try:
                tensors = self._base.changed(bucket, tensors)
            except IndexError as error:
                return {}, [f"{bucket.names[0]}, …: the delta does not fit: {error}"]
        problems = bucket_problems(tensors, bucket.names, manifest)
        if self._base is not None:
            self._base.forget(bucket) if problems else self._base.keep(tensors, manifest)
        if as_delta and not problems:
            self._stats.delta_bytes += as_sent(bucket, as_delta=True).num_bytes
        return tensors, problems

    def from_store(self, bucket: Bucket) -> NamedTensors | None:
        """Check a bucket in the object store; return its tensors if they are made of a delta, None if it is whole.

        Raises WeightsRefused if the whole bucket is bad.
        """
        for as_delta in (True, False) if self.can_apply(bucket) else (False,):
            sent = as_sent(bucket, as_delta=as_delta)
            whole, problems = self.checked(bucket, fetch(sent, self._transfer.timeout_s), as_delta=as_delta)
            if not problems:
                self._stats.stored_bytes += sent.num_bytes
                return whole if as_delta else None
            if as_delta:
                log.warning("version %d: delta rejected: %s", self._version.version, problems[0])
        raise refused(self._version, problems)
