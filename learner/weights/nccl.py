"""The sender's side of a broadcast among GPUs to engines that receive through vLLM's weight transfer. Imports vllm."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from rlsys.weights.broadcast import Transmit
from rlsys.weights.manifest import Bucket, NamedTensors, Rendezvous
from rlsys.weights.tensors import as_tensor

if TYPE_CHECKING:
    import torch.distributed as dist

POLL_S = 0.01


@contextmanager
def over_nccl(
    rendezvous: Rendezvous,
    store: dist.Store,
    num_members: int,
    get: Callable[[Bucket], NamedTensors],
    ranks_each: int,
) -> Iterator[Transmit]:
    """Send the tensors of a bucket one after another, in the order of its names.

    ranks_each: number of GPUs of one engine.  Raises RuntimeError if a bucket is not sent within the deadline; the
    communicator is then aborted, and a receiver that still waits ends at its own process's deadline.
    """
    from vllm.distributed.weight_transfer.nccl_common import trainer_init

    with socket.create_server((rendezvous.host, 0)) as free:
        port = free.getsockname()[1]
    info = {"master_address": rendezvous.host, "master_port": port, "world_size": 1 + num_members * ranks_each}
    store.set("nccl", json.dumps(info))
    group = trainer_init(info)

    def transmit(bucket: Bucket) -> int:
        named = get(bucket)
        tensors = [as_tensor(named[name]).to("cuda") for name in bucket.names]
        for tensor in tensors:
            group.broadcast(tensor, src=0, stream=torch.cuda.current_stream())
        _wait(rendezvous.timeout_s)
        return sum(tensor.nbytes for tensor in tensors)

    try:
        yield transmit
    finally:
        group.destroy()


def _wait(timeout_s: float) -> None:
    done: Any = torch.cuda.Event()
    done.record()
    deadline = time.monotonic() + timeout_s
    while not done.query():
        if time.monotonic() > deadline:
            raise RuntimeError(f"a bucket was not sent within weights.timeout_s={timeout_s:g} s")
        time.sleep(POLL_S)
