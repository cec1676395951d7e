"""Section `weights`: the transport of weights to the actors."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlsys.config.part import Part


class WeightsConfig(Part):
    """The settings of weight transfers."""

    transport: Literal["object_store", "collective", "ipc"] = "object_store"
    """Transport from the learner to the actors: Ray's object store (any hardware), a broadcast among learner and
    actors (collective: NCCL on GPUs, gloo on CPU), or CUDA IPC if both share their GPUs."""
    bucket_mib: int = Field(default=256, ge=1)
    """Size of the buckets in which weights are gathered, sent and loaded, in MiB; a larger tensor goes alone."""
    timeout_s: float = Field(default=300.0, gt=0)
    """Time limit for fetching one bucket, in seconds; with transport "collective" also for the rendezvous and for each
    broadcast. A receiver that misses either fetches the weights from the object store."""
    delta: Literal["auto", "always", "never"] = "auto"
    """Whether actors that hold the version before are sent only the numbers that changed, with their positions,
    wherever that is shorter. Each engine then keeps a copy of the model in host memory. "auto" does so where few
    numbers change and the bytes travel: with 16-bit weights, on CPU with transport "collective" and with "object_store"
    on a cluster of several nodes."""


def wants_deltas(weights: WeightsConfig, *, dtype: str, device: str, num_nodes: int) -> bool:
    """Return whether deltas are sent. They never are if engines load from the transport itself, as on GPUs.

    dtype: of the weights; of float32 nearly every number changes in a step.
    """
    if weights.transport == "ipc" or (weights.transport == "collective" and device == "cuda"):
        return False
    if weights.delta == "auto":
        return dtype != "float32" and (weights.transport == "collective" or num_nodes > 1)
    return weights.delta == "always"


def check_delta(weights: WeightsConfig, *, device: str) -> None:
    """Raise ValueError if deltas are demanded of a transport that cannot carry them."""
    if weights.delta == "always" and not wants_deltas(weights, dtype="", device=device, num_nodes=1):
        raise ValueError(
            f"weights.delta=always: with weights.transport={weights.transport} and cluster.device={device} engines "
            "load whole tensors from the transport itself. Use weights.delta=auto, or weights.transport=object_store."
        )


def check_transport(transport: str, *, device: str, tensor_parallel_size: int, zero_stage: int) -> None:
    """Raise ValueError if a run cannot use this transport.

    CUDA IPC shares GPU memory by handle, which needs a GPU, one complete copy of each tensor on it, and one engine
    process that opens the handles.
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
