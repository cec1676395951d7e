"""What a medium holds, by content: copies of a file are one clip, and a file that is edited is another."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from rlsys.types import MediaSpec

Signature = tuple[tuple[str, int, int], ...]
"""(name, bytes, time of the last change in ns) of a file, or of each file of a folder."""


def signature(uri: str) -> Signature | None:
    """Return what the file system says of a medium without reading it, None where there is nothing to read."""
    try:
        if os.path.isdir(uri):
            with os.scandir(uri) as entries:
                return tuple(sorted(_stat(entry.name, entry.stat()) for entry in entries if entry.is_file()))
        if os.path.isfile(uri):  # not a pipe, whose reader waits
            return (_stat("", os.stat(uri)),)
    except (OSError, ValueError):
        pass  # decoding says what is wrong
    return None


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(uri: str) -> str:
    """Return the SHA-256 of a file's bytes, or of the names and bytes of all files in a folder. Raises OSError."""
    path = Path(uri)
    if not path.is_dir():
        return digest_file(path)
    sha = hashlib.sha256()
    for file in sorted(entry for entry in path.iterdir() if entry.is_file()):
        sha.update(f"{file.name}\n{digest_file(file)}\n".encode())
    return sha.hexdigest()


Key = tuple[MediaSpec, str]
"""A spec without its address, and the digest of what is there; a spec with it and "" where nothing can be read."""


def _stat(name: str, found: os.stat_result) -> tuple[str, int, int]:
    return name, found.st_size, found.st_mtime_ns
