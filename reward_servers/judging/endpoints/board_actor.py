"""The one owner of a cluster's judge limits: a named Ray actor around `EndpointBoard`, created on first use.

Every judge replica of every application that uses the same endpoints calls this one actor, so limits hold
for all of them together. It ends itself when it has not been called for a while.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import time
import warnings
from typing import Any

import ray
from ray.exceptions import RayActorError

from reward_servers.judging.endpoints.endpoints import EndpointBoard
from reward_servers.judging.endpoints.leases import CallReport, Lease, NoEndpoint
from rlsys.config.run import JudgeConfig

NAMESPACE = "rlsys"
IDLE_S = 600.0  # a detached actor outlives its makers, so it must end by itself


class BoardShell:
    """`EndpointBoard` as an actor. After a restart it does not know which calls run, and waits for them to be over."""

    def __init__(self, config: JudgeConfig) -> None:
        with warnings.catch_warnings(action="ignore"):  # Ray 2.60 deprecates what it calls itself here
            is_restart = ray.get_runtime_context().was_current_actor_reconstructed
        self._board = EndpointBoard(config, quiet_s=config.call_timeout_s if is_restart else 0.0)
        self._used_s = time.monotonic()
        self._idle = asyncio.get_running_loop().create_task(self._end_when_idle())

    async def adopt(self, config: JudgeConfig) -> None:
        await self._board.adopt(config)

    async def acquire(self, tokens: int, avoid: tuple[str, ...], wait_s: float) -> Lease:
        self._used_s = time.monotonic()
        return await self._board.acquire(tokens, avoid, wait_s)

    async def release(self, lease_id: str, report: CallReport) -> None:
        self._used_s = time.monotonic()
        await self._board.release(lease_id, report)

    async def hedge_after_s(self) -> float | None:
        return await self._board.hedge_after_s()

    async def snapshot(self) -> dict[str, Any]:
        return await self._board.snapshot()

    async def _end_when_idle(self) -> None:
        while time.monotonic() - self._used_s < IDLE_S:
            await asyncio.sleep(IDLE_S / 10)
        ray.actor.exit_actor()


class ClusterBoard:
    """The `Board` that judge replicas use: calls the cluster's one actor, and makes it when it is not there."""

    def __init__(self, config: JudgeConfig) -> None:
        self._config = config
        self._name = f"judge-limits-{hashlib.sha256(repr(sorted(config.urls)).encode()).hexdigest()[:12]}"
        self._handle: Any = None

    async def acquire(self, tokens: int, avoid: tuple[str, ...], wait_s: float) -> Lease:
        return await self._call("acquire", tokens, avoid, wait_s)

    async def release(self, lease_id: str, report: CallReport) -> None:
        await self._call("release", lease_id, report)

    async def hedge_after_s(self) -> float | None:
        return await self._call("hedge_after_s")

    async def snapshot(self) -> dict[str, Any]:
        return await self._call("snapshot")

    async def _call(self, method: str, *arguments: Any) -> Any:
        # When a caller hangs up, Ray cancels what its request has called, the report that ends a lease among them.
        # In a context without the request's id the call belongs to the replica instead.
        call = asyncio.get_running_loop().create_task(self._asked(method, *arguments), context=contextvars.Context())
        return await call

    async def _asked(self, method: str, *arguments: Any) -> Any:
        for _ in range(2):  # it may have ended itself between the look-up and the call
            self._handle = self._handle or self._actor()
            try:
                return await getattr(self._handle, method).remote(*arguments)
            except RayActorError as error:
                self._handle, last = None, error
        raise NoEndpoint(f"the owner of the judge's limits does not answer: {type(last).__name__}")

    def _actor(self) -> Any:
        actor = (
            ray.remote(BoardShell)
            .options(
                name=self._name,
                namespace=NAMESPACE,
                get_if_exists=True,
                lifetime="detached",
                num_cpus=0,
                max_restarts=-1,
                max_concurrency=10_000,  # a waiting caller is a waiting call
            )
            .remote(self._config)
        )
        actor.adopt.remote(self._config)  # one that was there already may have the limits of an earlier deployment
        return actor
