"""A Ray cluster of two nodes on loopback, whose processes, and no others, can be found and killed.

with TwoNodes(folder) as cluster:
    …                                  # drivers attach to cluster.address with cluster.environment
    cluster.find("actor")              # processes by kind
    cluster.second.kill_raylet()
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import psutil

from benchmarks.chaos.kills import TITLES

log = logging.getLogger(__name__)

REPO = Path(__file__).resolve().parents[2]
HEAD, SECOND = "127.0.0.1", "127.0.0.2"
START_TIMEOUT_S = 120.0
END_TIMEOUT_S = 15.0
GONE_TIMEOUT_S = 60.0
SETTINGS = {
    # without this setting Ray replaces 127.0.0.1 by the machine's address in its network
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # a raylet that is stopped counts as lost after some 15 s, not 40
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "4",
    # Ray Serve gives its proxy 5 s to answer, which a machine that starts a dozen processes can need
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
    "GLOO_SOCKET_IFNAME": "lo",  # ranks on two addresses of one machine
    "OMP_NUM_THREADS": "1",
}


def started(command: Sequence[str], environment: Mapping[str, str], log_file: Path) -> subprocess.Popen[bytes]:
    """Start a command in the repository's folder and a session of its own, with its output appended to a file."""
    with log_file.open("a") as output:
        return subprocess.Popen(
            command,
            cwd=REPO,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )


class NodeProcess:
    """One node: a process of `benchmarks.chaos.node` and everything that it starts."""

    def __init__(self, address: str, command: Sequence[str], environment: dict[str, str], log_file: Path) -> None:
        self.address, self._log = address, log_file
        self._process = started(command, environment, log_file)

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def wait_up(self, ready: Path) -> str:
        """Wait until the node is up and return the HOST:PORT of the cluster. Raises RuntimeError if it ends."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (ready.exists() and (address := ready.read_text())):
            if self.has_ended or time.monotonic() > deadline:
                raise RuntimeError(f"the node at {self.address} did not come up:\n{self._log.read_text()[-4000:]}")
            time.sleep(0.1)
        return address

    def tree(self) -> list[psutil.Process]:
        """Return the node's descendants, which are the only processes that may be harmed."""
        return [] if self.has_ended else descendants(self._process.pid)

    def raylet(self) -> psutil.Process | None:
        for process in self.tree():
            if title(process).split(" ")[0].endswith("/raylet"):
                return process
        return None

    def end(self, *, hard: bool = False) -> None:
        """End the node and its descendants. hard: with SIGKILL, as if its machine lost power."""
        tree = self.tree()
        if hard:
            signal_all(tree, signal.SIGKILL)
            self._process.kill()
        else:
            self._process.terminate()
        try:
            self._process.wait(timeout=END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _, alive = psutil.wait_procs(tree, timeout=3)
        signal_all(alive, signal.SIGKILL)


class TwoNodes:
    """A context manager that runs two nodes.

    Its temporary folder with Ray's logs is deleted at the end unless `keep_logs` is set.
    """

    def __init__(self, folder: Path, *, num_cpus: int = 3, store_mib: int = 150) -> None:
        self._folder, self._num_cpus, self._store_mib = folder, num_cpus, store_mib
        self._ray_folder = Path(tempfile.mkdtemp(prefix="ch-", dir="/tmp"))  # short: Ray's sockets go below it
        path = os.pathsep.join(part for part in (str(REPO), os.environ.get("PYTHONPATH", "")) if part)
        self.environment = {
            **SETTINGS,
            "PYTHONPATH": path,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": uuid.uuid4().hex,
        }
        self.address = ""
        self.keep_logs = False
        self._known: dict[tuple[int, float], psutil.Process] = {}
        self._num_started = 0

    def __enter__(self) -> TwoNodes:
        self._folder.mkdir(parents=True, exist_ok=True)
        self.head, ready = self._start(HEAD)
        try:
            self.address = self.head.wait_up(ready)
            self.second, ready = self._start(SECOND)
            self.second.wait_up(ready)
        except RuntimeError:
            self.head.end(hard=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.note_processes()
        for node in (self.second, self.head):
            node.end()
        for process in self.survivors(timeout_s=END_TIMEOUT_S):
            log.warning("left behind: %d %s", process.pid, title(process))
            signal_all([process], signal.SIGKILL)
        if kind is None and not self.keep_logs:
            shutil.rmtree(self._ray_folder, ignore_errors=True)
        else:
            log.warning("Ray's logs are in %s", self.ray_logs)

    @property
    def ray_logs(self) -> Path:
        return self._ray_folder / "session_latest" / "logs"

    def _start(self, address: str) -> tuple[NodeProcess, Path]:
        self._num_started += 1
        ready = self._folder / f"node{self._num_started}.ready"
        ready.unlink(missing_ok=True)
        command = [
            *(sys.executable, "-m", "benchmarks.chaos.node", "--address", address, "--ready", str(ready)),
            *("--num-cpus", str(self._num_cpus), "--store-mib", str(self._store_mib)),
            *("--folder", str(self._ray_folder)),
            *(("--cluster", self.address) if self.address else ()),
        ]
        return NodeProcess(address, command, {**os.environ, **self.environment}, self._folder / "nodes.log"), ready

    def restart_second(self) -> None:
        """Start a new node in place of the second one. Returns at once."""
        self.second.end(hard=True)
        self.second, _ = self._start(SECOND)

    def find(self, kind: str) -> list[psutil.Process]:
        """Return the living processes of a kind on both nodes, by node and age."""
        start, *parts = TITLES[kind]
        return [
            process
            for node in (self.head, self.second)
            for process in sorted(node.tree(), key=lambda one: one.pid)
            if (name := title(process)).startswith(start)
            and all(part in name for part in parts)
            and not is_stopped(process)
        ]

    def where(self, process: psutil.Process) -> str:
        """Return the address of the node that a process belongs to, "" if it belongs to neither."""
        return next((node.address for node in (self.head, self.second) if process in node.tree()), "")

    def note_processes(self) -> None:
        """Record the processes that run now, to look for survivors once their node has ended."""
        for node in (self.head, self.second):
            for process in node.tree():
                self._known[process.pid, process.create_time()] = process

    def survivors(self, timeout_s: float = GONE_TIMEOUT_S) -> list[psutil.Process]:
        """Return the processes of ended nodes, and stopped processes, that are still alive after `timeout_s`."""
        of_nodes = {process for node in (self.head, self.second) for process in node.tree()}
        old = [process for process in self._known.values() if process not in of_nodes]
        stopped = [process for process in of_nodes if is_stopped(process)]
        _, alive = psutil.wait_procs(old + stopped, timeout=timeout_s)
        return list(alive)


def descendants(pid: int) -> list[psutil.Process]:
    """Return the living descendants of a process; [] if it has ended."""
    try:
        found = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [process for process in found if title(process)]


def title(process: psutil.Process) -> str:
    """Return the title of a process; "" if it has ended."""
    try:
        return " ".join(process.cmdline()).rstrip()  # Ray's own titles are padded
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""


def is_stopped(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False


def signal_all(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to processes, except ended ones; psutil makes sure that their ids were not reused."""
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue
