"""Atomic files: complete or absent, whenever the process or the machine dies.

New content is written to a temporary name, flushed to disk, and renamed over the old: a reader sees one or the other.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

UNFINISHED = ".tmp-"
"""Prefix of temporary names; a process that dies leaves them behind, and readers ignore them."""
_ALLOWED = "let this user read and write it, or choose another place, and run the command again"
_FREE = "free space there, or choose a place that has room, and run the command again"
DISK_ERRORS = {
    errno.ENOSPC: _FREE,
    errno.EDQUOT: _FREE,
    errno.EFBIG: "allow longer files (ulimit -f), or choose another place, and run the command again",
    errno.EACCES: _ALLOWED,
    errno.EPERM: _ALLOWED,
    errno.ESTALE: "its file system was mounted anew or has gone; run the command again once it is there",
    errno.EROFS: "choose a place that can be written to",
    errno.EIO: "the disk has a fault; choose another place",
}
"""Errors of a disk that no code of ours can foresee, and what a person does about each."""
PROBE_BYTES = 1 << 16
"""Bytes that are written to find out whether a disk takes any."""


def aside(path: Path) -> Path:
    """Return the temporary path at which the new content of a file or folder is written until it is complete."""
    return path.with_name(f"{UNFINISHED}{path.name}")


def write_whole(path: Path, content: str | bytes, *, synced: bool = True) -> None:
    """Write the file `path` atomically, creating its folder.

    synced: whether the content must survive a crash of the machine; if not, the file may be empty or truncated then.
    An OSError names `path` and leaves the old file unchanged and no temporary file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = aside(path)
    try:
        with new.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if synced:
                file.flush()
                os.fsync(file.fileno())
        os.replace(new, path)
    except OSError as error:
        with suppress(OSError):
            new.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error
    if synced:
        sync(path.parent)


def write_output(path: Path, content: str | bytes) -> None:
    """Write a file that a person named, atomically; through a link, or into a device or a pipe, if it names one."""
    if not is_device(path):
        write_whole(Path(os.path.realpath(path)), content)
        return
    try:
        with Path(path).open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def is_device(path: Path) -> bool:
    """Return whether a path is something that takes bytes but is no file, as /dev/stdout."""
    return os.path.exists(path) and not os.path.isdir(path) and not os.path.isfile(path)


def in_memory(save: Callable[[IO[bytes]], object]) -> bytes:
    """Return what `save` writes to a binary file."""
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


def why_not_writable(folder: Path, *, must_exist: bool = False) -> str:
    """Return why no file can be written to a folder, "" if one can; what is written to find out is gone at once.

    A folder that does not exist is judged by the nearest one above it, in which it would be created, unless it must
    exist already.
    """
    place = Path(folder)
    try:
        os.lstat(place)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):  # a name that is too long, links in a circle
            return f"no file can be written there ({error.strerror})"
    if must_exist and not os.path.isdir(place):
        return "not a folder" if os.path.exists(place) else "no such folder"
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place) as file:  # by trying: modes say little of root, mounts and quotas
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        lacks = ", as its disk holds no more files: see df -i" if free_files(place) == 0 else ""
        return f"no file can be written to {place} ({error.strerror}{lacks})"
    return ""


def free_files(folder: Path) -> float:
    """Return how many more files the disk of a folder can hold (its free inodes); infinity where it sets no limit."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return math.inf
    return found.f_favail if found.f_files else math.inf


def require_regular(path: Path) -> None:
    """Raise OSError for what exists and is no regular file, before it is opened: a FIFO would never return."""
    if is_device(path):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_json(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """Return the content of a small JSON file.

    Raises OSError if it cannot be read or is not a regular file, ValueError if it is not JSON, however deeply nested.
    """
    require_regular(path)
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def rename_synced(source: Path, target: Path) -> None:
    """Rename a complete file or folder to its final name; the name survives a crash once this returns."""
    os.rename(source, target)
    sync(target.parent)


def sync_tree(folder: Path) -> None:
    """Flush everything in a folder to disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            sync(Path(parent) / name)
        sync(Path(parent))


def sync(path: Path) -> None:
    """Flush a file's content, or the names in a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def why_no_temporary_folder(error: OSError) -> str:
    """Return what is wrong and what to do where `tempfile` finds no folder that takes a file, "" for another error."""
    if not (
        isinstance(error, FileNotFoundError) and (error.strerror or "").startswith("No usable temporary directory")
    ):
        return ""
    return f"there is no folder for temporary files ({error.strerror}); set TMPDIR to one that can be written to."
