"""Engine and learner on one GPU by turns (`cluster.colocate`): what each frees for the other, and equal log-probs."""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.gpu_check.figures import GIB, Check, Figure, Skipped, at_least, at_most, found
from benchmarks.gpu_check.stack import CLIPS, LIMITS, TASK, batch_of, difference, sample, stack_config
from rlsys.runs.assemble import open_stack

TURNS = 3
ENGINE_SHARE = 0.5
"""Part of the GPU that the engine takes while it is awake, most of it for keys and values."""
LEAST_FREED = 0.8
"""Part of the engine's memory that its sleep must free; contexts and graphs stay."""


def colocated(check: Check) -> Iterator[Figure]:
    """Some steps of a run in which rank and engine take turns; new weights go by CUDA IPC."""
    config = stack_config(
        check,
        learner={"num_ranks": 1, "zero_stage": 2},
        rollout={"gpu_memory_utilization": ENGINE_SHARE},
        pipeline={"max_lag": 0, "weight_update": "pause"},
        cluster={"colocate": True},
        weights={"transport": "object_store" if check.is_toy else "ipc"},
    )
    if not check.is_toy and used_gib() is None:
        raise Skipped("needs a GPU, none is here")
    with open_stack(config, {TASK}) as stack:
        stack.load_learner(config)
        stack.publish(0)
        for version in range(1, TURNS + 1):
            groups = [sample(stack, *clip, seed=seed) for seed, clip in enumerate(CLIPS)]
            sampling, started = used_gib(), time.perf_counter()
            stack.pool.sleep()  # what `begin_learning` begins with
            asleep = used_gib()
            stack.begin_learning()
            to_learner_s = time.perf_counter() - started
            worst = difference(stack, groups)
            stack.learner.update(batch_of(groups))
            learning, started = used_gib(), time.perf_counter()
            stack.publish(version)
            to_engine_s = time.perf_counter() - started
            yield at_most(f"turn {version}: log-probs, largest difference", worst, LIMITS[check.device])
            yield found(f"turn {version}: engine sleeps, learner's state comes back", to_learner_s, "s")
            yield found(f"turn {version}: learner's state leaves, engine wakes with its weights", to_engine_s, "s")
            if sampling is not None and asleep is not None and learning is not None:
                yield found(f"turn {version}: memory while the engine samples", sampling, "GiB")
                yield found(f"turn {version}: memory while the learner updates", learning, "GiB")
                yield at_least(
                    f"turn {version}: memory that the engine's sleep frees",
                    sampling - asleep,
                    LEAST_FREED * ENGINE_SHARE * total_gib(),
                    "GiB",
                )


def used_gib() -> float | None:
    """Memory in use on the GPU by all processes; None without one."""
    import torch

    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return (total - free) / GIB


def total_gib() -> float:
    """Memory of the GPU."""
    import torch

    return torch.cuda.get_device_properties(0).total_memory / GIB
