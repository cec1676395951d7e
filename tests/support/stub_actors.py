"""Rollout actors without an engine, for faults that a real one cannot be made to show on command."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping

import numpy as np
import ray

from actors.errors import WeightsRefused
from actors.requests import GroupRequest
from rlsys.types import Rollout
from rlsys.weights.version import WeightVersion


class StubActor:
    """An actor that answers at once with rollouts that depend on seed and version; the prompt's id scripts faults.

    behaviour: "sound"; "stillborn" fails while it starts; "forgetful" acknowledges another digest; "stuck" hangs when
    it is sent the second version of the weights.
    """

    def __init__(self, behaviour: str = "sound") -> None:
        if behaviour == "stillborn":
            raise FileNotFoundError("no checkpoint at /nowhere")
        self._behaviour = behaviour
        self._version: WeightVersion | None = None
        self._running: list[str] = []
        self._started: list[str] = []
        self._most_running = 0

    async def ping(self) -> int:
        return os.getpid()

    async def load_weights(self, tensors: Mapping[str, object], version: WeightVersion) -> WeightVersion:
        if "wrong" in tensors:
            raise WeightsRefused("wrong: not a weight of this model")
        if self._behaviour == "stuck" and self._version is not None:
            time.sleep(600)
        self._version = version
        if self._behaviour == "forgetful":
            return WeightVersion(version=version.version, transport="", num_tensors=0, num_bytes=0, digest="other")
        return version

    async def generate(self, request: GroupRequest, *frames: np.ndarray) -> tuple[Rollout, ...]:
        assert self._version is not None
        self._running.append(request.prompt_id)
        self._started.append(request.prompt_id)
        self._most_running = max(self._most_running, len(self._running))
        name = request.prompt_id.partition(":")[0]
        if name == "killer":
            await asyncio.sleep(0.3)  # company has time to arrive
            os._exit(1)
        if name == "sleeper":
            time.sleep(600)
        if name == "slow":
            await asyncio.sleep(float(request.prompt_id.partition(":")[2]))
        self._running.remove(request.prompt_id)
        return tuple(self._rollout(request, index) for index in range(request.sampling.num_samples))

    async def sleep(self) -> None:
        assert not self._running
        self._version = None

    async def wake(self) -> None:
        assert self._version is not None

    async def most_running(self) -> int:
        return self._most_running

    async def started(self) -> list[str]:
        return self._started

    async def shutdown(self) -> None:
        return None

    def _rollout(self, request: GroupRequest, index: int) -> Rollout:
        ids = np.array([request.sampling.seed + index, self._version.version], np.int32)
        return Rollout(
            rollout_id=f"{request.prompt_id}/{index}",
            prompt_id=request.prompt_id,
            sample_index=index,
            prompt_ids=request.engine_ids,
            response_ids=ids,
            response_logprobs=np.zeros(2, np.float32),
            text=str(os.getpid()),
            finish_reason="stop",
            token_versions=np.full(2, self._version.version, np.int32),
            generate_s=0.0,
        )


def start_stub(behaviour: str = "sound") -> ray.actor.ActorHandle:
    """Start a stub and return its handle at once."""
    return ray.remote(StubActor).options(num_cpus=0, max_restarts=0).remote(behaviour)
