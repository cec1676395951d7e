"""Buckets of weights broadcast from one sender to those receivers that meet it in time (gloo).

Every broadcast has a group of its own: whoever died since the last one is not in it, and whoever is new is.
No wait is without a deadline. Who comes too late, or loses the connection, gets BroadcastFailed and takes
the object store's copy instead.
"""

from __future__ import annotations

import datetime
import json
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.distributed as dist

from rlsys.weights.manifest import Bucket, Manifest, NamedTensor, Rendezvous, Shipment, TensorEntry

ALIGNMENT = 16
CONNECT_S = 5.0


class BroadcastFailed(RuntimeError):
    """The meeting is over, was missed, or somebody in it was lost. Says which."""


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What became of a broadcast. problem: why it ended early, "" when it did not."""

    num_receivers: int
    num_bytes: int
    seconds: float
    problem: str = ""


Get = Callable[[Bucket], Mapping[str, NamedTensor]]
"""A bucket's tensors."""
Transmit = Callable[[Bucket], int]
"""Sends a bucket to all; the bytes that were sent."""
Channel = Callable[[Rendezvous, dist.Store, int, Get], AbstractContextManager[Transmit]]
"""Given the meeting, its store and the number of receivers: open while they are connected."""


class Sending:
    """The sender's side of one broadcast. Opened before anybody is told of it; `send` is called once."""

    def __init__(self, host: str, num_receivers: int, timeout_s: float) -> None:
        listener = socket.create_server((host, 0))
        self.rendezvous = Rendezvous(
            name=uuid.uuid4().hex,
            host=host,
            port=listener.getsockname()[1],
            num_receivers=num_receivers,
            timeout_s=timeout_s,
        )
        # given a socket, the store does not listen on every network
        self._store: dist.Store | None = dist.TCPStore(
            host,
            self.rendezvous.port,
            is_master=True,
            wait_for_workers=False,
            timeout=datetime.timedelta(seconds=timeout_s),
            master_listen_fd=listener.detach(),
        )

    def send(self, buckets: Sequence[Bucket], manifest: Manifest, get: Get, channel: Channel | None = None) -> Sent:
        """Broadcast what those who came need, and end the meeting. A failure is in what is returned.

        channel: by which the bytes go; None is gloo.
        """
        channel = channel or partial(over_gloo, manifest=manifest)
        start = time.perf_counter()
        store = dist.PrefixStore(self.rendezvous.name, self._store)
        members = self._members(store)
        wanted = sorted({index for rank in members for index in json.loads(store.get(f"wants/{rank}"))})
        num_bytes, problem = 0, ""
        store.set("buckets", json.dumps(wanted))
        store.set("members", json.dumps(members))
        try:
            if members:
                with channel(self.rendezvous, store, len(members), get) as transmit:
                    for index in wanted:
                        num_bytes += transmit(buckets[index])
        except RuntimeError as error:
            problem = f"lost a receiver: {_first_line(error)}"
        self.close()
        return Sent(
            num_receivers=len(members), num_bytes=num_bytes, seconds=time.perf_counter() - start, problem=problem
        )

    def _members(self, store: dist.Store) -> list[int]:
        """Those who said what they want before the deadline."""
        keys = [f"wants/{rank}" for rank in range(1, self.rendezvous.num_receivers + 1)]
        try:
            store.wait(keys, datetime.timedelta(seconds=self.rendezvous.timeout_s))
        except RuntimeError:  # the deadline
            return [rank for rank, key in enumerate(keys, start=1) if store.check([key])]
        return list(range(1, len(keys) + 1))

    def close(self) -> None:
        """Nobody can come any more."""
        self._store = None


@contextmanager
def over_gloo(
    meeting: Rendezvous, store: dist.Store, num_members: int, get: Get, *, manifest: Manifest
) -> Iterator[Transmit]:
    """Sends each bucket as one buffer of bytes."""
    group = _group(meeting, store, 0, num_members + 1)

    def transmit(bucket: Bucket) -> int:
        packed = pack(get(bucket), bucket, manifest)
        _broadcast(group, packed)
        return packed.nbytes

    yield transmit


@dataclass(frozen=True, kw_only=True, eq=False)
class Joined:
    """A receiver's place in a broadcast. rank: 1 and up, of `size`.  indices: of the buckets that will come."""

    meeting: Rendezvous
    store: dist.Store
    rank: int
    size: int
    indices: tuple[int, ...]

    def wait_for(self, key: str) -> bytes:
        """What the sender tells everybody. Raises BroadcastFailed."""
        try:
            self.store.wait([key], datetime.timedelta(seconds=self.meeting.timeout_s))
            return self.store.get(key)
        except RuntimeError as error:
            raise BroadcastFailed(f"the sender did not go on: {_first_line(error)}") from error


def join(shipment: Shipment, wanted: Sequence[Bucket]) -> Joined:
    """Come to the meeting and wait until it begins. Raises BroadcastFailed."""
    meeting = shipment.rendezvous
    if meeting is None:
        raise BroadcastFailed("there is no broadcast of this version.")
    try:
        store = _find(meeting)
        number = store.add("joined", 1)
        store.set(f"wants/{number}", json.dumps([i for i, bucket in enumerate(shipment.buckets) if bucket in wanted]))
        # the sender waits for the others for as long as `timeout_s`, perhaps from a later moment on
        store.wait(["members"], datetime.timedelta(seconds=2 * meeting.timeout_s))
        members, indices = json.loads(store.get("members")), json.loads(store.get("buckets"))
    except (RuntimeError, OSError) as error:
        raise BroadcastFailed(f"the broadcast was lost: {_first_line(error)}") from error
    if number not in members:
        raise BroadcastFailed("came too late for the broadcast.")
    rank, size = members.index(number) + 1, len(members) + 1
    return Joined(meeting=meeting, store=store, rank=rank, size=size, indices=tuple(indices))


def received(
    shipment: Shipment, wanted: Sequence[Bucket], manifest: Manifest
) -> Iterator[tuple[Bucket, dict[str, NamedTensor]]]:
    """The receiver's side: buckets as they come, those that were not wanted left out. Raises BroadcastFailed.

    The tensors lie in one buffer for each bucket, which lives as long as they do.
    """
    joined = join(shipment, wanted)
    try:
        group = _group(joined.meeting, joined.store, joined.rank, joined.size)
        for index in joined.indices:
            bucket = shipment.buckets[index]
            buffer = torch.empty(_places(bucket, manifest)[1], dtype=torch.uint8)
            _broadcast(group, buffer)
            if bucket in wanted:
                yield bucket, unpack(buffer.numpy(), bucket, manifest)
    except (RuntimeError, OSError) as error:
        raise BroadcastFailed(f"the broadcast was lost: {_first_line(error)}") from error


def pack(payload: Mapping[str, NamedTensor], bucket: Bucket, manifest: Manifest) -> torch.Tensor:
    """The bucket's bytes one after another, u8; tensors that are the same are there once."""
    places, size = _places(bucket, manifest)
    packed = np.empty(size, np.uint8)
    for name in bucket.names:
        start, stop = places[manifest[name]]
        packed[start:stop] = payload[name].data
    return torch.from_numpy(packed)


def unpack(packed: np.ndarray, bucket: Bucket, manifest: Manifest) -> dict[str, NamedTensor]:
    """The tensors of a packed bucket, over its bytes."""
    places, _ = _places(bucket, manifest)
    return {
        name: NamedTensor(spec=manifest[name].spec, data=packed[slice(*places[manifest[name]])])
        for name in bucket.names
    }


def _places(bucket: Bucket, manifest: Manifest) -> tuple[dict[TensorEntry, tuple[int, int]], int]:
    """Where each distinct tensor of the bucket begins and ends, and the bytes of all of them."""
    places: dict[TensorEntry, tuple[int, int]] = {}
    end = 0
    for name in bucket.names:
        entry = manifest[name]
        if entry not in places:
            start = -(-end // ALIGNMENT) * ALIGNMENT
            end = start + entry.spec.num_bytes
            places[entry] = (start, end)
    return places, end


def is_open(meeting: Rendezvous) -> bool:
    """Whether the sender still holds the meeting."""
    try:
        socket.create_connection((meeting.host, meeting.port), timeout=CONNECT_S).close()
    except OSError:
        return False
    return True


def _find(meeting: Rendezvous) -> dist.Store:
    # a store's client would knock at a closed door until its timeout
    socket.create_connection((meeting.host, meeting.port), timeout=CONNECT_S).close()
    timeout = datetime.timedelta(seconds=meeting.timeout_s)
    store = dist.TCPStore(meeting.host, meeting.port, is_master=False, wait_for_workers=False, timeout=timeout)
    return dist.PrefixStore(meeting.name, store)


def _group(meeting: Rendezvous, store: dist.Store, rank: int, size: int) -> dist.ProcessGroupGloo:
    options = dist.ProcessGroupGloo._Options()
    options._timeout = datetime.timedelta(seconds=meeting.timeout_s)
    # the address from which the meeting is reached is one that the others reach too
    with socket.create_connection((meeting.host, meeting.port), timeout=CONNECT_S) as connection:
        own = connection.getsockname()[0]
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=own)]
    return dist.ProcessGroupGloo(dist.PrefixStore("group", store), rank, size, options)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(". ")[0]


def _broadcast(group: dist.ProcessGroupGloo, buffer: torch.Tensor) -> None:
    options = dist.BroadcastOptions()
    options.rootRank, options.rootTensor = 0, 0
    group.broadcast([buffer], options).wait()
