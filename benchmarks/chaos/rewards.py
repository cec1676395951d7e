"""Reward servers outside a run's cluster, which can be killed and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

from benchmarks.chaos import scorer as chaos_scorer
from benchmarks.chaos.cluster import REPO, descendants, signal_all

NAME = "rewards"
START_TIMEOUT_S = 180.0


class RewardServers:
    """`rlsys rewards serve` on a Ray cluster of its own, always at the same `url`; `start` starts it."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}/{NAME}"
        self._log = folder / "rewards.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the servers and return at once; see `wait_up`."""
        command = ["rewards", "serve", "--name", NAME, f"reward.port={self._port}"]
        command.append(f"reward.scorers={{{chaos_scorer.NAME}: {chaos_scorer.REFERENCE}}}")
        with self._log.open("a") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "rlsys.commands.app", *command],
                cwd=REPO,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            )

    def wait_up(self) -> None:
        """Wait until the servers score. Raises if they end or take too long."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.url}/healthz", timeout=5, trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.3)
        raise RuntimeError(f"no reward servers at {self.url}:\n{self._log.read_text()[-4000:]}")

    def kill(self) -> None:
        """Kill all of their processes at once, as if their machine lost power."""
        if self._process is not None:
            signal_all(descendants(self._process.pid), signal.SIGKILL)
            self._process.kill()
            self._process.wait()
            self._process = None
