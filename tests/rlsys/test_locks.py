"""Locks of one process, on file systems without locks too."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import Timeout

from rlsys.locks import NO_LOCKS, hold
from tests.support.pace import patience
from tests.support.paths import REPO

Refuse = Callable[[Path, int], None]


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """Makes locks of the files in a folder fail with an error, as those of a network file system do."""
    flock = fcntl.flock

    def refuse(folder: Path, number: int) -> None:
        def failing(file: int, operation: int) -> None:
            if Path(os.readlink(f"/proc/self/fd/{file}")).is_relative_to(folder.resolve()):
                raise OSError(number, os.strerror(number))
            flock(file, operation)

        monkeypatch.setattr(fcntl, "flock", failing)

    return refuse


HOLDER = "import sys; from pathlib import Path; from rlsys.locks import hold; lock = hold(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"  # noqa: E501


def holder(path: Path) -> subprocess.Popen[str]:
    """Start a process that holds the lock until it is ended."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPO
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_lock_is_held_by_one_and_ends_with_its_process(tmp_path: Path) -> None:
    process = holder(tmp_path / "lock")
    with pytest.raises(Timeout):
        hold(tmp_path / "lock")
    process.kill()
    hold(tmp_path / "lock", waits=True).release()
    process.communicate(timeout=patience(30.0))


@pytest.mark.parametrize("number", sorted(NO_LOCKS))
def test_without_locks_on_the_file_system_processes_of_one_machine_exclude_each_other(
    number: int, tmp_path: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    folder = tmp_path / "network"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    refuse(folder, number)
    lock = hold(folder / "lock")
    assert f"its file system has no locks ({os.strerror(number)})" in caplog.text
    for same in (folder / "lock", tmp_path / "link" / "lock"):
        with pytest.raises(Timeout):
            hold(same)
    other = hold(folder / "other")
    lock.release()
    hold(folder / "lock").release()
    other.release()


def test_a_disk_that_fails_is_no_file_system_without_locks(tmp_path: Path, refuse: Refuse) -> None:
    refuse(tmp_path, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        hold(tmp_path / "lock")
