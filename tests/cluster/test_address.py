"""The address of a cluster: every odd value has a stated outcome, at once."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from cluster.address import Address, cluster_address, require_cluster
from cluster.launch import ROOT
from rlsys.config.run import ClusterConfig, ConfigError
from tests.support.cluster import RayHead
from tests.support.pace import patience


@pytest.mark.parametrize("value", ["", " ", "\t\n", "local", " local "])
def test_nothing_and_local_ask_for_a_cluster_of_ones_own(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", value)
    assert cluster_address(ClusterConfig()) is None
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert cluster_address(ClusterConfig(address=value)) is None


@pytest.mark.parametrize(
    ("value", "means"), [("10.0.0.1:6379", "10.0.0.1:6379"), (" head:6379 ", "head:6379"), ("auto", "auto")]
)
def test_a_cluster_is_named_by_the_config_or_the_environment(
    value: str, means: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", value)
    assert cluster_address(ClusterConfig()) == Address(source="RAY_ADDRESS", value=means)
    monkeypatch.setenv("RAY_ADDRESS", "other:1")
    assert cluster_address(ClusterConfig(address=value)) == Address(source="cluster.address", value=means)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (
            "http://10.0.0.1:8265",
            "this is a dashboard, not a cluster; use `rlsys submit --address http://10.0.0.1:8265`",
        ),
        ("https://10.0.0.1:8265", "this is a dashboard, not a cluster"),
        ("ray://10.0.0.1:10001", "cannot use ray://"),
        ("grpc://10.0.0.1:1", "cannot use grpc://"),
        ("10.0.0.1", "not HOST:PORT"),
        (":6379", "not HOST:PORT"),
        ("10.0.0.1:", "not HOST:PORT"),
        ("10.0.0.1:ray", "not HOST:PORT"),
        ("10.0.0.1:0", "not HOST:PORT"),
        ("10.0.0.1:65536", "not HOST:PORT"),
        ("AUTO", "not HOST:PORT"),
        ("None", "not HOST:PORT"),
    ],
)
def test_what_is_no_address_of_a_cluster_is_refused_without_trying_it(
    value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", value)
    with pytest.raises(ConfigError, match=f"^RAY_ADDRESS={value}: .*{says}"):
        cluster_address(ClusterConfig())


@pytest.fixture
def web_server() -> Iterator[int]:
    """The port of a server that speaks HTTP and is no Ray cluster."""
    server = http.server.HTTPServer(("0.0.0.0", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


def test_another_server_at_the_address_is_told_from_a_cluster(web_server: int) -> None:
    with pytest.raises(ConfigError, match=f"no Ray cluster answers at 127.0.0.1:{web_server} .*something else listens"):
        require_cluster(Address(source="RAY_ADDRESS", value=f"127.0.0.1:{web_server}"))


def test_a_dead_address_and_an_unknown_host_are_named_with_their_source() -> None:
    with pytest.raises(ConfigError, match=r"no Ray cluster answers at 127.0.0.1:9 \(RAY_ADDRESS"):
        require_cluster(Address(source="RAY_ADDRESS", value="127.0.0.1:9"))
    with pytest.raises(ConfigError, match=r"no Ray cluster answers at no-host.invalid:6379 \(cluster.address\)"):
        require_cluster(Address(source="cluster.address", value="no-host.invalid:6379"))


def python(code: str, ray_head: RayHead, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**clean, **ray_head.environment, **variables},
        capture_output=True,
        text=True,
        timeout=patience(120.0),
    )


OPEN = (
    "import ray; from cluster.launch import open_cluster; from rlsys.config.run import parse\n"
    "config = parse({'output_dir': 'out', 'model': {'path': 'm'}}, source='test')\n"
    "with open_cluster(config, parts=('rewards',)): pass\n"
)


def test_a_real_cluster_answers_whether_or_not_it_wants_a_token(ray_head: RayHead) -> None:
    code = f"from cluster.address import *; require_cluster(Address(source='s', value={ray_head.address!r}))"
    done = python(code, ray_head)
    assert done.returncode == 0, done.stderr
    done = python(OPEN, ray_head, RAY_ADDRESS=ray_head.address, RAY_AUTH_TOKEN="0" * 32)
    assert "ConfigError" in done.stderr and "RAY_AUTH_MODE=token" in done.stderr


def test_a_cluster_of_another_version_of_ray_is_named(ray_head: RayHead) -> None:
    code = f"import ray; ray.__version__ = '2.0.0'\n{OPEN}"
    done = python(code, ray_head, RAY_ADDRESS=ray_head.address)
    assert f"ConfigError: RAY_ADDRESS={ray_head.address}: this cluster runs another version of Ray" in done.stderr
