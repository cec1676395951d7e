"""A Ray cluster in a process tree of its own, as an operator starts one, for tests that submit jobs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import psutil
import pytest

from tests.support.pace import patience

START_TIMEOUT_S = 120.0  # on the reference machine, see `tests.support.pace`
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Without this setting Ray replaces 127.0.0.1 by the machine's address in its network."""


@dataclass(frozen=True, kw_only=True)
class RayHead:
    """The addresses of a cluster. dashboard: http://… for jobs.  address: HOST:PORT for drivers.

    environment: what a process that talks to the cluster needs. Ray keeps its settings per process,
    and other tests start clusters in this one, so let a subprocess do the talking.
    """

    dashboard: str
    address: str
    environment: Mapping[str, str]


@pytest.fixture(scope="session")
def ray_head() -> Iterator[RayHead]:
    """Run `ray start --head` on loopback with ports and a folder of its own; end it with its processes only."""
    folder = Path(tempfile.mkdtemp(prefix="rh-", dir="/tmp"))  # short: Ray's sockets go below it
    gcs, dashboard, client, agent = _free_ports(4)
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        *("--node-ip-address=127.0.0.1", f"--port={gcs}", "--include-dashboard=true"),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
        *(f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"),
        *("--min-worker-port=0", "--max-worker-port=0"),
        *("--num-cpus=8", f"--object-store-memory={200 << 20}", f"--temp-dir={folder}"),
    ]
    log = folder / "start.log"
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **LOOPBACK, **access},
        )
    try:
        _wait_until_up(f"http://127.0.0.1:{dashboard}/api/jobs/", access["RAY_AUTH_TOKEN"], process, log)
        yield RayHead(
            dashboard=f"http://127.0.0.1:{dashboard}", address=f"127.0.0.1:{gcs}", environment=LOOPBACK | access
        )
    finally:
        _end_tree(process)
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _wait_until_up(url: str, token: str, process: subprocess.Popen[bytes], log: Path) -> None:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    deadline = time.monotonic() + patience(START_TIMEOUT_S)
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.3)
    raise AssertionError(f"{url} did not answer in time: {log.read_text()}")


def _end_tree(process: subprocess.Popen[bytes]) -> None:
    """End the process and all its descendants, each by its id."""
    tree = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()  # `ray start --block` ends what it started
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(tree, timeout=5)
    for survivor in alive:
        survivor.kill()
    psutil.wait_procs(alive, timeout=5)
