"""Weight sync on the real stack, timed by part: each transport, tensor parallelism, adapters, and a killed engine."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.gpu_check.figures import Check, Figure, Skipped, at_least, at_most, found
from benchmarks.gpu_check.stack import CLIPS, LIMITS, TASK, batch_of, difference, require_gpus, sample, stack_config
from rlsys.config.run import RunConfig, load
from rlsys.runs.assemble import Stack, open_stack
from rlsys.types import RolloutGroup

UPDATES = 3
GOAL_S, GOAL_BYTES = 1.5, 16e9
"""On one node; larger models may take longer in proportion."""
BF16_LIMIT = 0.5
"""Largest difference of log-probs in bf16; 0.05 is usual, and stale weights give more."""
KILL_AT = 0.4
"""Part of a sync's time after which an engine is killed."""
RECOVERY_S = 300.0


def store(check: Check) -> Iterator[Figure]:
    """Through Ray's object store."""
    yield from _sync(check, {"rollout.num_actors": 1, "weights.transport": "object_store"})


def nccl(check: Check) -> Iterator[Figure]:
    """Broadcast to two engines (gloo on a CPU), then one of them is killed in mid-broadcast."""
    yield from _sync(check, {"rollout.num_actors": 2, "weights.transport": "collective"}, kills=True)


def tensor_parallel(check: Check) -> Iterator[Figure]:
    """To an engine whose matrices are split over two GPUs."""
    if check.is_toy:
        raise Skipped("tensor parallelism is for GPUs")
    yield from _sync(check, {"rollout.num_actors": 1, "rollout.tensor_parallel_size": 2})


def lora(check: Check) -> Iterator[Figure]:
    """Adapters alone."""
    yield from _sync(check, {"rollout.num_actors": 1, "learner.lora.rank": 16})


def _config(check: Check, settings: dict[str, Any]) -> RunConfig:
    """The run's config where one is given, else the small model's, with these settings."""
    if check.config:
        changed = [f"{key}={value}" for key, value in settings.items()]
        return load(Path(check.config), [*check.overrides, f"output_dir={check.scratch / 'out'}", *changed])
    sections: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        section, *names = key.split(".")
        for name in names[1:]:  # two levels below a section: learner.lora.rank
            value = {name: value}
        sections.setdefault(section, {})[names[0]] = value
    return stack_config(check, **sections)


def _sync(check: Check, settings: dict[str, Any], *, kills: bool = False) -> Iterator[Figure]:
    config = _config(check, settings)
    require_gpus(check, config)
    limit = LIMITS[check.device] if config.model.dtype == "float32" else BF16_LIMIT
    with open_stack(config, {TASK}) as stack:
        stack.load_learner(config)
        stack.publish(0)
        groups = [sample(stack, *CLIPS[1], seed=seed) for seed in range(config.learner.num_ranks)]
        timed = []
        for version in range(1, UPDATES + 1):
            stack.learner.update(batch_of(groups))
            started = time.perf_counter()
            weights = stack.publish(version)
            timed.append((time.perf_counter() - started, stack.pool.counters()["weights/load_s"]))
        whole_s, load_s = min(timed)
        yield found("sent", weights.num_bytes / 1e9, "GB")
        yield _goal(check, whole_s, weights.num_bytes)
        yield found("of which the learner gathers, digests and offers", whole_s - load_s, "s")
        yield found("of which engines receive, load and verify", load_s, "s")
        yield found("rate", weights.num_bytes / whole_s / 1e9, "GB/s")
        yield at_most("log-probs after it, largest difference", difference(stack, [_fresh(stack)]), limit)
        if kills:
            yield from _killed(stack, groups, whole_s, limit)


def _goal(check: Check, seconds: float, num_bytes: int) -> Figure:
    if check.is_toy:
        return found("a sync", seconds, "s")
    return at_most("a sync", seconds, GOAL_S * max(1.0, num_bytes / GOAL_BYTES), "s")


def _fresh(stack: Stack) -> RolloutGroup:
    return sample(stack, *CLIPS[1], seed=1000)


def _killed(stack: Stack, groups: list[RolloutGroup], sync_s: float, limit: float) -> Iterator[Figure]:
    """One engine dies while it receives: the other has the version, and a new engine gets it too."""
    victim = next(p for p in psutil.Process().children(recursive=True) if _title(p).startswith("ray::RolloutActor"))
    stack.learner.update(batch_of(groups))
    timer = threading.Timer(KILL_AT * sync_s, os.kill, (victim.pid, signal.SIGKILL))
    timer.start()
    started = time.perf_counter()
    weights = stack.publish(UPDATES + 1)
    yield found("a sync in which an engine is killed", time.perf_counter() - started, "s")
    timer.join()
    group = _fresh(stack)
    oldest = min(int(rollout.token_versions.min()) for rollout in group.rollouts)
    yield at_least("version that the other engine samples", float(oldest), float(weights.version))
    yield at_most("its log-probs, largest difference", difference(stack, [group]), limit)
    deadline = time.monotonic() + RECOVERY_S
    while (ready := stack.pool.counters()["rollout/ready_actors"]) < 2 and time.monotonic() < deadline:
        time.sleep(0.5)
    yield at_least("engines that hold the version in the end", ready, 2.0)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
