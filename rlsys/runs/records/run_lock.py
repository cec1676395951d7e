"""A lock that lets only one process at a time work in a run's folder."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from rlsys.errors import UserError
from rlsys.files import read_json, write_whole
from rlsys.locks import hold

log = logging.getLogger(__name__)

LOCK_FILE = ".run.lock"
OWNER_FILE = ".run.owner.json"


class RunInUse(UserError):
    """Another process is using the run's folder; the message names it."""


class OutputDirUnusable(UserError):
    """The run's folder cannot be written to; the message says why."""


@contextmanager
def run_lock(output_dir: Path) -> Iterator[None]:
    """Lock `output_dir` for this process: two runs would delete each other's checkpoints and use prompts twice.

    The operating system releases the lock when the process ends, however it ends. Raises RunInUse with the host,
    process and start time of the holder. Where locks do not reach other hosts, a run there cannot be excluded; its
    owner file is reported instead. Raises OutputDirUnusable if the folder cannot be written to or locked.
    """
    output_dir = Path(output_dir)
    owner_file = output_dir / OWNER_FILE
    lock = _hold(output_dir)
    try:
        if (left := _owner(owner_file)) and f"on {socket.gethostname()}," not in left:
            log.warning(
                "output_dir=%s was last used by %s; if that is still running, stop one of the two", output_dir, left
            )
        started = datetime.now(UTC).isoformat(timespec="seconds")
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": started}
        try:
            write_whole(owner_file, json.dumps(owner) + "\n", synced=False)  # replaces whatever is there
        except OSError as error:
            raise OutputDirUnusable(
                f"no file can be written to output_dir={output_dir}: {error}; free space there."
            ) from error
        try:
            yield
        finally:
            with suppress(OSError):
                owner_file.unlink(missing_ok=True)
    finally:
        lock.release()


def _hold(output_dir: Path) -> FileLock:
    """Return the lock of a run's folder, which is created. Raises RunInUse and OutputDirUnusable."""
    lock_file = output_dir / LOCK_FILE
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        return hold(lock_file)
    except Timeout as error:
        raise RunInUse(
            f"output_dir={output_dir} is in use by {_owner(output_dir / OWNER_FILE, is_alive=True)}; "
            "wait for it, stop it, or choose another output_dir."
        ) from error
    except OSError as error:
        if os.path.lexists(lock_file):
            raise OutputDirUnusable(
                f"{lock_file}: this file of the run cannot be locked ({error.strerror}); remove it if no run uses the "
                "folder, or choose another output_dir."
            ) from error
        raise OutputDirUnusable(
            f"output_dir={output_dir} cannot be written to: {error}; choose another folder."
        ) from error


def _owner(file: Path, *, is_alive: bool = False) -> str:
    """Describe the owner that the file names; "" if there is no such file or it cannot be read.

    is_alive: some process holds the lock. One of this host that has ended does not, but has not been replaced yet.
    """
    try:
        tree = read_json(file)
        pid, host = int(tree["pid"]), str(tree["host"])
        owner = f"process {pid} on {host}, started {tree['started']}"
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return "another process" if is_alive else ""
    has_ended = host == socket.gethostname() and not psutil.pid_exists(pid)
    return "another process" if is_alive and has_ended else owner
