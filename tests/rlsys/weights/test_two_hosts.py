"""Ranks and a broadcast between two hosts, which are two network namespaces with a cable between them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.pace import patience
from tests.support.paths import REPO

NAMES = ("rlsys-test-a", "rlsys-test-b")
ADDRESSES = ("10.77.0.1", "10.77.0.2")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[None]:
    made = []
    try:
        for name in NAMES:
            ip("netns", "add", name)
            made.append(name)
        ip("link", "add", "rlsys-a", "netns", NAMES[0], "type", "veth", "peer", "name", "rlsys-b", "netns", NAMES[1])
        for name, cable, address in zip(NAMES, ("rlsys-a", "rlsys-b"), ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", cable)
            for device in ("lo", cable):
                ip("-n", name, "link", "set", device, "up")
        yield
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces need root and iproute2: {error}")
    finally:
        for name in made:
            ip("netns", "delete", name)


@pytest.mark.stack
def test_ranks_and_a_broadcast_reach_from_host_to_host(hosts: None, tmp_path: Path) -> None:
    """Whatever the host's own name stands for: here, as on many hosts, it is loopback."""
    processes = [
        subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-m", "tests.support.two_hosts_probe"]
            + [str(rank), ADDRESSES[rank], ADDRESSES[0], str(tmp_path / "rendezvous")],
            cwd=REPO,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, name in enumerate(NAMES)
    ]
    try:
        ended = [process.communicate(timeout=patience(120.0)) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], ended
    first, second = (json.loads(output.splitlines()[-1]) for output, _ in ended)
    assert first == {"sum": 3.0, "moved": [1.0, 24.0]}
    assert second == {"sum": 3.0, "moved": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]}
