"""One process at a time works in a run's folder."""

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

log = logging.getLogger(__name__)

LOCK_FILE = ".run.lock"
OWNER_FILE = ".run.owner.json"


class RunInUse(UserError):
    """Another process works in the run's folder; the message names it."""


class OutputDirUnusable(UserError):
    """The run's folder cannot be written to; the message says why."""


@contextmanager
def run_lock(output_dir: Path) -> Iterator[None]:
    """Hold `output_dir` for this process: two runs would delete each other's checkpoints and use prompts twice.

    The operating system releases the lock when the process ends, however it ends. Raises RunInUse, which names host,
    process and start of the holder. A file system that does not lock across hosts is no protection against another
    host; what that host left behind is reported then. Raises OutputDirUnusable where nothing can be written.
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
            f"output_dir={output_dir} cannot be written to: {error}; choose another one."
        ) from error
    try:
        if (left := _owner(owner_file)) and f"on {socket.gethostname()}," not in left:
            log.warning("output_dir=%s was left by %s; if that is still running, stop one of the two", output_dir, left)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": started}
        try:
            owner_file.write_text(json.dumps(owner) + "\n")
        except OSError as error:
            raise OutputDirUnusable(f"output_dir={output_dir} takes no file: {error}; make room there.") from error
        yield
        owner_file.unlink(missing_ok=True)
    finally:
        lock.release()


def _owner(file: Path) -> str:
    """Whom the file names, "" where there is none or it cannot be read."""
    try:
        tree = json.loads(file.read_text())
        return f"process {tree['pid']} on {tree['host']}, started {tree['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
