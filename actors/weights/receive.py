"""An engine's weights come in: which buckets it needs, from where, and nothing unchecked.

A bucket is checked against the manifest before one of its tensors is handed on. Buckets in the object
store are all checked before the first is handed on, so that a bad one leaves the engine as it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import ray
import torch

from actors.errors import WeightsGone, WeightsRefused
from actors.weights.weights_in import as_tensor, bucket_problems, refused
from rlsys.weights.broadcast import BroadcastFailed
from rlsys.weights.broadcast import received as from_broadcast
from rlsys.weights.manifest import Bucket, Manifest, NamedTensor, Shipment
from rlsys.weights.version import WeightVersion

log = logging.getLogger(__name__)

Payload = Mapping[str, NamedTensor]


@dataclass(kw_only=True)
class Received:
    """What one update took: bytes by way, and tensors that were loaded of those that the version has."""

    stored_bytes: int = 0
    broadcast_bytes: int = 0
    num_loaded: int = 0
    num_tensors: int = 0


def changed_names(manifest: Manifest, held: Manifest, module_of: Callable[[str], str]) -> set[str]:
    """The tensors that must be loaded into an engine that holds `held`: all of every module of which one differs.

    module_of: the engine's module that a tensor is loaded into. vLLM builds a module anew from what it is given,
    so a part of one would leave the rest of it undefined.
    """
    touched = {module_of(name) for name, entry in manifest.items() if held.get(name) != entry}
    return {name for name in manifest if module_of(name) in touched}


def holding(buckets: Sequence[Bucket], names: Collection[str]) -> tuple[Bucket, ...]:
    """The buckets that hold one of the tensors."""
    wanted = set(names)
    return tuple(bucket for bucket in buckets if not wanted.isdisjoint(bucket.names))


def fetch(bucket: Bucket, timeout_s: float) -> Payload:
    """The bucket's tensors, over the object store's own memory. Raises WeightsRefused when they cannot be had."""
    try:
        return ray.get(bucket.stored, timeout=timeout_s)
    except ray.exceptions.RayError as error:
        kind = WeightsGone if isinstance(error, ray.exceptions.ObjectLostError) else WeightsRefused
        raise kind(
            f"a bucket of weights ({bucket.names[0]}, …) could not be fetched in weights.timeout_s={timeout_s:g} s: "
            f"{type(error).__name__}: {error}"
        ) from error


def receive(
    shipment: Shipment, buckets: Sequence[Bucket], version: WeightVersion, received: Received
) -> Iterator[Payload]:
    """The buckets' tensors, one bucket after another, each checked. Raises WeightsRefused.

    A broadcast that fails, or brings what is not in the manifest, is made good from the object store.
    """
    remaining = list(buckets)
    if shipment.rendezvous is not None:  # even without a need: the sender waits for all
        try:
            for bucket, payload in from_broadcast(shipment, tuple(remaining), version.manifest):
                if problems := bucket_problems(payload, bucket.names, version.manifest):
                    log.warning("version %d, as broadcast: %s", version.version, problems[0])
                    continue
                received.broadcast_bytes += bucket.num_bytes
                remaining.remove(bucket)
                yield payload
        except BroadcastFailed as error:
            log.warning("version %d: %s; the rest comes from the object store", version.version, error)
    for bucket in remaining:
        payload = fetch(bucket, shipment.timeout_s)
        if problems := bucket_problems(payload, bucket.names, version.manifest):
            raise refused(version, problems)
        received.stored_bytes += bucket.num_bytes
    for bucket in remaining:
        yield fetch(bucket, shipment.timeout_s)


class Feed:
    """Iterates over tensors for vLLM; an error ends it early and is kept in `error`.

    An exception would leave vLLM's modules half taken apart, and the next update would go on from there.
    """

    def __init__(self, payloads: Iterator[Payload], names: Collection[str]) -> None:
        self._payloads, self._names = payloads, names
        self.error: WeightsRefused | None = None
        self.num_given = 0

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        try:
            for payload in self._payloads:
                for name, tensor in payload.items():
                    if name in self._names:
                        self.num_given += 1
                        yield name, as_tensor(tensor)
        except WeightsRefused as error:
            self.error = error
