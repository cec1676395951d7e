"""The reward servers on a real Ray Serve, over HTTP."""

from __future__ import annotations

import dataclasses
import ipaddress
import socket
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import httpx
import numpy as np
import psutil
import pytest
import ray
from ray import serve
from ray.serve._private import api as serve_api
from ray.serve.generated.serve_pb2 import ASGIRequest
from ray.serve.generated.serve_pb2_grpc import ASGIServiceStub

from reward_servers.client.transport import RewardServerError, wait_until_healthy
from reward_servers.server import app
from reward_servers.server.connections import HEADER_TIMEOUT_S, MAX_WAITING
from reward_servers.server.intake import BODY_TIMEOUT_S
from rlsys.config.run import RewardConfig
from rlsys.types import RolloutGroup
from tests.support.factories import make_group
from tests.support.pace import patience
from tests.support.rewards import score_groups

TOKEN = "a-token-for-this-test-only"
TEXTS = (
    "<think>red square</think><answer>1.0 to 2.0</answer>",
    "<think>red square</think><answer>1.0 to 3.0</answer>",
    "<answer>1.0 to 2.0</answer>",
    "nothing",
)


def test_a_taken_port_is_refused_before_serve_starts(serve_cluster: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RewardServerError, match=f"reward.port={port}: Address already in use.*reward.port=0"):
            app.launch(RewardConfig(port=port, token_env="RLSYS_TEST_NO_TOKEN"))


@pytest.fixture(scope="module")
def url(serve_cluster: Path) -> str:
    """Servers that anyone on this machine may ask, on a machine where Ray has no patience with Serve's proxy."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(serve_api, "HTTP_PROXY_TIMEOUT", 0.0)
        return app.launch(RewardConfig(token_env="RLSYS_TEST_NO_TOKEN"), with_judge=False)


def group_of(texts: tuple[str, ...], truth: object = (1.0, 2.0)) -> RolloutGroup:
    group = make_group(num_rollouts=len(texts))
    rollouts = tuple(
        dataclasses.replace(rollout, text=text) for rollout, text in zip(group.rollouts, texts, strict=True)
    )
    return dataclasses.replace(group, rollouts=rollouts, item=dataclasses.replace(group.item, truth=truth))


def test_a_group_is_scored_over_http(url: str) -> None:
    (scored,) = score_groups(url, [group_of(TEXTS)])
    assert scored.is_valid.all()
    np.testing.assert_array_equal(scored.scores, np.array([[1, 1], [1, 0.5], [0, 1], [0, 0]], np.float32))
    np.testing.assert_array_equal(scored.rewards, np.array([2, 1.5, 1, 0], np.float32))


def test_many_groups_at_once_all_come_back(url: str) -> None:
    scored = score_groups(url, [group_of(TEXTS * 2) for _ in range(64)])
    assert all(group.is_valid.all() and group.rewards.sum() == 9 for group in scored)


def test_a_broken_truth_is_missing_data_with_the_reason(url: str) -> None:
    broken, fine = score_groups(url, [group_of(TEXTS, truth=(2.0, 2.0)), group_of(TEXTS)])
    assert not broken.is_valid.any() and np.isnan(broken.rewards).all()
    assert all(reason.startswith("malformed: time span") for reason in broken.reasons)
    assert fine.is_valid.all()


def test_health_names_the_tasks(url: str) -> None:
    health = wait_until_healthy(url, 10.0)
    assert {"temporal_grounding", "grounded_qa", "tracking", "multiple_choice"} <= set(health.tasks)
    assert health.judge is None and "captioning" not in health.tasks


def test_bad_requests_get_through_serve_as_they_are(url: str) -> None:
    with httpx.Client(base_url=url, trust_env=False, headers={"content-type": "application/json"}) as http:
        assert http.post("/v1/score", content=b"{").status_code == 422
        assert http.post("/v1/score", content=b" " * (9 << 20)).status_code == 413
        assert http.get("/v1/score").status_code == 405


def test_clients_that_send_half_a_body_hold_nobody_out(url: str) -> None:
    """More of them than the replica and its queue have places for (128 and 512)."""
    address = urlsplit(url)
    head = (
        f"POST {address.path}/v1/score HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
        'Content-Length: 1000\r\n\r\n{"rows": ['
    )
    with ExitStack() as crowd:
        for _ in range(800):
            half = crowd.enter_context(socket.create_connection((address.hostname, address.port)))
            half.sendall(head.encode())
        scored = score_groups(url, [group_of(TEXTS) for _ in range(8)], timeout_s=patience(8.0))
        assert all(group.is_valid.all() for group in scored), scored[0].reasons
        half.settimeout(patience(BODY_TIMEOUT_S + 20))
        assert half.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_clients_that_send_half_of_the_headers_hold_nobody_out(url: str) -> None:
    address = urlsplit(url)
    half = f"POST {address.path}/v1/score HTTP/1.1\r\nHost: test\r\nX-Half: ".encode()
    with ExitStack() as crowd:
        clients = [
            crowd.enter_context(socket.create_connection((address.hostname, address.port)))
            for _ in range(MAX_WAITING + 100)
        ]
        for client in clients[100:]:
            client.sendall(half)
        scored = score_groups(url, [group_of(TEXTS) for _ in range(8)], timeout_s=patience(8.0))
        assert all(group.is_valid.all() for group in scored), scored[0].reasons
        clients[0].settimeout(patience(HEADER_TIMEOUT_S / 2))  # one beyond the bound, which has no time left
        assert clients[0].recv(1000) == b""
        clients[-1].settimeout(patience(HEADER_TIMEOUT_S + 20))
        assert clients[-1].recv(1000).startswith(b"HTTP/1.1 408 ")


def is_on_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback


def test_every_listener_is_on_loopback_or_wants_the_clusters_token(url: str) -> None:
    """Replicas of Ray Serve 2.60 listen on all addresses for each other, whatever the cluster's own address is."""
    listeners = {
        (child.cmdline()[0], found.laddr.ip, found.laddr.port)
        for child in psutil.Process().children(recursive=True)
        if child.is_running() and child.status() != psutil.STATUS_ZOMBIE
        for found in child.net_connections("tcp")
        if found.status == psutil.CONN_LISTEN
    }
    assert len(listeners) > 5  # the cluster's own processes and the proxy are among them
    is_open = {found for found in listeners if not is_on_loopback(found[1])}
    assert all(name.startswith("ray::ServeReplica:") for name, *_ in is_open), sorted(is_open)
    for _, _, port in is_open:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            for service in (ASGIServiceStub(channel).HandleRequest, ASGIServiceStub(channel).HandleRequestStreaming):
                with pytest.raises(grpc.RpcError) as error:
                    list(answer) if hasattr(answer := service(ASGIRequest(), timeout=patience(10.0)), "__iter__") else 0
                assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_guarded_servers_run_beside_open_ones_and_want_their_token(
    url: str, serve_cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLSYS_TEST_TOKEN", TOKEN)
    guarded = app.launch(RewardConfig(token_env="RLSYS_TEST_TOKEN"), with_judge=False)
    assert guarded != url
    assert score_groups(guarded, [group_of(TEXTS)], token=TOKEN)[0].is_valid.all()
    assert score_groups(url, [group_of(TEXTS)])[0].is_valid.all()
    for wrong in (None, "wrong"):
        with pytest.raises(RewardServerError, match="401.*RLSYS_REWARD_TOKEN") as error:
            score_groups(guarded, [group_of(TEXTS)], token=wrong)
        assert guarded in str(error.value)
    logs = [path for path in serve_cluster.rglob("logs/**/*") if path.is_file()]
    assert logs
    assert not [path for path in logs if TOKEN.encode() in path.read_bytes()]


def test_an_address_that_others_reach_needs_a_token_before_anything_starts(serve_cluster: Path) -> None:
    with pytest.raises(ValueError, match="reward.host=0.0.0.0.*RLSYS_TEST_NO_TOKEN"):
        app.launch(RewardConfig(host="0.0.0.0", token_env="RLSYS_TEST_NO_TOKEN"))


def test_a_second_address_on_one_cluster_is_refused(url: str) -> None:
    with pytest.raises(RewardServerError, match="reward.port=1: Ray Serve already runs"):
        app.launch(RewardConfig(port=1, token_env="RLSYS_TEST_NO_TOKEN"))


def test_without_a_cluster_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(RewardServerError, match="reward.url"):
        app.launch(RewardConfig())


def test_after_shutdown_groups_are_missing_and_servers_can_be_started_again(url: str) -> None:
    app.shutdown()
    app.shutdown()
    (scored,) = score_groups(url, [group_of(TEXTS)], timeout_s=1.0)
    assert not scored.is_valid.any() and np.isnan(scored.rewards).all()
    assert all(reason.startswith("infra") for reason in scored.reasons)
    again = app.launch(RewardConfig(token_env="RLSYS_TEST_NO_TOKEN"), with_judge=False)
    assert score_groups(again, [group_of(TEXTS)])[0].is_valid.all()


def test_servers_start_although_another_process_has_just_ended_serve(url: str) -> None:
    settings = RewardConfig(token_env="RLSYS_TEST_NO_TOKEN")
    app.launch(settings, with_judge=False)
    ray.get(ray.remote(num_cpus=0)(serve.shutdown).remote(), timeout=patience(60.0))
    again = app.launch(settings, with_judge=False)  # with what this process knows of the Serve that was ended
    assert score_groups(again, [group_of(TEXTS)])[0].is_valid.all()
    ray.get(ray.remote(num_cpus=0)(serve.shutdown).remote(), timeout=patience(60.0))
    app.shutdown()
