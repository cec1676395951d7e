"""The sender's side of a broadcast among GPUs to engines that receive through vLLM's weight transfer. Imports vllm."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from rlsys.weights.broadcast import Transmit
from rlsys.weights.manifest import Bucket, NamedTensors, Rendezvous
from rlsys.weights.tensors import as_tensor

if TYPE_CHECKING:
    import torch.distributed as dist

POLL_S = 0.01
WHOLE_BUCKET = 1 << 62
"""Bytes after which vLLM would begin another broadcast within a bucket: never."""
NUM_BUFFERS = 2
"""Buckets on their way: one is packed while the one before is sent."""

Result = TypeVar("Result")


@contextmanager
def over_nccl(
    rendezvous: Rendezvous,
    store: dist.Store,
    num_members: int,
    get: Callable[[Bucket], NamedTensors],
    ranks_each: int,
    live: Callable[[Bucket], Mapping[str, torch.Tensor]],
    *,
    live_gathers: bool = False,
) -> Iterator[Transmit]:
    """Send each bucket as one buffer of bytes, its tensors one after another in the order of its names.

    ranks_each: number of GPUs of one engine.  live: returns a bucket's tensors where they lie on this GPU, {} for those
    that `get` must return from host memory, see `Publisher.live`.  live_gathers: whether that is a collective of the
    learner's ranks; then nothing is on its way meanwhile, because a wait for a lost engine would have no deadline.

    Raises RuntimeError if the group is not complete, or a bucket not sent, within the deadline; the communicator is
    then aborted, and a receiver that still waits ends at its own process's deadline.
    """
    from vllm.distributed.weight_transfer.nccl_common import trainer_init

    with socket.create_server((rendezvous.host, 0)) as free:
        port = free.getsockname()[1]
    info = group_info(rendezvous.host, port, num_members * ranks_each)
    store.set("nccl", json.dumps(info))
    timeout_s, gpu = rendezvous.timeout_s, torch.cuda.current_device()

    def connect() -> Any:
        torch.cuda.set_device(gpu)  # a thread begins with the first one
        return trainer_init(info)

    group = within(timeout_s, "the engines did not connect", connect)
    buffers = [_Buffer() for _ in range(1 if live_gathers else NUM_BUFFERS)]

    def transmit(bucket: Bucket) -> int:
        buffers.append(buffer := buffers.pop(0))
        buffer.wait(timeout_s)
        tensors = live(bucket) or {name: as_tensor(named) for name, named in get(bucket).items()}
        return buffer.send(group, tensors, bucket.names)

    try:
        yield transmit
        for buffer in buffers:
            buffer.wait(timeout_s)
    finally:
        group.destroy()


def group_info(host: str, port: int, num_receivers: int) -> dict[str, Any]:
    """Return what a receiver needs to join, and how the tensors are packed; it adds its own rank."""
    return {
        "master_address": host,
        "master_port": port,
        "world_size": 1 + num_receivers,
        "packed": True,
        "packed_buffer_size_bytes": WHOLE_BUCKET,
        "packed_num_buffers": NUM_BUFFERS,
    }


def pack(tensors: Mapping[str, torch.Tensor], names: Sequence[str], packed: torch.Tensor) -> None:
    """Write tensors one after another into a buffer of exactly their bytes, u8, which is how vLLM unpacks them."""
    end = 0
    for name in names:
        data = tensors[name].contiguous().view(-1).view(torch.uint8)
        packed[end : end + data.numel()].copy_(data)
        end += data.numel()


class _Buffer:
    """A buffer on the GPU for one bucket at a time, with one in pinned memory for tensors that come from the host."""

    def __init__(self) -> None:
        self._pinned = torch.empty(0, dtype=torch.uint8)
        self._on_gpu = torch.empty(0, dtype=torch.uint8)
        self._sent: Any = None

    def send(self, group: Any, tensors: Mapping[str, torch.Tensor], names: Sequence[str]) -> int:
        """Begin to send; returns the number of bytes. The tensors are all on the GPU, or all on the host."""
        size = sum(tensors[name].nbytes for name in names)
        if self._on_gpu.numel() < size:
            self._on_gpu = torch.empty(size, dtype=torch.uint8, device="cuda")
        if tensors[names[0]].is_cuda:
            pack(tensors, names, self._on_gpu[:size])
        else:
            if self._pinned.numel() < size:
                self._pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)
            pack(tensors, names, self._pinned[:size])
            self._on_gpu[:size].copy_(self._pinned[:size], non_blocking=True)
        group.broadcast(self._on_gpu[:size], src=0, stream=torch.cuda.current_stream())
        self._sent = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._sent.record()
        return size

    def wait(self, timeout_s: float) -> None:
        """Return once what was sent last has left; RuntimeError after the deadline."""
        deadline = time.monotonic() + timeout_s
        while self._sent is not None and not self._sent.query():
            if time.monotonic() > deadline:
                raise RuntimeError(f"a bucket was not sent within weights.timeout_s={timeout_s:g} s")
            time.sleep(POLL_S)


def within(timeout_s: float, what: str, function: Callable[[], Result]) -> Result:
    """Return what `function` returns, or raise what it raises; RuntimeError if it takes longer than `timeout_s`.

    It then goes on in a thread that does not keep the process alive: NCCL cannot be interrupted while it connects.
    """
    found: list[Result] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(function())
        except Exception as error:  # noqa: BLE001  # raised in the caller's thread
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if failed:
        raise failed[0]
    if not found:
        raise RuntimeError(f"{what} within weights.timeout_s={timeout_s:g} s")
    return found[0]
