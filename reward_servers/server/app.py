"""The reward servers on Ray Serve: started on the cluster of this process, reached by URL."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from collections.abc import Sequence
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.context import _get_global_client, _set_global_client
from ray.serve.exceptions import BackPressureError
from ray.serve.schema import LoggingConfig
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_fixed

from reward_servers.client.transport import RewardServerError, wait_until_healthy
from reward_servers.judging.build import build_judge
from reward_servers.judging.endpoints.board_actor import ClusterBoard
from reward_servers.judging.judge import Judge, JudgeTask
from reward_servers.judging.served_model import with_served_model
from reward_servers.judging.which_judge import judge_kind
from reward_servers.scorers.scorer_processes import ScorerProcesses, try_scorers
from reward_servers.server.auth import TokenCheck, refuse_open_bind, token_from_environment
from reward_servers.server.exported_metrics import Exported, flattened
from reward_servers.server.service import Busy, RewardService
from reward_servers.server.web import build_app
from rlsys.config.run import JudgeConfig, RewardConfig
from rlsys.types import Score

_log = logging.getLogger(__name__)
_CPUS_PER_REPLICA = 0.1  # a group of 8 costs well under a millisecond: it fits beside actors and ranks
_START_TIMEOUT_S = 120.0
_SERVE_TRIES, _SERVE_PAUSE_S = 5, 3.0  # another run on the cluster may be ending Serve just now
_LOGGING = LoggingConfig(log_level="WARNING", enable_access_log=False)
_BACKPRESSURE = BackpressureConfig(status_code=429, retry_after_s=1.0)
_HEALTH_PERIOD_S, _HEALTH_TIMEOUT_S = 5.0, 10.0  # three times too late and a replica counts as hung: not after 100 s
_DRAIN_S = 30.0  # what a replica that is replaced may take to finish its requests
_launched: list[str] = []  # applications that this process started and will end


@serve.deployment
class JudgeServer:
    """The judge in a replica of its own, so that it scales apart from the rules. A shell."""

    def __init__(self, config: JudgeConfig, api_key: str | None) -> None:
        self._board = ClusterBoard(config) if config.urls else None
        self._judge: Judge = build_judge(config, self._board, api_key)
        self._exported = Exported("judge", lambda: self._judge.counters())

    async def score(self, tasks: Sequence[JudgeTask], timeout_s: float) -> list[Score]:
        with self._exported.timed():
            return await self._judge.score(tasks, time.monotonic() + timeout_s)

    async def report(self) -> dict[str, Any]:
        """Return counters of this replica, and the state of the endpoints from the cluster's one board."""
        return {
            "replica": serve.get_replica_context().replica_id.unique_id,
            "kind": self._judge.kind,
            "model": self._judge.model,
            "counters": flattened(self._judge.counters()),
            **({"waiting": 0, "endpoints": {}} if self._board is None else await self._board.snapshot()),
        }


class JudgeHandle:
    """The judge as the rule scorers' replicas reach it: any replica, another one when the first dies meanwhile."""

    def __init__(self, handle: Any, kind: str) -> None:
        self._handle, self.kind = handle, kind

    async def score(self, tasks: Sequence[JudgeTask], timeout_s: float) -> list[Score]:
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                return await self._handle.score.remote(tasks, max(deadline_s - time.monotonic(), 0.0))
            except BackPressureError as error:
                raise Busy("too many requests wait for the judge (reward.judge.max_queued_requests)", 1.0) from error
            except RayActorError as error:  # asking again is safe: verdicts are cached, and scores have no effects
                if time.monotonic() > deadline_s:
                    reason = f"the judge's replica died and no other answered in time: {type(error).__name__}"
                    return [Score(status="infra", scores={}, reason=reason)] * len(tasks)
                await asyncio.sleep(0.1)

    async def reports(self) -> list[dict[str, Any]]:
        return await _broadcast(self._handle, "report")


@serve.deployment
@serve.ingress()
class RuleScorers:
    """The web application in a replica. Rules are scored here: a hop to another process costs more than they do."""

    def __init__(self, reward: RewardConfig, token_check: TokenCheck | None, judge: Any, kind: str | None) -> None:
        self._token_check = token_check
        self._judge = None if judge is None or kind is None else JudgeHandle(judge, kind)
        self._service = RewardService(self._judge, ScorerProcesses(reward.scorers))
        self._exported = Exported("reward", self._service.counters)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_app(self._service, self._token_check, self._status)

    async def report(self) -> dict[str, Any]:
        return {"replica": serve.get_replica_context().replica_id.unique_id, "counters": self._service.counters()}

    async def _status(self) -> dict[str, Any]:
        name = serve.get_replica_context().app_name
        own = serve.get_deployment_handle("RuleScorers", name)
        overview = (await asyncio.to_thread(serve.status)).applications[name]
        return {
            "application": name,
            "deployments": {
                deployment: {"status": found.status.value, "replicas": dict(found.replica_states)}
                for deployment, found in overview.deployments.items()
            },
            "rules": await _broadcast(own, "report"),
            "judge": [] if self._judge is None else await self._judge.reports(),
        }


async def _broadcast(handle: Any, method: str) -> list[dict[str, Any]]:
    response = handle.broadcast(method)
    return list(await response.results_async(timeout_s=10.0))


def launch(reward: RewardConfig, name: str | None = None, *, with_judge: bool = True) -> str:
    """Start reward servers on the Ray cluster of this process and return their base URL, once they answer.

    name: of the Serve application, which then lives under /name and replaces one of that name request by request;
    None generates a new name, so that runs on one cluster do not collide. Serve has one address per cluster: where
    it runs already, that is used.
    with_judge: False starts no judge, for runs whose tasks need none.
    Raises ValueError for an address that others can reach without a token, RewardServerError when the servers
    do not come up, ConfigError for a judge or a custom scorer that cannot work.
    """
    if not ray.is_initialized():
        raise RewardServerError("reward servers need a Ray cluster; call ray.init first, or set reward.url.")
    token = token_from_environment(reward.token_env)
    refuse_open_bind(reward.host, token, reward.token_env)
    try_scorers(reward.scorers)
    kind = judge_kind(reward.judge) if with_judge else None
    name = name or f"rewards-{secrets.token_hex(4)}"
    tries = Retrying(
        retry=retry_if_exception_type(RayActorError),
        stop=stop_after_attempt(_SERVE_TRIES),
        wait=wait_fixed(_SERVE_PAUSE_S),
        before_sleep=_serve_has_ended,
        reraise=True,
    )
    url = tries(_deploy, reward, token, name, kind)
    health = wait_until_healthy(url, _START_TIMEOUT_S)
    _log.info("reward servers at %s score %s; judge: %s", url, ", ".join(health.tasks), health.judge or "none")
    return url


def _deploy(reward: RewardConfig, token: str | None, name: str, kind: str | None) -> str:
    """Deploy the application and return its URL. Raises RayActorError when Serve is ended meanwhile."""
    host, port = _start_serve(reward)
    refuse_open_bind(host, token, reward.token_env)
    base_url = f"http://{_reachable(host)}:{port}"
    judge = None
    if kind is not None:
        if reward.judge.serve_model:
            _launched.append(f"{name}-model")
        config, key = with_served_model(reward.judge, f"{name}-model", base_url)
        judge = _judge_deployment(config, key)
    _launched.append(name)
    serve.run(_rules_deployment(reward, token, judge, kind), name=name, route_prefix=f"/{name}")
    return f"{base_url}/{name}"


def _serve_has_ended(state: RetryCallState) -> None:
    _log.warning("Ray Serve was ended on this cluster while reward servers started there; they start again.")
    _set_global_client(None)  # of the Serve that is gone


def _rules_deployment(reward: RewardConfig, token: str | None, judge: Any, kind: str | None) -> Any:
    return _scaled(RuleScorers, reward).bind(reward, TokenCheck.of(token) if token is not None else None, judge, kind)


def _judge_deployment(judge: JudgeConfig, api_key: str | None) -> Any:
    return _scaled(JudgeServer, judge).bind(judge, api_key)


def _scaled(deployment: Any, limits: RewardConfig | JudgeConfig) -> Any:  # the decorators' Deployment has no type
    """Return the deployment with the replicas and queue of its own section."""
    return deployment.options(
        autoscaling_config=_autoscaling(limits.min_replicas, limits.max_replicas, limits.target_ongoing_requests),
        max_ongoing_requests=2 * limits.target_ongoing_requests,
        max_queued_requests=limits.max_queued_requests,
        backpressure_config=_BACKPRESSURE,
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        graceful_shutdown_timeout_s=_DRAIN_S,
        ray_actor_options={"num_cpus": _CPUS_PER_REPLICA},
        logging_config=_LOGGING,
    )


def _autoscaling(fewest: int, most: int, target: int) -> AutoscalingConfig:
    return AutoscalingConfig(
        min_replicas=fewest,
        initial_replicas=fewest,
        max_replicas=most,
        target_ongoing_requests=target,
        metrics_interval_s=1.0,
        look_back_period_s=5.0,
        upscale_delay_s=2.0,
        downscale_delay_s=60.0,
    )


def shutdown() -> None:
    """Stop what `launch` started in this process, and Serve too when nothing else is served. Safe to call twice."""
    if not ray.is_initialized() or not _launched:
        _launched.clear()
        return
    try:
        if set(serve.status().applications) <= set(_launched):
            serve.shutdown()
        else:
            for name in set(_launched) & set(serve.status().applications):
                serve.delete(name)
    except RayActorError:  # another process has ended Serve, with all its applications
        _set_global_client(None)
    _launched.clear()


def stop(name: str) -> None:
    """Stop the application `name` on this process's cluster, with its judge's model.

    Raises RewardServerError when there is no such application."""
    running = set(serve.status().applications)
    if name not in running:
        served = ", ".join(sorted(running)) or "nothing"
        raise RewardServerError(f"no reward servers {name!r} on this cluster; it serves {served}.")
    for application in {name, f"{name}-model"} & running:
        serve.delete(application)


def forget() -> None:
    """Forget the servers without stopping them, where the whole cluster ends anyway. Ray 2.60 then logs fewer errors.

    Ray keeps its handle of the ended Serve, though, and would use it for the process's next cluster.
    """
    _launched.clear()
    _set_global_client(None)


def _start_serve(reward: RewardConfig) -> tuple[str, int]:
    """Start Serve's proxy unless it runs, and return the (host, port) that it listens at on this cluster."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # it warns of ignored options at every second call
    running = _running_address()
    if running is None:
        port = _usable_port(reward.host, reward.port)
        quiet = _LOGGING
        try:
            http = {"host": reward.host, "port": port}
            serve.start(proxy_location="HeadOnly", http_options=http, logging_config=quiet)
        except ray.exceptions.RayError as error:
            serve.shutdown()  # else a later launch would find a Serve without a proxy
            raise RewardServerError(f"Ray Serve did not start at {reward.host}:{port}: {error}") from error
        except TimeoutError:  # Ray gives it 60 s, which no setting changes; `launch` waits until the servers answer
            _log.warning("Ray Serve's proxy is slow to start on this busy machine; still waiting for it")
        return reward.host, port
    if reward.port not in (0, running[1]):
        raise RewardServerError(
            f"reward.port={reward.port}: Ray Serve already runs on this cluster at {running[0]}:{running[1]}, and it "
            "has one address; use reward.port=0, or end it with `serve shutdown`."
        )
    return running


def _running_address() -> tuple[str, int] | None:
    # Ray 2.60 reports the address of a running Serve only through its own client
    client: Any = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return None
    serve.status()  # raises RayActorError when that Serve has ended: Serve would start again at another address
    return client.http_config.host, client.http_config.port


def _usable_port(host: str, port: int) -> int:
    """Return `port`, or a free one for 0.

    Raises RewardServerError when nothing can listen there: Serve itself would retry indefinitely.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as error:
            raise RewardServerError(
                f"reward.host={host}, reward.port={port}: {error.strerror}; use an address of this machine, "
                "and reward.port=0 for a free port."
            ) from error
        return int(probe.getsockname()[1])


def _reachable(host: str) -> str:
    """Return the address at which this machine reaches a server that listens at `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host.strip("[]"), host.strip("[]"))
    return f"[{host}]" if ":" in host else host
