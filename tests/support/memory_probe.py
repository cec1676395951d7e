"""A learner rank that goes through everything a learner does and notes when: its memory is watched from outside.

Usage: `python -m tests.support.memory_probe RANK FOLDER`, for ranks 0 and 1. FOLDER has `cases.json`, names of cases
with `Case`'s fields; each rank writes its steps to `rank_RANK.jsonl` there.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from learner.engine import LearnerEngine, find_store, join_ranks, open_store
from learner.packing.shards import split_batch
from learner.spec import LearnerSpec
from rlsys.config.algorithm import AlgorithmConfig
from rlsys.config.run import LoraConfig, ModelConfig, RolloutConfig, WeightsConfig
from rlsys.weights.broadcast import BroadcastSender, receive_broadcast
from rlsys.weights.manifest import NamedTensors, WeightTransfer
from tests.support.learner import cost_model, learner_config, make_batch, make_group, train_config
from tests.support.pace import patience

NUM_RANKS = 2
SETTLE_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Case:
    """One learner. lora_rank: of its adapters, 0 if all weights are trained. deepspeed: settings of ZeRO."""

    folder: str
    zero_stage: int
    lora_rank: int
    deepspeed: dict[str, Any]


class SharedStore:
    """A store of buckets in shared memory, as Ray's is: what lies there is no process's own."""

    def __init__(self) -> None:
        self._blocks: list[SharedMemory] = []

    def put(self, tensors: NamedTensors) -> NamedTensors:
        """Copy tensors into shared memory and return them as they lie there."""
        distinct = {id(tensor): tensor for tensor in tensors.values()}
        block = SharedMemory(create=True, size=sum(tensor.data.nbytes for tensor in distinct.values()))
        self._blocks.append(block)
        stored, end = {}, 0
        for key, tensor in distinct.items():
            data = np.frombuffer(block.buf, np.uint8, tensor.data.nbytes, end)
            data[:] = tensor.data
            stored[key] = replace(tensor, data=data)
            end += tensor.data.nbytes
        return {name: stored[id(tensor)] for name, tensor in tensors.items()}

    def remove(self) -> None:
        """Remove all blocks; processes that still map them keep them until they end."""
        for block in self._blocks:
            block.unlink()


class Steps:
    """Notes of a rank's steps, one JSON line each."""

    def __init__(self, file: Path) -> None:
        self._file, self.case = file, ""

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a step that all ranks take together."""
        gc.collect()
        dist.barrier()
        time.sleep(SETTLE_S)  # the watcher reads what is held before it
        start = time.monotonic()
        yield
        gc.collect()
        time.sleep(SETTLE_S)  # and after it
        with self._file.open("a") as stream:
            stream.write(json.dumps({"case": self.case, "step": name, "start": start, "end": time.monotonic()}) + "\n")


def spec_of(case: Case) -> LearnerSpec:
    return LearnerSpec(
        model=ModelConfig(path=Path(case.folder), dtype="float32"),
        rollout=RolloutConfig(max_tokens=8),
        train=train_config(),
        algorithm=AlgorithmConfig(),
        learner=learner_config(
            zero_stage=case.zero_stage,
            lora=LoraConfig(rank=case.lora_rank) if case.lora_rank else LoraConfig(),
            deepspeed={"zero_optimization": case.deepspeed},
        ),
        weights=WeightsConfig(bucket_mib=4),
    )


def go_through(case: Case, rank: int, out: Path, steps: Steps) -> None:
    """Load, update twice (DeepSpeed notes the order of modules in the first), publish, broadcast, save and export."""
    rng = np.random.default_rng(0)
    groups = [make_group(rng, str(index), (), (2, 3), num_text=4) for index in range(NUM_RANKS)]
    shard = split_batch(make_batch(rng, groups), NUM_RANKS, 1 << 20, cost_model())[rank]
    store = SharedStore()
    with steps("load"):
        engine = LearnerEngine(spec_of(case))
    for number in (1, 2):
        with steps(f"update {number}"):
            engine.update(shard)
    with steps("publish"):
        buckets, manifest = engine.publish(store.put)
    with steps("broadcast"):
        broadcast(rank, buckets, manifest)
    del buckets
    with steps("save"):
        engine.save(out / "checkpoint")
    with steps("export"):
        engine.export(out / "model")
    engine.close()
    store.remove()


def broadcast(rank: int, buckets: Any, manifest: Any) -> None:
    """Send from rank 0 what it published; rank 1 receives it as an engine does, one bucket after another."""
    given: list[Any] = [None]
    sender = None
    if rank == 0:
        sender = BroadcastSender("127.0.0.1", 1, patience(60.0))
        bare = tuple(replace(bucket, stored=None) for bucket in buckets)
        given = [(WeightTransfer(buckets=bare, timeout_s=patience(60.0), rendezvous=sender.rendezvous), manifest)]
    dist.broadcast_object_list(given)
    transfer, manifest = given[0]
    if sender is not None:
        stored = {bucket.names: bucket.stored for bucket in buckets}
        sent = sender.send(transfer.buckets, manifest, lambda bucket: stored[bucket.names])
        assert sent.num_receivers == 1 and not sent.problem, sent
        return
    received = 0
    for _, tensors, _ in receive_broadcast(transfer, transfer.buckets, manifest):
        received += len(tensors)
        del tensors
    assert received == len(manifest)


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    port = folder / "port"
    if rank == 0:
        store = open_store(NUM_RANKS, "127.0.0.1", patience(60.0))
        port.with_suffix(".new").write_text(str(store.port))
        port.with_suffix(".new").rename(port)
    else:
        while not port.exists():
            time.sleep(0.05)
        store = find_store(NUM_RANKS, "127.0.0.1", int(port.read_text()), patience(60.0))
    join_ranks(rank, NUM_RANKS, store, device="cpu", timeout_s=patience(120.0))
    steps = Steps(folder / f"rank_{rank}.jsonl")
    for name, fields in json.loads((folder / "cases.json").read_text()).items():
        steps.case = name
        go_through(Case(**fields), rank, folder / name, steps)


if __name__ == "__main__":
    main()
