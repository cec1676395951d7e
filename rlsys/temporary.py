"""Temporary folders of processes: a cluster's sockets, logs and spilled objects, and what its workers leave.

A folder names its owner, a process that holds a lock on the owner file for as long as it lives. A process that is
killed cannot remove its folder, and some of Ray's processes live on for minutes; the next start ends and removes both.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import logging
import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from rlsys import env
from rlsys.locks import NO_LOCKS

log = logging.getLogger(__name__)

MAX_TEMP_DIR = 55
"""Ray and vLLM put sockets into a folder below, and the path of a socket has at most 107 characters.

vLLM's are named by a UUID: 55 + 15 for the folder + 37.
"""
PREFIX = "rlsys-"
OWNER_FILE = "owner.json"
KEEP_LOGS_S = 3 * 24 * 3600.0
"""How long the logs of a run that ended with an error are kept, whose message names the folder."""
END_TIMEOUT_S = 10.0
_RAY_PARTS = ("/ray/core/", "/ray/_private/", "/ray/dashboard/", "/ray/autoscaler/", "ray::")
"""What the command lines of Ray's own processes contain, in whatever environment it is installed."""


def short_temp_dir() -> Path:
    """Return the folder of temporary files, or /tmp if its path is too long for sockets.

    Raises FileNotFoundError if there is no such folder that can be written to.
    """
    usual = Path(tempfile.gettempdir())
    return usual if len(str(usual)) <= MAX_TEMP_DIR else Path("/tmp")


def is_own(folder: Path) -> bool:
    """Return whether a folder for temporary files is that of a run or of a process, which removes it."""
    return folder.name.startswith(PREFIX)


def variables_for(folder: Path) -> dict[str, str]:
    """Return the environment of processes whose temporary files go to a folder that is removed with them.

    What torch has compiled stays where it looks for it in the next run.
    """
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid_{os.getuid()}"
    compiled = env.read("TORCHINDUCTOR_CACHE_DIR") or f"{tempfile.gettempdir()}/torchinductor_{user}"
    return {"TMPDIR": str(folder), "TORCHINDUCTOR_CACHE_DIR": compiled}


@dataclass(frozen=True, kw_only=True, eq=False)
class OwnFolder:
    """A temporary folder that belongs to this process until it is released."""

    path: Path
    _owner: IO[str]

    def release(self, *, keep: bool) -> None:
        """Give the folder up: remove it, or keep it for `KEEP_LOGS_S` because its logs are needed."""
        if keep:
            _write_owner(self._owner, keep_until=time.time() + KEEP_LOGS_S)
        else:
            shutil.rmtree(self.path, ignore_errors=True)  # a process that is still ending may write once more
        self._owner.close()


def claim_folder() -> OwnFolder:
    """Return a new temporary folder, after removing what killed runs left beside it."""
    parent = short_temp_dir()
    sweep(parent)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    new = folder / f".{OWNER_FILE}"
    owner = new.open("w+", encoding="utf-8")
    try:
        fcntl.flock(owner, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        log.warning("%s: its file system has no locks (%s), so a killed run's folder stays", parent, error.strerror)
    _write_owner(owner, keep_until=0.0)
    os.rename(new, folder / OWNER_FILE)  # seen by others only once it is locked
    return OwnFolder(path=folder, _owner=owner)


def sweep(parent: Path) -> list[Path]:
    """Remove the folders of runs of this user and machine whose process is dead, and end Ray's processes in them.

    A folder without an owner file, of another user or host, or with logs that are still to be kept is left alone.
    Returns the removed folders.
    """
    swept = []
    for file in sorted(Path(parent).glob(f"{PREFIX}*/{OWNER_FILE}")):
        try:
            found = file.lstat()
            if stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid() and _sweep_folder(file):
                swept.append(file.parent)
        except OSError as error:
            log.debug("%s: %s", file.parent, error)
    if swept:
        log.info("removed what killed runs left behind: %s", ", ".join(map(str, swept)))
    return swept


def _sweep_folder(file: Path) -> bool:
    with file.open(encoding="utf-8") as owner:
        try:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False  # its process lives
        try:
            found = json.load(owner)
            is_due = found["host"] == socket.gethostname() and float(found["keep_until"]) < time.time()
        except (ValueError, KeyError, TypeError, RecursionError):
            return False
        if not is_due:
            return False
        end_processes_in(file.parent)
        shutil.rmtree(file.parent)
        return True


def _processes_in(folder: Path) -> Iterator[psutil.Process]:
    """Yield Ray's processes whose command line names a folder, and their children."""
    for process in psutil.process_iter(["cmdline", "uids"]):
        line = " ".join(process.info["cmdline"] or ())
        is_ours = process.info["uids"] is not None and process.info["uids"].real == os.getuid()
        if is_ours and f"{folder}/" in f"{line}/" and any(part in line for part in _RAY_PARTS):
            try:
                yield from process.children(recursive=True)
            except psutil.NoSuchProcess:
                continue
            yield process


def end_processes_in(folder: Path) -> None:
    """Kill Ray's processes of this user whose command line names a folder, and their children."""
    processes = list(_processes_in(folder))
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=END_TIMEOUT_S)


def _write_owner(file: IO[str], *, keep_until: float) -> None:
    me = psutil.Process()
    tree = {"host": socket.gethostname(), "pid": me.pid, "started": me.create_time(), "keep_until": keep_until}
    file.seek(0)
    file.truncate()
    file.write(json.dumps(tree) + "\n")
    file.flush()
