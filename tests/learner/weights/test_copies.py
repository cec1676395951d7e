"""The object store's copy of broadcast weights: rank 0 makes it after the broadcast, of the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from actors.errors import WeightsGone, WeightsRefused
from actors.weights.receive import TransferStats, fetch, receive
from learner.failures import LearnerError
from learner.group import LearnerGroup
from learner.spec import LearnerSpec
from rlsys.config.algorithm import AlgorithmConfig
from rlsys.config.run import ModelConfig, RolloutConfig, WeightsConfig
from rlsys.weights.broadcast import join
from rlsys.weights.manifest import NamedTensor, WeightTransfer, manifest_of
from rlsys.weights.version import WeightVersion
from tests.support.learner import learner_config, make_batch, make_group, train_config
from tests.support.pace import patience
from tests.support.transfers import tensors_of


def launch(tiny_model_dir: Path, zero_stage: int = 2, timeout_s: float = 60.0) -> LearnerGroup:
    group = LearnerGroup.launch(
        num_ranks=1, device="cpu", threads=1, timeout_s=patience(300.0), options=[{"num_cpus": 0}]
    )
    load(group, tiny_model_dir, zero_stage, timeout_s)
    return group


def load(group: LearnerGroup, tiny_model_dir: Path, zero_stage: int = 2, timeout_s: float = 60.0) -> None:
    group.load(
        LearnerSpec(
            model=ModelConfig(path=tiny_model_dir, dtype="float32"),
            rollout=RolloutConfig(max_tokens=16),
            train=train_config(),
            algorithm=AlgorithmConfig(),
            learner=learner_config(num_ranks=1, zero_stage=zero_stage, frozen_parts=("vision_tower",)),
            weights=WeightsConfig(transport="collective", bucket_mib=1, timeout_s=patience(timeout_s)),
        )
    )


@pytest.fixture(scope="module")
def learner(actor_cluster: None, tiny_model_dir: Path) -> Iterator[LearnerGroup]:
    group = launch(tiny_model_dir)
    yield group
    group.shutdown()


def update(learner: LearnerGroup) -> None:
    rng = np.random.default_rng(0)
    learner.update(make_batch(rng, [make_group(rng, "file:0", ("video",), [4, 4])]))


def are_stored(transfer: WeightTransfer) -> list[bool]:
    return [bool(ray.wait([bucket.stored], timeout=0)[0]) for bucket in transfer.buckets]


def taken(
    transfer: WeightTransfer, version: WeightVersion, *, joins: bool = True
) -> tuple[dict[str, NamedTensor], TransferStats]:
    """Receive a version as an engine without weights does. joins: whether it takes part in a broadcast."""
    transfer = transfer if joins else replace(transfer, rendezvous=None)
    stats, found = TransferStats(), {}
    for tensors in receive(transfer, transfer.buckets, version, stats):
        found |= {name: NamedTensor(spec=one.spec, data=one.data.copy()) for name, one in tensors.items()}
    return found, stats


def test_nothing_is_copied_before_the_broadcast_and_everything_before_the_next_update(
    learner: LearnerGroup, tiny_model_dir: Path
) -> None:
    load(learner, tiny_model_dir)
    transfer, version = learner.publish(1, num_receivers=1)
    assert not any(are_stored(transfer)), "rank 0 waits for the receiver, and nothing is stored meanwhile"
    assert version.published.store_s == version.published.stored_bytes == 0
    assert version.published.sent_bytes == sum(bucket.num_bytes for bucket in transfer.buckets)
    found, stats = taken(transfer, version)
    assert manifest_of(found) == version.manifest
    assert (stats.broadcast_bytes, stats.stored_bytes) == (version.published.sent_bytes, 0)
    assert learner.send().problem == ""
    update(learner)
    assert all(are_stored(transfer))
    assert manifest_of(tensors_of(transfer)) == version.manifest
    # what did not change keeps its copy: the tower, and without an update everything
    second, newer = learner.publish(2, num_receivers=1)
    assert manifest_of(taken(second, newer)[0]) == newer.manifest != version.manifest
    kept = [one.stored == other.stored for one, other in zip(transfer.buckets, second.buckets, strict=True)]
    assert kept == [all(n.startswith("visual.") and "merger" not in n for n in one.names) for one in second.buckets]
    assert 0 < sum(kept) < len(kept)
    third, same = learner.publish(3)
    assert [one.stored for one in third.buckets] == [one.stored for one in second.buckets]
    assert (same.manifest, third.rendezvous) == (newer.manifest, None)
    assert manifest_of(tensors_of(third)) == newer.manifest


def test_a_receiver_that_comes_too_late_takes_the_copy(learner: LearnerGroup, tiny_model_dir: Path) -> None:
    load(learner, tiny_model_dir)
    transfer, version = learner.publish(1, num_receivers=1)
    taken(transfer, version)
    found, stats = taken(transfer, version)
    assert manifest_of(found) == version.manifest
    assert (stats.broadcast_bytes, stats.stored_bytes) == (0, version.published.sent_bytes)


def test_the_others_of_a_broadcast_that_lost_a_receiver_take_the_copy(
    learner: LearnerGroup, tiny_model_dir: Path
) -> None:
    load(learner, tiny_model_dir, timeout_s=10.0)
    transfer, version = learner.publish(1, num_receivers=2)
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(taken, transfer, version)
        member = join(transfer, transfer.buckets)  # and never enters the group
        found, stats = other.result()
    assert member.size == 3
    assert "lost a receiver" in learner.send().problem
    assert manifest_of(found) == version.manifest
    assert (stats.broadcast_bytes, stats.stored_bytes) == (0, version.published.sent_bytes)


def test_at_zero_3_everything_is_stored_before_the_broadcast(learner: LearnerGroup, tiny_model_dir: Path) -> None:
    load(learner, tiny_model_dir, zero_stage=3)
    transfer, version = learner.publish(1, num_receivers=1)
    assert all(are_stored(transfer))
    found, stats = taken(transfer, version)
    assert manifest_of(found) == manifest_of(tensors_of(transfer)) == version.manifest
    assert stats.stored_bytes == 0


def test_copies_that_a_dead_rank_cannot_make_are_gone(actor_cluster: None, tiny_model_dir: Path) -> None:
    learner = launch(tiny_model_dir)
    transfer, _ = learner.publish(1, num_receivers=1)
    learner.shutdown()  # while it waits for the receiver
    with pytest.raises(WeightsGone):
        fetch(transfer.buckets[0], patience(60.0))


def test_a_copy_that_failed_is_an_error_at_the_next_version(actor_cluster: None, tiny_model_dir: Path) -> None:
    learner = launch(tiny_model_dir, timeout_s=10.0)

    def break_copies(worker: Any) -> None:
        def fail(stored: object) -> None:
            raise OSError("no space left on device")

        worker._loaded.publisher.copy = fail

    transfer, version = learner.publish(1, num_receivers=0)
    assert manifest_of(tensors_of(transfer)) == version.manifest, "without a broadcast nothing is copied later"
    ray.get(learner._workers[0].__ray_call__.remote(break_copies))
    update(learner)
    transfer, version = learner.publish(2, num_receivers=1)
    with pytest.raises(WeightsRefused, match="no space left"):
        taken(transfer, version, joins=False)
    with pytest.raises(LearnerError, match="no space left"):
        learner.publish(3)
