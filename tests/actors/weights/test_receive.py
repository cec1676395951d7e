"""The buckets that an engine needs, and their checks, without vLLM."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from actors.errors import WeightsRefused
from actors.weights.receive import TransferStats, changed_names, holding, receive
from actors.weights.weights_in import engine_module
from rlsys.weights.broadcast import BroadcastSender
from rlsys.weights.manifest import Bucket, NamedTensor, WeightTransfer
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
