"""A run's folder belongs to one living process."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rlsys.runs.records.run_lock import LOCK_FILE, OWNER_FILE, OutputDirUnusable, RunInUse, run_lock
from tests.support.pace import patience
from tests.support.paths import REPO

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


@pytest.mark.parametrize("pid", ["dead", "reused"])
def test_what_a_dead_process_left_behind_holds_nobody_out(
    tmp_path: Path, pid: str, caplog: pytest.LogCaptureFixture
) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    owner = {"host": socket.gethostname(), "pid": os.getppid() if pid == "reused" else ended.pid, "started": "once"}
    (tmp_path / OWNER_FILE).write_text(json.dumps(owner))
    (tmp_path / LOCK_FILE).write_bytes(b"\xff garbage of an unclean end")
    with run_lock(tmp_path):
        assert json.loads((tmp_path / OWNER_FILE).read_text())["pid"] == os.getpid()
    assert not caplog.text
    assert (tmp_path / LOCK_FILE).read_bytes() == b"\xff garbage of an unclean end"


def test_a_holder_that_has_not_named_itself_yet_is_not_taken_for_the_one_before(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    process = holder(tmp_path)
    try:
        for left in ({"host": socket.gethostname(), "pid": ended.pid, "started": "once"}, ["damaged"]):
            (tmp_path / OWNER_FILE).write_text(json.dumps(left))
            with pytest.raises(RunInUse, match="is in use by another process; "), run_lock(tmp_path):
                pass
    finally:
        process.kill()
        process.wait()


STARTER = """
import sys
from pathlib import Path
from rlsys.runs.records.run_lock import RunInUse, run_lock
print("ready", flush=True)
sys.stdin.readline()
try:
    with run_lock(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.readline()
except RunInUse as error:
    print(error, flush=True)
"""


def test_of_eight_starts_at_once_one_gets_the_folder_and_the_others_a_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STARTER, str(tmp_path / "new" / "run")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    starters = [subprocess.Popen(command, text=True, cwd=REPO, **pipes) for _ in range(8)]
    said = []
    try:
        for one in starters:
            assert one.stdout is not None and one.stdout.readline() == "ready\n"
        for one in starters:
            assert one.stdin is not None
            one.stdin.write("go\n")
            one.stdin.flush()
        for one in starters:
            assert one.stdout is not None
            said.append(one.stdout.readline().strip())
    finally:
        for one in starters:
            one.communicate("end\n" if one.poll() is None else None, timeout=patience(60.0))
    assert said.count("held") == 1
    (winner,) = (one for one, line in zip(starters, said, strict=True) if line == "held")
    for line in said:
        named = f"process {winner.pid} on {socket.gethostname()}, started 20"
        assert line == "held" or named in line or "in use by another process; wait for it" in line
    assert all(one.returncode == 0 for one in starters)


@pytest.mark.parametrize("what", ["folder", "link"])
def test_a_lock_file_that_is_none_is_named_with_the_remedy(tmp_path: Path, what: str) -> None:
    if what == "folder":
        (tmp_path / LOCK_FILE).mkdir()
    else:
        (tmp_path / LOCK_FILE).symlink_to(tmp_path / "nothing")
    said = rf"{LOCK_FILE}: .*cannot be locked .*remove it"
    with pytest.raises(OutputDirUnusable, match=said) as error, run_lock(tmp_path):
        pass
    assert "\n" not in str(error.value)


def test_an_error_of_the_disk_while_locking_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(file: int, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", failing)
    with pytest.raises(OutputDirUnusable, match=r"cannot be locked \(Input/output error\)"), run_lock(tmp_path):
        pass


def test_a_run_on_a_file_system_without_locks_is_still_alone_on_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    flock = fcntl.flock

    def failing(file: int, operation: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{file}")).is_relative_to(tmp_path):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", failing)
    with run_lock(tmp_path):
        assert "no locks (No locks available)" in caplog.text
        with pytest.raises(RunInUse, match=f"process {os.getpid()} on "), run_lock(tmp_path):
            pass
    with run_lock(tmp_path):
        pass


def test_a_folder_that_takes_no_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputDirUnusable, match="cannot be written to: .*choose another folder"),
        run_lock(tmp_path / "file"),
    ):
        pass
    with pytest.raises(OutputDirUnusable, match="cannot be written to"), run_lock(Path("/proc/rlsys")):
        pass
