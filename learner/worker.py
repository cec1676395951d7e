"""A learner rank as a Ray actor, each method of which is one call into `learner.engine`."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray.exceptions import ObjectLostError

from learner.loss.metrics import RankStats
from learner.packing.rows import Row
from learner.packing.shards import RankShard
from learner.spec import LearnerSpec
from rlsys.clock import Turn
from rlsys.config.weights import wants_deltas
from rlsys.errors import FramesLost
from rlsys.lean_imports import lean_imports
from rlsys.weights.manifest import Manifest, Uncopied, WeightTransfer, digest_of
from rlsys.weights.sockets import rank_sockets
from rlsys.weights.version import WeightVersion

if TYPE_CHECKING:
    from learner.engine import LearnerEngine
    from rlsys.weights.broadcast import BroadcastResult, BroadcastSender

LOOPBACK = "127.0.0.1"

MicroBatches = tuple[tuple[Row, ...], ...]


class LearnerWorker:
    """One process, one rank. The process outlives the models that it trains one after another."""

    def __init__(self, rank: int, num_ranks: int, device: str, threads: int | None, timeout_s: float) -> None:
        self._rank, self._num_ranks = rank, num_ranks
        self._device, self._threads, self._timeout_s = device, threads, timeout_s
        self._store: Any = None
        self._engine: LearnerEngine | None = None
        self._transfer: WeightTransfer | None = None
        self._manifest: Manifest = {}
        self._sender: BroadcastSender | None = None
        self._cues: Any = None
        self._present_since_s = 0.0

    def prepare(self) -> None:
        """Import the libraries that a rank needs; further calls do nothing.

        The imports are not at the top of the module, because the driver imports it without torch and DeepSpeed, and not
        in `__init__`, because a failure there would be reported as a lost process.
        """
        with lean_imports():
            import torch
            import transformers

            import learner.engine  # noqa: F401
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        transformers.utils.logging.disable_progress_bar()
        # Ray limits a process to the cores that it reserved, which for a rank with a GPU is one
        torch.set_num_threads(self._threads or max(1, len(os.sched_getaffinity(0)) // self._num_ranks))

    def where(self) -> tuple[str, str]:
        """Return the id and the address of the node that this rank is on."""
        return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()

    def open_store(self, host: str) -> int:
        """Open the ranks' store on rank 0 and return its port on `host`."""
        from learner.engine import open_store

        self._store = open_store(self._num_ranks, host, self._timeout_s)
        return self._store.port

    def join(self, host: str, port: int, engines_join: bool) -> None:
        """Become a rank; return once all ranks have joined. engines_join: see `rank_sockets`."""
        from learner.engine import find_store, join_ranks
        from learner.weights.sending import Cues

        _, address = self.where()
        os.environ.update(rank_sockets(address, ranks_share_node=host == LOOPBACK, engines_join=engines_join))
        self._store = self._store or find_store(self._num_ranks, host, port, self._timeout_s)
        join_ranks(self._rank, self._num_ranks, self._store, device=self._device, timeout_s=self._timeout_s)
        self._cues = Cues(self._store, self._timeout_s)

    def load(self, spec: LearnerSpec) -> None:
        """Build the model and the optimiser, after freeing earlier ones."""
        from learner.engine import LearnerEngine

        if self._engine is not None:
            self._engine.close()
        self._present_since_s = time.monotonic()
        self._engine = LearnerEngine(spec)
        self._transfer, self._manifest = None, {}

    @property
    def _loaded(self) -> LearnerEngine:
        if self._engine is None:
            raise RuntimeError("the learner has no model yet; call load(spec) first.")
        return self._engine

    def update(self, shard: RankShard) -> RankStats:
        """Run one optimiser update, see `LearnerEngine.update`."""
        self._sender = None  # tensors shared by CUDA IPC are about to change
        return self._loaded.update(replace(shard, micro_batches=self._fetched(shard.micro_batches)))

    def logprobs(self, micro_batches: MicroBatches, reference: bool = False) -> list[list[list[np.ndarray]]]:
        """Return log-probs, see `LearnerEngine.logprobs`."""
        return self._loaded.logprobs(self._fetched(micro_batches), reference=reference)

    def _fetched(self, micro_batches: MicroBatches) -> MicroBatches:
        """Return the rows with their frames, see `with_frames`. Raises on all ranks if any rank lacks frames."""
        lost: tuple[str, ...] = ()
        try:
            micro_batches = with_frames(micro_batches)
        except FramesLost as error:
            lost = error.references
        if lost := self._loaded.any_rank(lost):
            raise FramesLost(lost)
        return micro_batches

    def publish(self, version: int, num_receivers: int = 0) -> tuple[WeightTransfer, WeightVersion] | None:
        """Publish the weights; return their transfer and version on rank 0, None on the others."""
        spec, rendezvous = self._loaded.spec, None
        sends_deltas = spec.sync == "full" and wants_deltas(
            spec.weights, dtype=spec.model.dtype, device=self._device, num_nodes=num_nodes()
        )
        broadcasts = spec.weights.transport == "collective" and num_receivers > 0
        buckets, manifest = self._loaded.publish(
            ray.put,
            ray.get if sends_deltas else None,
            copies_later=broadcasts and not sends_deltas,  # the next deltas begin at the copy
        )
        if not buckets:
            return None
        if spec.weights.transport != "object_store" and num_receivers:
            from rlsys.weights.broadcast import BroadcastSender

            self._sender = BroadcastSender(ray.util.get_node_ip_address(), num_receivers, spec.weights.timeout_s)
            rendezvous = self._sender.rendezvous
        self._transfer = WeightTransfer(
            buckets=buckets,
            timeout_s=spec.weights.timeout_s,
            rendezvous=rendezvous,
            sends_deltas=sends_deltas,
        )
        self._manifest = manifest
        return self._transfer, replace(describe(manifest, version, spec), published=self._loaded.published)

    def send(self) -> BroadcastResult | None:
        """Broadcast the weights published last from rank 0, and return the outcome; the others gather with it.

        Only rank 0 is called if it has the parameters whole.
        """
        publisher = self._loaded.publisher
        if self._rank:
            for index in self._cues.taken():
                publisher.assist(index)
            return None
        if self._sender is None or self._transfer is None:
            raise RuntimeError("there is nothing to broadcast; call publish with num_receivers first.")
        from learner.weights.sending import Outgoing

        sender, self._sender, spec = self._sender, None, self._loaded.spec
        cues = self._cues if spec.is_partitioned else None
        outgoing = Outgoing(publisher, ray.get, cues)
        channel = None
        if self._device == "cuda":
            from learner.weights.nccl import over_nccl

            ranks_each = spec.rollout.tensor_parallel_size
            channel = partial(over_nccl, ranks_each=ranks_each, live=outgoing.live, live_gathers=spec.is_partitioned)
        with nullcontext() if cues is None else cues.giving():
            return sender.send(self._transfer.buckets, self._manifest, outgoing.tensors, channel)

    def copy(self, stored: Uncopied) -> ray.ObjectRef | None:
        """Put a bucket that was published without a copy into the object store, on rank 0; the others gather with it.

        Only rank 0 is called if it has the parameters whole.
        """
        publisher = self._loaded.publisher
        if self._rank:
            publisher.assist(stored.index)
            return None
        return ray.put(publisher.copy(stored))

    def offload(self, keeps_parameters: bool) -> Turn:
        """Move the state to host memory, see `LearnerEngine.offload`, and return since when it was on the device."""
        if not keeps_parameters:
            self._sender = None  # handles of shared tensors lead nowhere from now on
        self._loaded.offload(keeps_parameters=keeps_parameters)
        return Turn(start_s=self._present_since_s, end_s=time.monotonic(), holder=f"rank {self._rank}")

    def reload(self) -> None:
        """Move the state back to the device."""
        self._present_since_s = time.monotonic()
        self._loaded.reload()

    def save(self, folder: Path) -> None:
        """Save a checkpoint, see `LearnerEngine.save`."""
        self._loaded.save(folder)

    def require_data(self, folder: Path) -> None:
        """Check a checkpoint's files, see `learner.checkpoint_files.require_data`."""
        from learner.checkpoint_files import require_data

        require_data(folder)

    def restore(self, folder: Path, scratch: Path | None) -> None:
        """Restore a checkpoint, see `LearnerEngine.restore`."""
        self._loaded.restore(folder, scratch)

    def export(self, folder: Path) -> str | None:
        """Write a Hugging Face folder on rank 0 and return the digest of its weights; None on the others."""
        return self._loaded.export(folder)


def num_nodes() -> int:
    """Return the number of the cluster's nodes that are alive."""
    return sum(bool(node["Alive"]) for node in ray.nodes())


def describe(manifest: Manifest, version: int, spec: LearnerSpec) -> WeightVersion:
    """Return the record that names the published weights."""
    return WeightVersion(
        version=version,
        transport=spec.weights.transport,
        num_tensors=len(manifest),
        num_bytes=sum(entry.spec.num_bytes for entry in manifest.values()),
        digest=digest_of(manifest),
        kind=spec.sync,
        manifest=manifest,
    )


def with_frames(micro_batches: Sequence[Sequence[Row]]) -> MicroBatches:
    """Return the rows with all frames fetched from the object store, each clip once and all in one request.

    Raises FramesLost if some are no longer there.
    """
    frames = [clip.frames for rows in micro_batches for row in rows for clip in row.clips]
    refs = list(dict.fromkeys(found for found in frames if isinstance(found, ray.ObjectRef)))
    try:
        arrays = dict(zip(refs, ray.get(refs), strict=True))
    except ObjectLostError as error:
        raise FramesLost(_lost_of(refs)) from error

    def fetched(row: Row) -> Row:
        clips = tuple(
            replace(clip, frames=arrays[clip.frames]) if isinstance(clip.frames, ray.ObjectRef) else clip
            for clip in row.clips
        )
        return replace(row, clips=clips)

    return tuple(tuple(fetched(row) for row in rows) for rows in micro_batches)


def _lost_of(refs: Sequence[ray.ObjectRef]) -> tuple[str, ...]:
    """Return the hex ids of the objects that cannot be fetched."""

    def is_lost(ref: ray.ObjectRef) -> bool:
        try:
            ray.get(ref)
        except ObjectLostError:
            return True
        return False

    return tuple(ref.hex() for ref in refs if is_lost(ref))
