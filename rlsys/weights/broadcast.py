"""Broadcasts of weight buckets from one sender to the receivers that join in time (gloo).

Every broadcast has a process group of its own, without receivers that died since the last one and with new ones.
Every wait has a deadline. A receiver that joins too late, or loses the connection, gets BroadcastFailed and takes
the object store's copy instead.
"""

from __future__ import annotations

import datetime
import json
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.distributed as dist

from rlsys.weights.delta import as_sent, with_pieces
from rlsys.weights.manifest import (
    Bucket,
    Manifest,
    NamedTensor,
    NamedTensors,
    Rendezvous,
    TensorEntry,
    WeightTransfer,
)

ALIGNMENT = 16
CONNECT_S = 5.0


class BroadcastFailed(RuntimeError):
    """A broadcast that ended early, was missed, or lost one of its members; the message says which."""


@dataclass(frozen=True, kw_only=True)
class BroadcastResult:
    """The outcome of a broadcast. problem: why it ended early, "" if it did not."""

    num_receivers: int
    num_bytes: int
    seconds: float
    problem: str = ""


Get = Callable[[Bucket], NamedTensors]
"""A function that returns a bucket's tensors."""
Transmit = Callable[[Bucket], int]
"""A function that sends a bucket to all receivers and returns the number of bytes sent."""
Channel = Callable[[Rendezvous, dist.Store, int, Get], AbstractContextManager[Transmit]]
"""A context that is open while the receivers are connected; takes the rendezvous, its store and their number."""


class BroadcastSender:
    """The sender's side of one broadcast. Open it before any receiver knows of it, and call `send` once."""

    def __init__(self, host: str, num_receivers: int, timeout_s: float) -> None:
        listener = socket.create_server((host, 0))
        self.rendezvous = Rendezvous(
            name=uuid.uuid4().hex,
            host=host,
            port=listener.getsockname()[1],
            num_receivers=num_receivers,
            timeout_s=timeout_s,
        )
        # with a socket of its own the store does not listen on every network interface
        self._store: dist.Store | None = dist.TCPStore(
            host,
            self.rendezvous.port,
            is_master=True,
            wait_for_workers=False,
            timeout=datetime.timedelta(seconds=timeout_s),
            master_listen_fd=listener.detach(),
        )

    def send(
        self, buckets: Sequence[Bucket], manifest: Manifest, get: Get, channel: Channel | None = None
    ) -> BroadcastResult:
        """Broadcast the buckets that the receivers need, and close. A failure is reported in the result.

        channel: how the bytes travel; None means gloo.
        """
        channel = channel or partial(over_gloo, manifest=with_pieces(manifest, tuple(buckets)))
        start = time.perf_counter()
        store = dist.PrefixStore(self.rendezvous.name, self._store)
        members = self._members(store)
        wanted = to_send(json.loads(store.get(f"wants/{rank}")) for rank in members)
        num_bytes, problem = 0, ""
        store.set("buckets", json.dumps(wanted))
        store.set("members", json.dumps(members))
        try:
            if members:
                with channel(self.rendezvous, store, len(members), get) as transmit:
                    for index, as_delta in wanted:
                        num_bytes += transmit(as_sent(buckets[index], as_delta=as_delta))
        except RuntimeError as error:
            problem = f"lost a receiver: {_first_line(error)}"
        finally:
            self.close()
        return BroadcastResult(
            num_receivers=len(members), num_bytes=num_bytes, seconds=time.perf_counter() - start, problem=problem
        )

    def _members(self, store: dist.Store) -> list[int]:
        """Return the ranks of the receivers that joined before the deadline."""
        keys = [f"wants/{rank}" for rank in range(1, self.rendezvous.num_receivers + 1)]
        try:
            store.wait(keys, datetime.timedelta(seconds=self.rendezvous.timeout_s))
        except RuntimeError:  # the deadline
            return [rank for rank, key in enumerate(keys, start=1) if store.check([key])]
        return list(range(1, len(keys) + 1))

    def close(self) -> None:
        """Close the rendezvous, so that no receiver can join any more."""
        self._store = None


@contextmanager
def over_gloo(
    rendezvous: Rendezvous, store: dist.Store, num_members: int, get: Get, *, manifest: Manifest
) -> Iterator[Transmit]:
    """Send each bucket as one buffer of bytes."""
    group = _group(rendezvous, store, 0, num_members + 1)

    def transmit(bucket: Bucket) -> int:
        packed = pack(get(bucket), bucket, manifest)
        _broadcast(group, packed)
        return packed.nbytes

    yield transmit


@dataclass(frozen=True, kw_only=True, eq=False)
class BroadcastMember:
    """A receiver in a broadcast. rank: from 1 to `size` - 1.

    indices: of the buckets that will be sent.  deltas: of those that will be sent as deltas.
    """

    rendezvous: Rendezvous
    store: dist.Store
    rank: int
    size: int
    indices: tuple[int, ...]
    deltas: frozenset[int] = frozenset()

    def wait_for(self, key: str) -> bytes:
        """Return a value that the sender announces to all receivers. Raises BroadcastFailed if it does not come."""
        try:
            self.store.wait([key], datetime.timedelta(seconds=self.rendezvous.timeout_s))
            return self.store.get(key)
        except RuntimeError as error:
            raise BroadcastFailed(f"the sender did not continue: {_first_line(error)}") from error


def to_send(wants: Iterable[Sequence[tuple[int, bool]]]) -> list[tuple[int, bool]]:
    """Return which buckets to send, in order, and whether as a delta: if every receiver that wants it can apply that.

    wants: of each receiver, the buckets and whether it can apply their deltas.
    """
    as_delta: dict[int, bool] = {}
    for wanted in wants:
        for index, can_apply in wanted:
            as_delta[index] = as_delta.get(index, True) and can_apply
    return sorted(as_delta.items())


def join(transfer: WeightTransfer, wanted: Sequence[Bucket], as_deltas: Sequence[Bucket] = ()) -> BroadcastMember:
    """Join the broadcast of a transfer and wait until it begins. Raises BroadcastFailed if it is missed or lost.

    as_deltas: those of the wanted buckets that may come as deltas.
    """
    rendezvous = transfer.rendezvous
    if rendezvous is None:
        raise BroadcastFailed("this version is not broadcast.")
    try:
        store = _find(rendezvous)
        number = store.add("joined", 1)
        wants = [(i, bucket in as_deltas) for i, bucket in enumerate(transfer.buckets) if bucket in wanted]
        store.set(f"wants/{number}", json.dumps(wants))
        # the sender waits `timeout_s` for the other receivers, possibly starting later
        store.wait(["members"], datetime.timedelta(seconds=2 * rendezvous.timeout_s))
        members, coming = json.loads(store.get("members")), json.loads(store.get("buckets"))
    except (RuntimeError, OSError) as error:
        raise BroadcastFailed(f"the broadcast was lost: {_first_line(error)}") from error
    if number not in members:
        raise BroadcastFailed("joined too late for the broadcast.")
    rank, size = members.index(number) + 1, len(members) + 1
    return BroadcastMember(
        rendezvous=rendezvous,
        store=store,
        rank=rank,
        size=size,
        indices=tuple(index for index, _ in coming),
        deltas=frozenset(index for index, as_delta in coming if as_delta),
    )


def receive_broadcast(
    transfer: WeightTransfer, wanted: Sequence[Bucket], manifest: Manifest, as_deltas: Sequence[Bucket] = ()
) -> Iterator[tuple[Bucket, dict[str, NamedTensor], bool]]:
    """Yield the wanted buckets and their tensors as they arrive. Raises BroadcastFailed if the broadcast is lost.

    The third value says whether the tensors are the pieces of the bucket's delta; only `as_deltas` may come so.
    The tensors of a bucket share one buffer, which lives as long as they do.
    """
    member = join(transfer, wanted, as_deltas)
    manifest = with_pieces(manifest, transfer.buckets)
    try:
        group = _group(member.rendezvous, member.store, member.rank, member.size)
        for index in member.indices:
            bucket = transfer.buckets[index]
            as_delta = index in member.deltas
            sent = as_sent(bucket, as_delta=as_delta)
            buffer = torch.empty(_offsets(sent, manifest)[1], dtype=torch.uint8)
            _broadcast(group, buffer)
            if bucket in wanted:
                yield bucket, unpack(buffer.numpy(), sent, manifest), as_delta
    except (RuntimeError, OSError) as error:
        raise BroadcastFailed(f"the broadcast was lost: {_first_line(error)}") from error


def pack(tensors: NamedTensors, bucket: Bucket, manifest: Manifest) -> torch.Tensor:
    """Return the bucket's bytes in one buffer, u8 [bytes]; a tensor with two names is in it once."""
    offsets, size = _offsets(bucket, manifest)
    packed = np.empty(size, np.uint8)
    for name in bucket.names:
        start, stop = offsets[manifest[name]]
        packed[start:stop] = tensors[name].data
    return torch.from_numpy(packed)


def unpack(packed: np.ndarray, bucket: Bucket, manifest: Manifest) -> dict[str, NamedTensor]:
    """Return the tensors of a packed bucket, as views of its bytes."""
    offsets, _ = _offsets(bucket, manifest)
    return {
        name: NamedTensor(spec=manifest[name].spec, data=packed[slice(*offsets[manifest[name]])])
        for name in bucket.names
    }


def _offsets(bucket: Bucket, manifest: Manifest) -> tuple[dict[TensorEntry, tuple[int, int]], int]:
    """Return where each distinct tensor of the bucket starts and stops, and the size of the whole buffer."""
    offsets: dict[TensorEntry, tuple[int, int]] = {}
    end = 0
    for name in bucket.names:
        entry = manifest[name]
        if entry not in offsets:
            start = -(-end // ALIGNMENT) * ALIGNMENT
            end = start + entry.spec.num_bytes
            offsets[entry] = (start, end)
    return offsets, end


def is_open(rendezvous: Rendezvous) -> bool:
    """Return whether the sender still keeps the rendezvous open."""
    try:
        socket.create_connection((rendezvous.host, rendezvous.port), timeout=CONNECT_S).close()
    except OSError:
        return False
    return True


def _find(rendezvous: Rendezvous) -> dist.Store:
    # the store's client would retry a closed port until its timeout
    socket.create_connection((rendezvous.host, rendezvous.port), timeout=CONNECT_S).close()
    timeout = datetime.timedelta(seconds=rendezvous.timeout_s)
    store = dist.TCPStore(rendezvous.host, rendezvous.port, is_master=False, wait_for_workers=False, timeout=timeout)
    return dist.PrefixStore(rendezvous.name, store)


def _group(rendezvous: Rendezvous, store: dist.Store, rank: int, size: int) -> dist.ProcessGroupGloo:
    options = dist.ProcessGroupGloo._Options()
    options._timeout = datetime.timedelta(seconds=rendezvous.timeout_s)
    # the local address of a connection to the rendezvous is reachable for the other members too
    with socket.create_connection((rendezvous.host, rendezvous.port), timeout=CONNECT_S) as connection:
        own = connection.getsockname()[0]
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=own)]
    return dist.ProcessGroupGloo(dist.PrefixStore("group", store), rank, size, options)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(". ")[0]


def _broadcast(group: dist.ProcessGroupGloo, buffer: torch.Tensor) -> None:
    options = dist.BroadcastOptions()
    options.rootRank, options.rootTensor = 0, 0
    group.broadcast([buffer], options).wait()
