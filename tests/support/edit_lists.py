"""MP4 files whose edit lists are written by hand."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple


class Part(NamedTuple):
    """An entry of an edit list, in seconds. start_s: in the track, from its first picture; None: nothing is shown."""

    duration_s: float
    start_s: float | None
    rate: float = 1.0


def set_edits(
    path: Path, parts: Sequence[Part], *, kind: bytes = b"vide", version: int = 0, first_s: float | None = None
) -> None:
    """Give the first track of a kind in an MP4 file, whose index lies behind its data, this edit list.

    first_s: where its first picture is in the track; None: where its present list begins, as writers do with B-frames.
    """
    data = bytearray(path.read_bytes())
    moov = _find(data, (0, len(data)), b"moov")
    assert _find(data, (0, len(data)), b"mdat")[0] < moov[0], "growing the index moves no data"
    movie_scale = struct.unpack_from(">I", data, _find(data, moov, b"mvhd")[0] + 12)[0]
    trak = next(
        span
        for name, span in _children(data, moov)
        if name == b"trak" and data[_find(data, _find(data, span, b"mdia"), b"hdlr")[0] + 8 :][:4] == kind
    )
    scale = struct.unpack_from(">I", data, _find(data, _find(data, trak, b"mdia"), b"mdhd")[0] + 12)[0]
    old = [span for name, span in _children(data, trak) if name == b"edts"]
    base = round(first_s * scale) if first_s is not None else 0
    if old and first_s is None:
        base = max(struct.unpack_from(">i", data, _find(data, old[0], b"elst")[0] + 12)[0], 0)
    entry = struct.Struct(">QqhH" if version else ">IihH")
    table = struct.pack(">B3xI", version, len(parts))
    for part in parts:
        start = -1 if part.start_s is None else base + round(part.start_s * scale)
        whole = int(part.rate // 1)
        table += entry.pack(round(part.duration_s * movie_scale), start, whole, round((part.rate - whole) * 65536))
    box = _box(b"edts", _box(b"elst", table))
    at, end = (old[0][0] - 8, old[0][1]) if old else (_find(data, trak, b"tkhd")[1],) * 2
    data[at:end] = box
    for span in (moov, trak):
        size = struct.unpack_from(">I", data, span[0] - 8)[0]
        struct.pack_into(">I", data, span[0] - 8, size + len(box) - (end - at))
    path.write_bytes(data)


def shown_by(parts: Sequence[Part], num_frames: int, fps: float) -> list[tuple[float, int]]:
    """Return (time, number) of each picture that a player changes to, by looking at every millisecond in turn."""
    found: list[tuple[float, int]] = []
    begins_ms = 0
    for part in parts:
        length_ms = round(part.duration_s * 1000)
        if part.start_s is not None:
            if not length_ms:  # all that is left
                length_ms = round((num_frames / fps - part.start_s) * 1000)
            for late_ms in range(length_ms):
                at_s = part.start_s + late_ms / 1000 * part.rate
                number = min(int(at_s * fps + 1e-6), num_frames - 1)
                if not late_ms or number != found[-1][1]:
                    found.append(((begins_ms + late_ms) / 1000, number))
        begins_ms += length_ms
    return found


def _box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), name) + content


def _children(data: bytes, span: tuple[int, int]) -> Iterator[tuple[bytes, tuple[int, int]]]:
    at = span[0]
    while at + 8 <= span[1]:
        size, name = struct.unpack_from(">I4s", data, at)
        yield name, (at + 8, at + size)
        at += size


def _find(data: bytes, span: tuple[int, int], wanted: bytes) -> tuple[int, int]:
    return next(found for name, found in _children(data, span) if name == wanted)
