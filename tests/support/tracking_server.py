"""An `mlflow server` on loopback that tests stop, kill and start again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.error import URLError

from tests.support.pace import patience


class TrackingServer:
    """A server that keeps its database and files in `home`, and its port over restarts; `start` starts it."""

    def __init__(self, home: Path) -> None:
        self._home = home
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and return once it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self._home}/server.db"]
        command += ["--artifacts-destination", str(self._home / "files")]
        log = self._home / "log"
        with log.open("a") as output:
            # a session of its own, so that signals reach its workers too
            self._process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self._home,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # its job runners take half a minute
            )
        deadline = time.monotonic() + patience(90.0)
        while time.monotonic() < deadline:
            assert self._process.poll() is None, log.read_text()
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except (URLError, OSError):
                time.sleep(0.2)
        raise AssertionError(f"no answer from {self.uri}: {log.read_text()}")

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to all of the server's processes."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None:
            self.send_signal(number)
            self._process.wait(timeout=patience(30.0))
            self._process = None
