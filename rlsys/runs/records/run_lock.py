"""A lock that lets only one process at a time work in a run's folder."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from rlsys.errors import UserError
from rlsys.files import read_json, write_whole

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
    process and start time of the holder. On a file system without locks across hosts, a run on another host cannot be
    excluded; its owner file is reported instead. Raises OutputDirUnusable if the folder cannot be written to.
    """
    output_dir = Path(output_dir)
    owner_file = output_dir / OWNER_FILE
    lock = FileLock(output_dir / LOCK_FILE, timeout=0)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise RunInUse(
            f"output_dir={output_dir} is in use by {_owner(owner_file) or 'another process'}; "
            "wait for it, stop it, or choose another output_dir."
        ) from error
    except OSError as error:
        raise OutputDirUnusable(
            f"output_dir={output_dir} cannot be written to: {error}; choose another folder."
        ) from error
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
        yield
        owner_file.unlink(missing_ok=True)
    finally:
        lock.release()


def _owner(file: Path) -> str:
    """Describe the owner that the file names; "" if there is no such file or it cannot be read."""
    try:
        tree = read_json(file)
        return f"process {tree['pid']} on {tree['host']}, started {tree['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
