"""The sender's end of a broadcast among GPUs, to engines that receive through vLLM's weight transfer. Imports vllm."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from learner.weights.weights_out import as_tensor
from rlsys.weights.broadcast import Transmit
from rlsys.weights.manifest import Bucket, NamedTensor, Rendezvous

if TYPE_CHECKING:
    import torch.distributed as dist

LOOK_S = 0.01


@contextmanager
def over_nccl(
    meeting: Rendezvous,
    store: dist.Store,
    num_members: int,
    get: Callable[[Bucket], Mapping[str, NamedTensor]],
    ranks_each: int,
) -> Iterator[Transmit]:
    """Sends the tensors of a bucket one after another, in the order of its names.

    ranks_each: GPUs of one engine.  Raises RuntimeError where a bucket is not through within the deadline; the
    communicator is aborted then, and what a receiver still waits for ends with its own process's deadline.
    """
    from vllm.distributed.weight_transfer.nccl_common import trainer_init

    with socket.create_server((meeting.host, 0)) as free:
        port = free.getsockname()[1]
    info = {"master_address": meeting.host, "master_port": port, "world_size": 1 + num_members * ranks_each}
    store.set("nccl", json.dumps(info))
    group = trainer_init(info)

    def transmit(bucket: Bucket) -> int:
        payload = get(bucket)
        tensors = [as_tensor(payload[name]).to("cuda") for name in bucket.names]
        for tensor in tensors:
            group.broadcast(tensor, src=0, stream=torch.cuda.current_stream())
        _wait(meeting.timeout_s)
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
            raise RuntimeError(f"a bucket was not through within weights.timeout_s={timeout_s:g} s")
        time.sleep(LOOK_S)
