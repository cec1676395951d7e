"""Broadcasts in which receivers are missing, late, killed or stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

from rlsys.weights.broadcast import BroadcastFailed, BroadcastSender, pack, receive_broadcast, unpack
from rlsys.weights.manifest import Bucket, NamedTensor, WeightTransfer, manifest_of
from tests.support.pace import patience
from tests.support.transfers import named

RNG = np.random.default_rng(0)
TENSORS = {name: named(RNG.standard_normal((3, 5)).astype(np.float32)) for name in ("a", "b", "c")}
TENSORS["tied"] = TENSORS["a"]
TENSORS["small"] = named(np.array([7], np.int8))
MANIFEST = manifest_of(TENSORS)
BUCKETS = (
    Bucket(names=("a", "tied", "small", "b"), num_bytes=121, stored=None),
    Bucket(names=("c",), num_bytes=60, stored=None),
)


def get(bucket: Bucket) -> dict[str, NamedTensor]:
    return {name: TENSORS[name] for name in bucket.names}


def opened(num_receivers: int, timeout_s: float = 20.0) -> tuple[BroadcastSender, WeightTransfer]:
    timeout_s = patience(timeout_s)
    sender = BroadcastSender("127.0.0.1", num_receivers, timeout_s)
    return sender, WeightTransfer(buckets=BUCKETS, timeout_s=timeout_s, rendezvous=sender.rendezvous)


def take(
    transfer: WeightTransfer, wanted: tuple[Bucket, ...] = BUCKETS, then: Callable[[], None] = lambda: None
) -> list[str]:
    """Receive a broadcast and return the names of its tensors, after checking them. then: called after each bucket."""
    names: list[str] = []
    for bucket, tensors, _ in receive_broadcast(transfer, wanted, MANIFEST):
        assert manifest_of(tensors) == {name: MANIFEST[name] for name in bucket.names}
        names.extend(tensors)
        then()
    return names


def test_a_packed_bucket_holds_a_tensor_with_two_names_once() -> None:
    packed = pack(get(BUCKETS[0]), BUCKETS[0], MANIFEST)
    # 60 bytes, one at 64, 60 at 80
    assert packed.numel() == 140
    unpacked = unpack(packed.numpy(), BUCKETS[0], MANIFEST)
    assert manifest_of(unpacked) == {name: MANIFEST[name] for name in BUCKETS[0].names}


def test_receivers_get_the_buckets_they_want_and_none_joins_afterwards() -> None:
    sender, transfer = opened(3)
    with ThreadPoolExecutor(3) as threads:
        everything = threads.submit(take, transfer)
        part = threads.submit(take, transfer, BUCKETS[1:])
        nothing = threads.submit(take, transfer, ())
        sent = sender.send(BUCKETS, MANIFEST, get)
    assert everything.result() == ["a", "tied", "small", "b", "c"]
    assert (part.result(), nothing.result()) == (["c"], [])
    assert (sent.num_receivers, sent.num_bytes, sent.problem) == (3, 200, "")
    with pytest.raises(BroadcastFailed, match="refused"):
        take(transfer)


def test_only_wanted_buckets_are_sent() -> None:
    sender, transfer = opened(1)
    with ThreadPoolExecutor(1) as threads:
        part = threads.submit(take, transfer, BUCKETS[1:])
        assert sender.send(BUCKETS, MANIFEST, get).num_bytes == 60
    assert part.result() == ["c"]


def test_the_broadcast_begins_without_missing_receivers() -> None:
    sender, transfer = opened(2, timeout_s=1.5)
    with ThreadPoolExecutor(1) as threads:
        came = threads.submit(take, transfer)
        sent = sender.send(BUCKETS, MANIFEST, get)
    assert came.result() == ["a", "tied", "small", "b", "c"]
    assert (sent.num_receivers, sent.problem) == (1, "")


def test_a_receiver_that_dies_midway_ends_it_for_all_within_the_deadline() -> None:
    sender, transfer = opened(2, timeout_s=10.0)
    victim = get_context("fork").Process(target=take, args=(transfer, BUCKETS, lambda: os._exit(1)))
    start = time.monotonic()
    victim.start()

    def survive() -> str:
        try:
            return " ".join(take(transfer))
        except BroadcastFailed as error:
            return str(error)

    with ThreadPoolExecutor(1) as threads:
        survivor = threads.submit(survive)
        sent = sender.send(BUCKETS, MANIFEST, lambda bucket: victim_gone(bucket, victim.join))
    # the last bucket may have reached it before the connection to the other one was missed
    assert survivor.result() == "a tied small b c" or "the broadcast was lost" in survivor.result()
    assert "lost a receiver" in sent.problem
    assert time.monotonic() - start < 6 * transfer.timeout_s  # to meet, and every further step, may take that long


def victim_gone(bucket: Bucket, join: Callable[[], None]) -> dict[str, NamedTensor]:
    """Return the tensors; those of the second bucket only once the victim of the first has died."""
    if bucket is BUCKETS[1]:
        join()
    return get(bucket)


def test_a_sender_that_fails_midway_does_not_block_its_receivers() -> None:
    sender, transfer = opened(1, timeout_s=10.0)

    def fail(bucket: Bucket) -> dict[str, NamedTensor]:
        if bucket is BUCKETS[1]:
            raise RuntimeError("no more")
        return get(bucket)

    with ThreadPoolExecutor(1) as threads:
        left_alone = threads.submit(take, transfer)
        assert "no more" in sender.send(BUCKETS, MANIFEST, fail).problem
        with pytest.raises(BroadcastFailed, match="lost"):
            left_alone.result()
