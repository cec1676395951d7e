"""Detect truncated video files, which decord opens without an error.

A truncated Matroska, WebM or AVI file decodes as a shorter clip, and so may a truncated MP4 whose index is in
front; that would shift every boundary of its annotation. The outermost headers give the expected length.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import BinaryIO

_EBML_HEADER, _MATROSKA_SEGMENT = 0x1A45DFA3, 0x18538067
_MP4_BOXES = frozenset(
    b"ftyp moov mdat free skip wide uuid udta meta moof mfra styp sidx ssix emsg prft pdin pnot PICT".split()
)

_IMAGE = re.compile(
    rb"\x89PNG|\xff\xd8\xff|GIF8|BM|II\*\0|MM\0\*|RIFF.{4}WEBP|P[1-6]\s|.{4}ftyp(avif|hei[cfx]|mif1)", re.DOTALL
)


def shortfall(path: Path) -> str | None:
    """Describe what is missing at the end of the file; None if nothing is, or if the container is unknown."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
        file.seek(0)
        if head[4:8] in _MP4_BOXES:
            return _mp4_shortfall(file, size)
        if head[:4] == b"RIFF" and len(head) >= 8:
            # writers pad chunks to even lengths, with or without counting the pad byte
            return _missing("the RIFF chunk", 8 + struct.unpack("<I", head[4:8])[0] - 1, size)
        if head[:4] == _EBML_HEADER.to_bytes(4, "big"):
            return _matroska_shortfall(file, size)
    return None


def _missing(part: str, end: int, size: int) -> str | None:
    return f"{part} extends to byte {end}, but the file ends at {size}" if end > size else None


def _mp4_shortfall(file: BinaryIO, size: int) -> str | None:
    """Read ISO base media: a chain of boxes, each [size u32][type 4][size u64 when the first is 1].

    Trailing junk after the last box is common and harmless, so only boxes of a known type are considered.
    """
    start = 0
    seen: set[bytes] = set()
    while start < size:
        file.seek(start)
        header = file.read(16)
        if len(header) < 8:
            is_whole = {b"moov", b"mdat"} <= seen
            return None if is_whole else f"the box header at byte {start} is cut off, the file ends at {size}"
        length, name = struct.unpack(">I4s", header[:8])
        if length == 1 and len(header) == 16:
            length = struct.unpack(">Q", header[8:])[0]
        if length < 8 or name not in _MP4_BOXES:  # 0 means the last box, up to the end of the file
            return None
        seen.add(name)
        problem = _missing(f"the box {name.decode()!r}", start + length, size)
        if problem:
            return problem
        start += length
    return None


def _matroska_shortfall(file: BinaryIO, size: int) -> str | None:
    """Read EBML: [id][length][body], a header and then one segment with everything else in it."""
    for expected in (_EBML_HEADER, _MATROSKA_SEGMENT):
        if int.from_bytes(file.read(4), "big") != expected:
            return None
        length = _read_length(file)
        if length is None:
            return None
        end = file.tell() + length
        if expected == _MATROSKA_SEGMENT or end > size:
            return _missing("the segment", end, size)
        file.seek(end)
    return None


def _read_length(file: BinaryIO) -> int | None:
    """Read an EBML length: leading zero bits count its bytes; all ones mean unknown, as live streams write it."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    extra = 8 - first[0].bit_length()
    value = first[0] & (0x7F >> extra)
    value = int.from_bytes(bytes([value]) + file.read(extra), "big")
    unknown = (1 << 7 * (extra + 1)) - 1
    return None if value == unknown else value


def head_of(path: Path) -> str:
    """Return how a file begins, which shows a page of HTML or a pointer of git-LFS, or that it is an image."""
    with path.open("rb") as file:
        head = file.read(24)
    if _IMAGE.match(head):
        return "it is a still image: give it as the row's `image`"
    return f"it begins with {head!r}"
