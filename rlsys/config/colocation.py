"""What `cluster.colocate` asks of the other sections."""

from __future__ import annotations

from collections.abc import Iterator

from rlsys.config.learner import LearnerConfig
from rlsys.config.rollout import RolloutConfig


def check_colocation(*, max_lag: int, rollout: RolloutConfig, learner: LearnerConfig, transport: str) -> None:
    """Raise ValueError if engines and learner ranks cannot take turns at shared GPUs. max_lag: of `pipeline`."""
    if found := list(_problems(max_lag, rollout, learner, transport)):
        raise ValueError(" ".join(f"cluster.colocate=true: {problem}" for problem in found))


def _problems(max_lag: int, rollout: RolloutConfig, learner: LearnerConfig, transport: str) -> Iterator[str]:
    if max_lag:
        yield (
            f"pipeline.max_lag={max_lag} samples while the learner works, but then the engines sleep; "
            "set pipeline.max_lag=0, or cluster.colocate=false."
        )
    if rollout.num_actors != learner.num_ranks:
        yield (
            f"rollout.num_actors={rollout.num_actors} and learner.num_ranks={learner.num_ranks} differ, but every rank "
            "shares its GPU with one actor; set both to the number of GPUs."
        )
    if rollout.tensor_parallel_size > 1:
        yield (
            f"rollout.tensor_parallel_size={rollout.tensor_parallel_size} spreads an engine over the GPUs of several "
            "ranks, which is not supported; set it to 1."
        )
    if transport == "collective":
        yield (
            "weights.transport=collective broadcasts among GPUs, and NCCL refuses two members on one; use "
            "weights.transport=object_store or ipc."
        )
    if learner.zero_stage < 2:
        yield (
            f"learner.zero_stage={learner.zero_stage} keeps state that DeepSpeed cannot move to host memory; "
            "set it to 2 or 3."
        )
    if "parameters" in learner.offload:
        yield (
            'learner.offload has "parameters", which DeepSpeed then does not move while engines sample; remove it: '
            "they are in host memory during sampling anyway."
        )
