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
from rlsys.errors import LearnerLost
from rlsys.weights.broadcast import join
from rlsys.weights.manifest import NamedTensor, Uncopied, WeightTransfer, manifest_of
from rlsys.weights.version import WeightVersion
from tests.support.learner import learner_config, make_batch, make_group, train_config
from tests.support.pace import patience
from tests.support.transfers import tensors_of

WHOLE, PARTITIONED = (1, 2), (3, 3)
"""Numbers of ranks, and ZeRO stages: rank 0 has the parameters whole, or the ranks have parts, the last ones padded."""


def launch(
    tiny_model_dir: Path, shape: tuple[int, int] = WHOLE, timeout_s: float = 60.0, learner_timeout_s: float = 300.0
) -> LearnerGroup:
    num_ranks, zero_stage = shape
    group = LearnerGroup.launch(
        num_ranks=num_ranks,
        device="cpu",
        threads=1,
        timeout_s=patience(learner_timeout_s),
        options=[{"num_cpus": 0}] * num_ranks,
    )
    load(group, tiny_model_dir, zero_stage, timeout_s)
    return group


def load(
    group: LearnerGroup, tiny_model_dir: Path, zero_stage: int = 2, timeout_s: float = 60.0, dtype: str = "float32"
) -> None:
    group.load(
        LearnerSpec(
            model=ModelConfig(path=tiny_model_dir, dtype=dtype),
            rollout=RolloutConfig(max_tokens=16),
            train=train_config(),
            algorithm=AlgorithmConfig(),
            learner=learner_config(num_ranks=group.num_ranks, zero_stage=zero_stage, frozen_parts=("vision_tower",)),
            weights=WeightsConfig(transport="collective", delta="never", bucket_mib=1, timeout_s=patience(timeout_s)),
        )
    )


@pytest.fixture(scope="module", params=[WHOLE, PARTITIONED], ids=["whole", "partitioned"])
def shape(request: pytest.FixtureRequest) -> tuple[int, int]:
    found: tuple[int, int] = request.param
    return found


@pytest.fixture(scope="module")
def learner(actor_cluster: None, tiny_model_dir: Path, shape: tuple[int, int]) -> Iterator[LearnerGroup]:
    group = launch(tiny_model_dir, shape)
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
    learner: LearnerGroup, shape: tuple[int, int], tiny_model_dir: Path
) -> None:
    load(learner, tiny_model_dir, shape[1])
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


def test_a_receiver_that_comes_too_late_takes_the_copy(
    learner: LearnerGroup, shape: tuple[int, int], tiny_model_dir: Path
) -> None:
    load(learner, tiny_model_dir, shape[1])
    transfer, version = learner.publish(1, num_receivers=1)
    taken(transfer, version)
    found, stats = taken(transfer, version)
    assert manifest_of(found) == version.manifest
    assert (stats.broadcast_bytes, stats.stored_bytes) == (0, version.published.sent_bytes)


def test_the_others_of_a_broadcast_that_lost_a_receiver_take_the_copy(
    learner: LearnerGroup, shape: tuple[int, int], tiny_model_dir: Path
) -> None:
    load(learner, tiny_model_dir, shape[1], timeout_s=10.0)
    transfer, version = learner.publish(1, num_receivers=2)
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(taken, transfer, version)
        member = join(transfer, transfer.buckets)  # and never enters the group
        found, stats = other.result()
    assert member.size == 3
    assert "lost a receiver" in learner.send().problem
    assert manifest_of(found) == version.manifest
    assert (stats.broadcast_bytes, stats.stored_bytes) == (0, version.published.sent_bytes)


def test_a_new_receiver_is_sent_what_the_others_have(
    learner: LearnerGroup, shape: tuple[int, int], tiny_model_dir: Path
) -> None:
    load(learner, tiny_model_dir, shape[1])
    taken(*learner.publish(1, num_receivers=1))
    learner.send()
    update(learner)
    transfer, version = learner.publish(2, num_receivers=1)  # the tower is in the store, and is sent from the learner
    found, stats = taken(transfer, version)
    assert manifest_of(found) == version.manifest
    assert stats.broadcast_bytes == sum(bucket.num_bytes for bucket in transfer.buckets)
    assert version.published.sent_bytes < stats.broadcast_bytes
    assert learner.send().problem == ""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_versions_are_those_of_a_learner_that_stores_them_first(
    learner: LearnerGroup, shape: tuple[int, int], tiny_model_dir: Path, dtype: str
) -> None:
    load(learner, tiny_model_dir, shape[1], dtype=dtype)
    update(learner)
    sent, later = learner.publish(1, num_receivers=1)
    taken(sent, later)
    load(learner, tiny_model_dir, shape[1], dtype=dtype)
    update(learner)
    transfer, first = learner.publish(1)
    assert later.digest == first.digest
    assert manifest_of(tensors_of(transfer)) == later.manifest


def test_copies_that_a_dead_rank_cannot_make_are_gone(
    actor_cluster: None, tiny_model_dir: Path, shape: tuple[int, int]
) -> None:
    learner = launch(tiny_model_dir, shape)
    transfer, _ = learner.publish(1, num_receivers=1)
    learner.shutdown()  # while it waits for the receiver
    with pytest.raises(WeightsGone):
        fetch(transfer.buckets[0], patience(60.0))


def test_a_rank_that_dies_before_it_gathers_loses_the_learner_and_not_a_receiver(
    actor_cluster: None, tiny_model_dir: Path
) -> None:
    learner = launch(tiny_model_dir, PARTITIONED, learner_timeout_s=60.0)
    transfer, version = learner.publish(1, num_receivers=1)
    ray.kill(learner._workers[1])  # it waits for a cue, and rank 0 for the receiver
    with pytest.raises(WeightsRefused):
        taken(transfer, version)
    with pytest.raises(LearnerLost, match="rank 1"):
        learner.send()
    assert learner.num_ranks == 0


def test_a_copy_that_failed_is_an_error_at_the_next_version(
    actor_cluster: None, tiny_model_dir: Path, shape: tuple[int, int]
) -> None:
    learner = launch(tiny_model_dir, shape, timeout_s=10.0, learner_timeout_s=60.0)

    def break_copies(worker: Any) -> None:
        copy = worker._loaded.publisher.copy

        def fail(stored: Uncopied) -> None:
            copy(stored)
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
