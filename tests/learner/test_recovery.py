"""Learner ranks that are killed, stopped, run out of disk or lack frames: the errors, and the surviving ranks."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray

from learner.checkpoint_layout import LAYOUT_FILE
from learner.group import LearnerGroup
from learner.spec import LearnerSpec
from rlsys.config.algorithm import AlgorithmConfig
from rlsys.config.run import ModelConfig, RolloutConfig
from rlsys.errors import FramesLost, LearnerLost, NotWritten
from rlsys.types import TrainBatch
from tests.support.learner import learner_config, make_batch, make_group, train_config
from tests.support.pace import patience

PARTITIONED = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}


def launch(tiny_model_dir: Path) -> LearnerGroup:
    group = LearnerGroup.launch(
        num_ranks=2, device="cpu", threads=1, timeout_s=patience(300.0), options=[{"num_cpus": 0}, {"num_cpus": 0}]
    )
    group.load(
        LearnerSpec(
            model=ModelConfig(path=tiny_model_dir, dtype="float32"),
            rollout=RolloutConfig(max_tokens=16),
            train=train_config(),
            algorithm=AlgorithmConfig(),
            learner=learner_config(num_ranks=2, zero_stage=3, deepspeed=PARTITIONED),
        )
    )
    return group


@pytest.fixture(scope="module")
def ranks(actor_cluster: None, tiny_model_dir: Path) -> Iterator[LearnerGroup]:
    """Start two ranks at ZeRO-3, which every test but the last leaves alive."""
    group = launch(tiny_model_dir)
    yield group
    group.shutdown()


def batch_of(seed: int, *, by_reference: bool = False) -> TrainBatch:
    rng = np.random.default_rng(seed)
    groups = [make_group(rng, f"file:{i}", ("video",), [4, 4]) for i in range(2)]
    if by_reference:
        groups = [
            replace(group, clips=tuple(replace(clip, frames=ray.put(clip.frames)) for clip in group.clips))
            for group in groups
        ]
    return make_batch(rng, groups)


def of_a_dead_process() -> ray.ObjectRef:
    """Return a reference to an object that was lost with the process that had put it."""

    class Holder:  # in here, so that it is sent by value
        def put(self) -> list[ray.ObjectRef]:
            return [ray.put(np.zeros((12, 56, 56, 3), np.uint8))]

    holder = ray.remote(num_cpus=0)(Holder).remote()
    (reference,) = ray.get(holder.put.remote())
    ray.kill(holder)
    deadline = time.monotonic() + patience(60.0)
    while time.monotonic() < deadline:
        try:
            ray.get(reference, timeout=patience(60.0))
        except ray.exceptions.ObjectLostError:
            return reference
        time.sleep(0.2)
    raise AssertionError("the object outlives its owner")


def pids(group: LearnerGroup) -> list[int]:
    return ray.get([worker.__ray_call__.remote(lambda self: os.getpid()) for worker in group._workers])


@pytest.mark.parametrize(
    "full",
    [
        "learner/zero_pp_rank_1_mp_rank_00_optim_states.pt",
        "learner/zero_pp_rank_0_mp_rank_00_model_states.pt",
        LAYOUT_FILE,
    ],
)
def test_a_full_disk_on_one_rank_is_an_error_on_all_and_they_continue(
    ranks: LearnerGroup, full: str, tmp_path: Path
) -> None:
    file = tmp_path / "full" / full
    file.parent.mkdir(parents=True)
    file.symlink_to("/dev/full")
    with pytest.raises(NotWritten, match=f"{file.name}.*(unexpected pos|No space left)"):
        ranks.save(tmp_path / "full")
    digest = ranks.publish(0)[1].digest
    ranks.save(tmp_path / "sound")
    ranks.update(batch_of(1))
    ranks.restore(tmp_path / "sound")
    assert ranks.publish(0)[1].digest == digest


def test_an_export_that_does_not_fit_leaves_no_rank_waiting(ranks: LearnerGroup, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "model.safetensors").symlink_to("/dev/full")
    with pytest.raises(NotWritten, match="No space left"):
        ranks.export(tmp_path / "full")
    assert ranks.export(tmp_path / "sound") == ranks.publish(0)[1].digest


def test_lost_frames_are_named_before_any_rank_computes(ranks: LearnerGroup, tmp_path: Path) -> None:
    before = ranks.publish(0)[1].digest
    gone = of_a_dead_process()
    batch = batch_of(2, by_reference=True)
    group = batch.groups[1]
    lost = replace(group, clips=(replace(group.clips[0], frames=gone),))
    batch = replace(batch, groups=(batch.groups[0], lost))
    with pytest.raises(FramesLost) as caught:
        ranks.update(batch)
    assert caught.value.references == (gone.hex(),)
    assert ranks.publish(0)[1].digest == before
    ranks.update(batch_of(2))


def test_a_rank_killed_in_an_update_is_a_loss_despite_the_errors_of_others(
    actor_cluster: None, tiny_model_dir: Path
) -> None:
    group = launch(tiny_model_dir)
    _, victim = pids(group)
    os.kill(victim, signal.SIGSTOP)  # so that the other rank is in the collective when it dies
    killer = threading.Timer(1.5, os.kill, (victim, signal.SIGKILL))
    killer.start()
    with pytest.raises(LearnerLost, match="learner.update: all ranks were stopped, because"):
        group.update(batch_of(3))
    with pytest.raises(LearnerLost, match="have been ended"):
        group.require_alive()


def test_a_rank_that_is_stopped_is_a_loss_at_its_deadline_and_is_really_killed(ranks: LearnerGroup) -> None:
    ranks.require_alive()
    processes = [psutil.Process(pid) for pid in pids(ranks)]
    processes[0].suspend()
    ranks._timeout_s = 2.0
    with pytest.raises(LearnerLost, match=r"ranks \[0, 1\] took over learner.timeout_s=2.0 s"):
        ranks.update(batch_of(4))
    deadline = time.monotonic() + patience(60.0)
    while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
        assert time.monotonic() < deadline, "a stopped rank outlives its group"
        time.sleep(0.1)
