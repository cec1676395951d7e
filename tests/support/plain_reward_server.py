"""The rule scorers in a process of their own without Ray Serve, for runs that are killed and started many times."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from reward_servers.scorers.response import Response
from reward_servers.scorers.scorer_processes import ScorerProcesses
from reward_servers.server.service import RewardService
from reward_servers.server.web import build_app


def checksum(response: Response) -> float:
    """Return a score in [0, 1] that differs between texts, so that an untrained model has something to learn from."""
    return sum(response.text.encode()) % 11 / 10


def asked_to_think(response: Response) -> float:
    """Return whether the servers were told that the prompt requested reasoning."""
    return float(response.asks_for_think)


SCORERS = {name: f"tests.support.plain_reward_server:{name}" for name in ("checksum", "asked_to_think")}


async def no_status() -> dict[str, Any]:
    return {}


@contextmanager
def plain_reward_server() -> Iterator[str]:
    """Run the server and yield its URL, for `reward.url`."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        os.set_inheritable(listener.fileno(), True)
        command = [sys.executable, "-m", "tests.support.plain_reward_server", str(listener.fileno())]
        server = subprocess.Popen(command, pass_fds=(listener.fileno(),))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        yield url
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    uvicorn.run(
        build_app(
            RewardService(None, ScorerProcesses(SCORERS)),
            None,
            no_status,
        ),
        fd=int(sys.argv[1]),
        log_level="warning",
    )
