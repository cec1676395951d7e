"""What a medium holds, by content: copies of a file are one clip, and a file that is edited is another."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

from rlsys.types import MediaSpec, VideoSpec

Signature = tuple[tuple[str, int, int], ...]
"""(name, bytes, time of the last change in ns) of a file, or of each file of a folder or a list."""

Address = str | tuple[str, ...]
"""Where a medium is: a file or a folder, or the files of a list."""


def address_of(spec: MediaSpec) -> Address:
    """Return where a medium is."""
    return spec.files if isinstance(spec, VideoSpec) and spec.files else spec.uri


def without_address(spec: MediaSpec) -> MediaSpec:
    """Return a spec that says what of a medium is shown, and not where it is."""
    return replace(spec, uri="", files=()) if isinstance(spec, VideoSpec) else replace(spec, uri="")


def signature(address: Address) -> Signature | None:
    """Return what the file system says of a medium without reading it, None where there is nothing to read."""
    if isinstance(address, tuple):
        found = [signature(file) for file in address]
        return None if None in found else tuple(one for signed in found if signed for one in signed)
    return _signature_of(address)


def _signature_of(uri: str) -> Signature | None:
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


def digest(address: Address) -> str:
    """Return the SHA-256 of a file's bytes, of a folder's names and bytes, or of a list's bytes. Raises OSError."""
    if isinstance(address, tuple):
        return hashlib.sha256("\n".join(("list", *(digest_file(Path(file)) for file in address))).encode()).hexdigest()
    path = Path(address)
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
