"""A run's folder belongs to one living process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rlsys.runs.records.run_lock import OWNER_FILE, OutputDirUnusable, RunInUse, run_lock

HOLDER = """
import sys, time
from pathlib import Path
from rlsys.runs.records.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_with_host_process_and_start_until_the_first_dies(tmp_path: Path) -> None:
    process = holder(tmp_path)
    named = rf"process {process.pid} on {socket.gethostname()}, started 20\d\d-"
    with pytest.raises(RunInUse, match=named), run_lock(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with run_lock(tmp_path):  # a killed run can be resumed at once
        assert json.loads((tmp_path / OWNER_FILE).read_text())["pid"] == os.getpid()
    assert not (tmp_path / OWNER_FILE).exists()


def test_an_error_inside_releases_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path):
        raise ZeroDivisionError
    with run_lock(tmp_path):
        pass


def test_what_another_host_left_behind_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / OWNER_FILE).write_text(
        json.dumps({"host": "node-7", "pid": 12, "started": "2026-11-01T00:00:00+00:00"})
    )
    with run_lock(tmp_path):
        assert "last used by process 12 on node-7, started 2026-11-01" in caplog.text


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "[" * 100_000, "\0"])
def test_an_owner_file_that_cannot_be_read_stops_nobody(tmp_path: Path, text: str) -> None:
    (tmp_path / OWNER_FILE).write_text(text)
    with run_lock(tmp_path):
        pass


def test_an_owner_file_that_is_a_pipe_or_a_device_stops_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / OWNER_FILE)
    with run_lock(tmp_path):
        assert json.loads((tmp_path / OWNER_FILE).read_text())["pid"] == os.getpid()
    (tmp_path / OWNER_FILE).symlink_to("/dev/zero")
    with run_lock(tmp_path):
        assert json.loads((tmp_path / OWNER_FILE).read_text())["pid"] == os.getpid()


def test_a_folder_that_takes_no_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputDirUnusable, match="cannot be written to: .*choose another folder"),
        run_lock(tmp_path / "file"),
    ):
        pass
    with pytest.raises(OutputDirUnusable, match="cannot be written to"), run_lock(Path("/proc/rlsys")):
        pass
