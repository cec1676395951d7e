"""The buckets that an engine needs, and their checks, without vLLM."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from actors.errors import WeightsRefused
from actors.weights.host_copy import HostCopy
from actors.weights.receive import TransferStats, changed_names, holding, receive
from actors.weights.weights_in import engine_module
from rlsys.weights.broadcast import BroadcastSender
from rlsys.weights.delta import INDEX, VALUE, encode, num_bytes
from rlsys.weights.manifest import Bucket, Delta, NamedTensor, WeightTransfer, manifest_of
from tests.support.pace import patience
from tests.support.transfers import NamedTensors, named, version_of

LAYER = "model.layers.0."
ATTENTION = f"{LAYER}self_attn."


@pytest.fixture(autouse=True)
def _buckets_are_their_own_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.weights.receive.ray.get", lambda stored, timeout: stored)


def transfer_of(*parts: NamedTensors) -> WeightTransfer:
    buckets = (
        Bucket(names=tuple(part), num_bytes=sum(t.data.nbytes for t in part.values()), stored=dict(part))
        for part in parts
    )
    return WeightTransfer(buckets=tuple(buckets), timeout_s=10.0)


PARTS = tuple({f"w{index}": named(np.full(4, index, np.float32))} for index in range(3))
WHOLE = {name: tensor for part in PARTS for name, tensor in part.items()}
VERSION = version_of(WHOLE, 3)


def spoilt(part: NamedTensors) -> dict[str, NamedTensor]:
    return {name: replace(tensor, data=tensor.data + 1) for name, tensor in part.items()}


def test_a_fused_projection_is_loaded_completely_or_not_at_all() -> None:
    names = [f"{ATTENTION}{kind}_proj.{leaf}" for kind in "qkvo" for leaf in ("weight", "bias")]
    held = {name: named(np.zeros(2, np.float32)) for name in names}
    after = {**held, f"{ATTENTION}k_proj.bias": named(np.ones(2, np.float32))}
    manifests = version_of(after).manifest, version_of(held).manifest
    fused = {name for name in names if "o_proj" not in name}
    assert changed_names(*manifests, engine_module) == fused
    assert changed_names(manifests[0], {}, engine_module) == set(names)
    assert changed_names(manifests[0], manifests[0], engine_module) == set()


def test_only_buckets_with_changed_tensors_are_fetched() -> None:
    transfer = transfer_of(*PARTS)
    stats = TransferStats()
    buckets = holding(transfer.buckets, {"w1"})
    assert [list(tensors) for tensors in receive(transfer, buckets, VERSION, stats)] == [["w1"]]
    assert (stats.stored_bytes, stats.broadcast_bytes) == (16, 0)


@pytest.mark.parametrize("bad", [0, 2])
def test_a_bad_bucket_is_found_before_the_first_is_passed_on(bad: int) -> None:
    parts = [spoilt(part) if index == bad else part for index, part in enumerate(PARTS)]
    transfer = transfer_of(*parts)
    parts = receive(transfer, transfer.buckets, VERSION, TransferStats())
    with pytest.raises(WeightsRefused, match=f"w{bad}: its checksum is"):
        next(parts)


def broadcast(parts: tuple[NamedTensors, ...], stored: tuple[NamedTensors, ...]) -> tuple[list[str], TransferStats]:
    """Return the tensors received if `parts` are broadcast, of which the third fails, and `stored` are in the store."""
    plain = transfer_of(*stored)
    sender = BroadcastSender("127.0.0.1", 1, 10.0)
    transfer = replace(plain, rendezvous=sender.rendezvous)
    stats = TransferStats()

    def take() -> list[str]:
        return [name for tensors in receive(transfer, transfer.buckets, VERSION, stats) for name in sorted(tensors)]

    def get(bucket: Bucket) -> NamedTensors:
        index = plain.buckets.index(bucket)
        if index >= len(parts):
            raise RuntimeError("the sender is gone")
        return parts[index]

    with ThreadPoolExecutor(1) as threads:
        taken = threads.submit(take)
        sender.send(plain.buckets, VERSION.manifest, get)
        return taken.result(), stats


def test_buckets_that_a_broadcast_lost_come_from_the_store() -> None:
    names, stats = broadcast(PARTS[:2], PARTS)
    assert names == ["w0", "w1", "w2"]
    assert (stats.broadcast_bytes, stats.stored_bytes) == (32, 16)


def test_buckets_that_a_broadcast_damaged_come_from_the_store() -> None:
    names, stats = broadcast((PARTS[0], spoilt(PARTS[1]), PARTS[2]), PARTS)
    assert names == ["w0", "w2", "w1"]
    assert (stats.broadcast_bytes, stats.stored_bytes) == (32, 16)


def test_buckets_that_neither_source_has_are_refused() -> None:
    with pytest.raises(WeightsRefused, match="w2: its checksum is"):
        broadcast(PARTS[:2], (*PARTS[:2], spoilt(PARTS[2])))


def with_delta(before: NamedTensors, after: NamedTensors) -> WeightTransfer:
    """A transfer of one bucket, with its delta."""
    pieces, _ = encode(after, before)
    sent = Bucket(names=tuple(pieces), num_bytes=num_bytes(pieces), stored=pieces)
    delta = Delta(base=manifest_of(before), entries=manifest_of(after), bucket=sent, manifest=manifest_of(pieces))
    plain = transfer_of(after)
    return replace(plain, buckets=(replace(plain.buckets[0], delta=delta),), sends_deltas=True)


def large(seed: int, changed: int = 0) -> dict[str, NamedTensor]:
    array = np.random.default_rng(seed).standard_normal(1000).astype(np.float32)
    array[:changed] += 1.0
    return {"w": named(array), "tied": named(array), "still": named(np.ones(10, np.float32))}


def taken(transfer: WeightTransfer, after: NamedTensors, base: HostCopy | None) -> TransferStats:
    """Receive, check that all is there, and return the sizes."""
    stats, version = TransferStats(), version_of(after, 4)
    [tensors] = receive(transfer, transfer.buckets, version, stats, base)
    assert manifest_of(tensors) == version.manifest
    return stats


def test_an_actor_with_the_version_before_takes_deltas_and_others_the_whole() -> None:
    versions = [large(0), large(0, changed=5), large(0, changed=9)]
    base = HostCopy()
    first = taken(with_delta(versions[0], versions[0]), versions[0], base)
    assert (first.delta_bytes, first.stored_bytes) == (0, 8040)
    # `tied` has the same bytes as `w`, and is kept and changed with it
    assert base.num_bytes == 4040
    second = taken(with_delta(versions[0], versions[1]), versions[1], base)
    assert second.delta_bytes == second.stored_bytes == 5 * 8 * 2
    third = taken(with_delta(versions[1], versions[2]), versions[2], base)
    assert third.delta_bytes == third.stored_bytes == 4 * 8 * 2
    for latecomer in (HostCopy(), None):
        assert taken(with_delta(versions[1], versions[2]), versions[2], latecomer).delta_bytes == 0


def test_tensors_that_were_equal_may_part() -> None:
    before = {name: named(np.ones(100, np.float32)) for name in ("norm1", "norm2", "norm3")}
    after = {name: replace(tensor, data=tensor.data.copy()) for name, tensor in before.items()}
    after["norm1"].data.view(np.float32)[3] = 2.0
    after["norm3"].data.view(np.float32)[4] = 3.0
    base = HostCopy()
    taken(with_delta(before, before), before, base)
    assert taken(with_delta(before, after), after, base).delta_bytes == 16
    # and come together again
    assert taken(with_delta(after, before), before, base).delta_bytes == 16


def test_an_actor_that_missed_a_version_takes_the_whole_and_deltas_again_afterwards() -> None:
    versions = [large(0, changed=count) for count in (0, 5, 9, 12)]
    base = HostCopy()
    taken(with_delta(versions[0], versions[0]), versions[0], base)
    assert taken(with_delta(versions[1], versions[2]), versions[2], base).delta_bytes == 0
    assert taken(with_delta(versions[2], versions[3]), versions[3], base).delta_bytes > 0


@pytest.mark.parametrize("harm", ["a value", "a position", "a position outside", "the base"])
def test_a_delta_that_is_damaged_is_replaced_by_the_whole(harm: str) -> None:
    before, after = large(0), large(0, changed=5)
    base = HostCopy()
    taken(with_delta(before, before), before, base)
    transfer = with_delta(before, after)
    delta = transfer.buckets[0].delta
    assert delta is not None
    pieces = {name: replace(tensor, data=tensor.data.copy()) for name, tensor in delta.bucket.stored.items()}
    if harm == "the base":
        base._tensors["w"].data[77] ^= 1  # memory that fails
    else:
        name = "w" + (VALUE if harm == "a value" else INDEX)
        pieces[name].data.view(np.int32)[0] ^= 1 << (30 if harm == "a position outside" else 4)
        # the sender itself was wrong: its own digest of the pieces fits
        delta = replace(delta, bucket=replace(delta.bucket, stored=pieces), manifest=manifest_of(pieces))
    transfer = replace(transfer, buckets=(replace(transfer.buckets[0], delta=delta),))
    stats = taken(transfer, after, base)
    assert (stats.delta_bytes, stats.stored_bytes) == (0, 8040)
    assert taken(with_delta(after, large(0, changed=7)), large(0, changed=7), base).delta_bytes > 0


def test_a_broadcast_carries_a_delta_to_those_who_all_can_apply_it_and_else_the_whole() -> None:
    before, after = large(0), large(0, changed=5)
    for can_both in (True, False):
        bases = [HostCopy(), HostCopy()]
        taken(with_delta(before, before), before, bases[0])
        if can_both:
            taken(with_delta(before, before), before, bases[1])
        sender = BroadcastSender("127.0.0.1", 2, patience(20.0))
        transfer = replace(with_delta(before, after), rendezvous=sender.rendezvous)
        with ThreadPoolExecutor(2) as threads:
            taking = [threads.submit(taken, transfer, after, base) for base in bases]
            sent = sender.send(transfer.buckets, version_of(after).manifest, lambda bucket: bucket.stored)
        assert sent.problem == ""
        for found in taking:
            stats = found.result()
            assert stats.delta_bytes == (80 if can_both else 0)
            assert stats.broadcast_bytes == (80 if can_both else 8040)
            assert stats.stored_bytes == 0
