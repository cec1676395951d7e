"""What a killed run leaves behind goes at the next start; what belongs to a living process stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from cluster.launch import ROOT
from rlsys.temporary import OWNER_FILE, claim_folder, sweep
from tests.support.pace import patience


@pytest.fixture
def temp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files with a path short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="tt-", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def test_a_folder_names_its_owner_and_goes_when_it_is_released(temp: Path) -> None:
    folder = claim_folder()
    owner = json.loads((folder.path / OWNER_FILE).read_text())
    assert owner["pid"] == os.getpid()
    assert owner["started"] == psutil.Process().create_time()
    folder.release(keep=False)
    assert list(temp.iterdir()) == []


def test_the_folder_of_a_living_process_stays(temp: Path) -> None:
    folder = claim_folder()
    assert sweep(temp) == []
    assert folder.path.is_dir()
    folder.release(keep=False)


def test_logs_that_a_message_named_stay_for_some_days(temp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = claim_folder()
    (folder.path / "log").touch()
    folder.release(keep=True)
    assert sweep(temp) == []
    four_days_later = time.time() + 4 * 24 * 3600
    monkeypatch.setattr(time, "time", lambda: four_days_later)
    assert sweep(temp) == [folder.path]
    assert list(temp.iterdir()) == []


@pytest.mark.parametrize("text", [None, "", "[]", "{}", "[" * 100_000, '{"host": "elsewhere", "keep_until": 0}'])
def test_what_names_no_owner_of_this_machine_stays(temp: Path, text: str | None) -> None:
    folder = temp / "rlsys-found"
    folder.mkdir()
    if text is not None:
        (folder / OWNER_FILE).write_text(text)
    assert sweep(temp) == []
    assert folder.is_dir()


def test_an_owner_file_that_is_a_link_or_a_pipe_is_not_read(temp: Path) -> None:
    for name in ("rlsys-link", "rlsys-pipe"):
        (temp / name).mkdir()
    (temp / "rlsys-link" / OWNER_FILE).symlink_to("/dev/zero")
    os.mkfifo(temp / "rlsys-pipe" / OWNER_FILE)
    assert sweep(temp) == []


CLUSTER = """
import logging, sys, time
from cluster.launch import open_cluster
from rlsys.config.run import parse
logging.basicConfig(level=logging.INFO)
config = parse({"output_dir": "out", "model": {"path": "m"}, "cluster": {"object_store_mib": 80}}, source="test")
with open_cluster(config):
    import ray
    print(ray._private.worker.global_worker.node.get_session_dir_path(), flush=True)
    sys.stdin.readline()
"""


@contextmanager
def cluster_of_its_own(temp: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A driver with a cluster that it started, and the cluster's folder; killed at the end of the block."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    driver = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        cwd=ROOT,
        env={**clean, "TMPDIR": str(temp)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert driver.stdout is not None
        yield driver, Path(driver.stdout.readline().strip()).parent
    finally:
        driver.kill()
        driver.communicate()


def ray_processes(folder: Path) -> set[int]:
    """Processes of a cluster, by the folder that their command lines name."""
    found = psutil.process_iter(["cmdline"])
    return {one.pid for one in found if f"{folder}/" in " ".join(one.info["cmdline"] or ()) and one.pid != os.getpid()}


@pytest.mark.stack
def test_a_start_sweeps_what_a_killed_run_left_and_nothing_of_a_living_one(temp: Path) -> None:
    with cluster_of_its_own(temp) as (killed, left), cluster_of_its_own(temp) as (_, living):
        assert left != living
        others = ray_processes(living)
        assert others and ray_processes(left)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert left.is_dir()
        with cluster_of_its_own(temp) as (again, third):
            assert not left.exists()
            assert ray_processes(left) == set()
            assert living.is_dir() and others <= ray_processes(living)
            assert again.stdin is not None
            again.stdin.write("\n")
            again.stdin.flush()
            assert again.wait(patience(60.0)) == 0
            assert again.stderr is not None
            assert f"removed what killed runs left behind: {left.parent}" in again.stderr.read()
            assert not third.exists()
    sweep(temp)
    deadline = time.monotonic() + patience(60.0)
    while (alive := ray_processes(temp)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert alive == set()
