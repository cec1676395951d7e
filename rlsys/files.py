"""Files that are whole or not there, whatever moment the process or the machine dies at.

New content is written aside, brought to the disk, and renamed over the old: a reader sees the one or the other.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

UNFINISHED = ".tmp-"
"""Start of the name of what is not finished; a process that dies leaves it behind, and readers ignore it."""


def aside(path: Path) -> Path:
    """Where the new content of `path`, a file or folder, is written until it is whole."""
    return path.with_name(f"{UNFINISHED}{path.name}")


def write_whole(path: Path, content: str | bytes, *, synced: bool = True) -> None:
    """Replace the file `path`, or make it and its folder.

    synced: the content survives the death of the machine too; without it, the file may be empty or cut off then.
    An OSError leaves the old file as it was, and nothing beside it.
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
    except OSError:
        with suppress(OSError):
            new.unlink()
        raise
    if synced:
        sync(path.parent)


def rename_synced(source: Path, target: Path) -> None:
    """Give a file or folder that is whole its name; the name survives the death of the machine when this returns."""
    os.rename(source, target)
    sync(target.parent)


def sync_tree(folder: Path) -> None:
    """Bring everything in a folder to the disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            sync(Path(parent) / name)
        sync(Path(parent))


def sync(path: Path) -> None:
    """Bring a file's content, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
