"""GPU-to-GPU updates through vLLM's own weight transfer, by NCCL or CUDA IPC.

vLLM loads weights as it receives them, so they are checked afterwards, by reading them back. An engine that fails
midway cannot be used any more and is replaced; one that fails before the first tensor uses the object store's copy.
Source of the protocol: `vllm.distributed.weight_transfer` of vLLM.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from actors.requests import EngineSpec
from actors.weights.receive import TransferStats
from actors.weights.weights_in import engine_module
from rlsys.weights.broadcast import BroadcastFailed, is_open, join
from rlsys.weights.manifest import Bucket, Manifest, WeightTransfer

log = logging.getLogger(__name__)

BACKENDS = {"collective": "nccl", "ipc": "ipc"}
"""Transport -> vLLM's name of it."""


class Rpc(Protocol):
    """The method `collective_rpc` of vLLM's engine, which calls a method of every worker."""

    def __call__(self, method: str, *, kwargs: Mapping[str, Any] | None = None) -> object: ...


def closed(buckets: Sequence[Bucket], wanted: Sequence[Bucket]) -> tuple[Bucket, ...]:
    """Return `wanted` and, transitively, every bucket that shares a module of the engine with one of them.

    vLLM loads whole buckets and rebuilds each module from the tensors that it is given; a missing tensor would leave a
    part of the module undefined.
    """
    found, modules = set(wanted), {engine_module(name) for bucket in wanted for name in bucket.names}
    while more := {b for b in buckets if b not in found and modules & set(map(engine_module, b.names))}:
        found |= more
        modules |= {engine_module(name) for bucket in more for name in bucket.names}
    return tuple(bucket for bucket in buckets if bucket in found)


def take_natively(
    rpc: Rpc,
    spec: EngineSpec,
    transfer: WeightTransfer,
    wanted: Sequence[Bucket],
    manifest: Manifest,
    begin: Callable[[], None],
) -> TransferStats | None:
    """Load the buckets GPU to GPU; return None if that is not possible and nothing was touched.

    begin: called before the engine's weights change.
    """
    if spec.device != "cuda" or spec.weights.transport not in BACKENDS:
        return None
    needed = closed(transfer.buckets, wanted)
    if spec.weights.transport == "ipc":
        # the rendezvous closes at the learner's next update, which changes the tensors behind the handles
        is_current = transfer.rendezvous is not None and is_open(transfer.rendezvous)
        return _take_by_ipc(rpc, needed, manifest, begin) if is_current else None
    try:
        member = join(transfer, needed)
        info = json.loads(member.wait_for("nccl"))
    except BroadcastFailed as error:
        log.warning("%s; fetching the weights from the object store", error)
        return None
    offset = 1 + (member.rank - 1) * spec.rollout.tensor_parallel_size
    rpc("init_weight_transfer_engine", kwargs={"init_info": {**info, "rank_offset": offset}})
    begin()
    rpc("start_weight_update")
    for index in member.indices:
        rpc("update_weights", kwargs={"update_info": update_info(transfer.buckets[index].names, manifest)})
    rpc("finish_weight_update")
    rpc("shutdown_weight_transfer_engine")  # the next update has another process group
    moved = sum(transfer.buckets[index].num_bytes for index in member.indices)
    return TransferStats(broadcast_bytes=moved, num_loaded=len(manifest), num_tensors=len(manifest))


def _take_by_ipc(
    rpc: Rpc, needed: Sequence[Bucket], manifest: Manifest, begin: Callable[[], None]
) -> TransferStats | None:
    gpu = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    if not all(gpu in bucket.handles.get(name, {}) for bucket in needed for name in bucket.names):
        log.warning("the learner has no weights on this engine's GPU; fetching them from the object store")
        return None
    rpc("init_weight_transfer_engine", kwargs={"init_info": {"packed": False}})
    begin()
    rpc("start_weight_update")
    for bucket in needed:
        handles = [dict(bucket.handles[name]) for name in bucket.names]
        rpc("update_weights", kwargs={"update_info": {**update_info(bucket.names, manifest), "ipc_handles": handles}})
    rpc("finish_weight_update")
    return TransferStats(num_loaded=sum(len(bucket.names) for bucket in needed), num_tensors=len(manifest))


def update_info(names: Sequence[str], manifest: Manifest) -> dict[str, list[Any]]:
    """Return vLLM's description of a bucket's tensors, in the order in which they are sent."""
    specs = [manifest[name].spec for name in names]
    return {
        "names": list(names),
        "dtype_names": [spec.dtype for spec in specs],
        "shapes": [list(spec.shape) for spec in specs],
    }
