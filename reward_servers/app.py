"""The reward servers on Ray Serve: started on the cluster of this process, reached by URL."""

from __future__ import annotations

import logging
import secrets
import socket
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.context import _get_global_client, _set_global_client
from ray.serve.schema import LoggingConfig

from reward_servers.auth import TokenCheck, refuse_open_bind, token_from_environment
from reward_servers.client import RewardServerError, wait_until_healthy
from reward_servers.service import build
from rlsys.config import RewardConfig

_log = logging.getLogger(__name__)
_CPUS_PER_REPLICA = 0.1  # a group of 8 costs well under a millisecond: it fits beside actors and ranks
_START_TIMEOUT_S = 120.0
_launched: list[str] = []  # applications that this process started and will end


@serve.deployment
@serve.ingress()
class RuleScorers:
    """The web application in a replica. Rules are scored here: a hop to another process costs more than they do."""

    def __init__(self, token_check: TokenCheck | None) -> None:
        self._token_check = token_check

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build(self._token_check)


def launch(reward: RewardConfig, name: str | None = None) -> str:
    """Base URL of reward servers just started on the Ray cluster of this process, once they answer.

    name: of the Serve application, which then lives under /name and replaces one of that name; None takes a new one,
    so that runs on one cluster do not meet. Serve has one address per cluster: where it runs already, that is used.
    Raises ValueError for an address that others can reach without a token, RewardServerError when the servers
    do not come up.
    """
    if not ray.is_initialized():
        raise RewardServerError("reward servers need a Ray cluster; call ray.init first, or set reward.url.")
    token = token_from_environment(reward.token_env)
    refuse_open_bind(reward.host, token, reward.token_env)
    host, port = _start_serve(reward)
    refuse_open_bind(host, token, reward.token_env)
    name = name or f"rewards-{secrets.token_hex(4)}"
    deployment: Any = RuleScorers  # the decorators make a Deployment of the class, unknown to the type checker
    application = deployment.options(
        num_replicas=reward.min_replicas,
        max_ongoing_requests=64,
        ray_actor_options={"num_cpus": _CPUS_PER_REPLICA},
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
    ).bind(TokenCheck.of(token) if token is not None else None)
    _launched.append(name)
    serve.run(application, name=name, route_prefix=f"/{name}")
    url = f"http://{_reachable(host)}:{port}/{name}"
    tasks = wait_until_healthy(url, _START_TIMEOUT_S)
    _log.info("reward servers at %s score %s", url, ", ".join(tasks))
    return url


def shutdown() -> None:
    """Ends what `launch` started in this process, and Serve with it when nothing else is served. Safe to call twice."""
    if not ray.is_initialized() or not _launched:
        _launched.clear()
        return
    if set(serve.status().applications) <= set(_launched):
        serve.shutdown()
    else:
        for name in _launched:
            serve.delete(name)
    _launched.clear()


def forget() -> None:
    """Instead of `shutdown`, where the whole cluster ends anyway. Ray 2.60 complains less then.

    It keeps its handle of the ended Serve, though, and would take it for that of the process's next cluster.
    """
    _launched.clear()
    _set_global_client(None)


def _start_serve(reward: RewardConfig) -> tuple[str, int]:
    """(host, port) that Serve's proxy listens at on this cluster; started when it was not."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # it warns of ignored options at every second call
    running = _running_address()
    if running is None:
        port = _usable_port(reward.host, reward.port)
        quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
        try:
            http = {"host": reward.host, "port": port}
            serve.start(proxy_location="HeadOnly", http_options=http, logging_config=quiet)
        except ray.exceptions.RayError as error:
            serve.shutdown()  # else a later launch would find a Serve without a proxy
            raise RewardServerError(f"Ray Serve did not start at {reward.host}:{port}: {error}") from error
        return reward.host, port
    if reward.port not in (0, running[1]):
        raise RewardServerError(
            f"reward.port={reward.port}: Ray Serve already runs on this cluster at {running[0]}:{running[1]}, and it "
            "has one address; use reward.port=0, or end it with `serve shutdown`."
        )
    return running


def _running_address() -> tuple[str, int] | None:
    # Ray 2.60 tells the address of a running Serve only through its own client
    client: Any = _get_global_client(raise_if_no_controller_running=False)
    return None if client is None else (client.http_config.host, client.http_config.port)


def _usable_port(host: str, port: int) -> int:
    """`port`, or a free one for 0. RewardServerError when nothing can listen there: Serve itself would try for ever."""
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
    """The address at which this machine reaches a server that listens at `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host.strip("[]"), host.strip("[]"))
    return f"[{host}]" if ":" in host else host
