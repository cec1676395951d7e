"""How weights reach the actors."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlsys.config.part import Part


class WeightsConfig(Part):
    transport: Literal["object_store", "collective", "ipc"] = "object_store"
    """How weights get from the learner to the actors: through Ray's object store (any hardware), by a broadcast
    among learner and actors (NCCL on GPUs, gloo on CPU), or by CUDA IPC where both share their GPUs."""
    bucket_mib: int = Field(default=256, ge=1)
    """Most weights that are gathered, sent and loaded at a time, MiB; one tensor that is larger goes alone."""
    timeout_s: float = Field(default=300.0, gt=0)
    """Seconds for fetching one bucket; with transport "collective" also for receivers to meet, and for one broadcast.
    A receiver that missed the meeting or lost the broadcast gets the weights from the object store."""


def check_transport(transport: str, *, device: str, tensor_parallel_size: int, zero_stage: int) -> None:
    """Raises ValueError where a run cannot send its weights so.

    Handles of a GPU's memory need a GPU, one whole copy of each tensor on it, and one engine that opens them.
    """
    if transport != "ipc":
        return
    for field, value, wanted in (
        ("cluster.device", device, "cuda"),
        ("rollout.tensor_parallel_size", tensor_parallel_size, 1),
        ("learner.zero_stage", zero_stage, min(zero_stage, 2)),
    ):
        if value != wanted:
            raise ValueError(
                f"weights.transport=ipc shares whole tensors on one GPU and needs {field}={wanted}; it is {value}. "
                "Use weights.transport=object_store, or collective."
            )
