"""Locks on files by which one process at a time works in a folder, on file systems without locks too."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

NO_LOCKS = frozenset((errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP))
"""Errors of file systems without locks, as NFS and Lustre are often mounted."""


def hold(path: Path, *, waits: bool = False) -> FileLock:
    """Lock a file for this process and return the lock, which also ends when the process does, however that ends.

    Where the file system has no locks, a file in this machine's temporary folder is locked in its place: processes of
    this machine then exclude each other, but not those of other machines, which is logged.
    waits: until no other process holds it. Raises `filelock.Timeout` if one does, OSError if it cannot be locked.
    """
    try:
        return _held(path, waits=waits)
    except Timeout:
        raise
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        log.warning(
            "%s: its file system has no locks (%s), so only processes of this machine are kept out of the folder; "
            "make sure that no other machine uses it",
            path,
            error.strerror,
        )
        name = hashlib.sha256(os.path.realpath(path).encode(errors="surrogateescape")).hexdigest()[:16]
        return _held(Path(tempfile.gettempdir()) / f"rlsys-lock-{os.getuid()}-{name}", waits=waits)


def _held(path: Path, *, waits: bool) -> FileLock:
    lock = FileLock(path, timeout=-1.0 if waits else 0.0, thread_local=False, fallback_to_soft=False)
    lock.acquire()
    return lock
