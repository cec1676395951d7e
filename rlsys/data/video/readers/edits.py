"""Edit lists of MP4 and QuickTime files, read from the file itself: which parts of a track are shown, and when.

FFmpeg reads a list that cuts the track or delays it. Of others it misreads some without an error: what stands behind an
empty edit in the middle comes too early, and a picture that is held runs on. Such tracks are put together here.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, NamedTuple

from rlsys.data.video.errors import ClipError

MAX_FRAMES = 1_000_000
"""Largest number of frames that an edit list may show, those of a part as often as it is shown: nine hours at 30 frames
per second."""
MAX_BOXES = 100_000
Span = tuple[int, int]
"""Where the content of a box begins and ends in the file."""


class Edit(NamedTuple):
    """A part of a track. duration: in units of the movie, 0 for all that is left.  start: in units of the track, -1 for
    a pause in which nothing is shown.  rate: 1, or 0 for one picture that is held.
    """

    duration: int
    start: int
    rate: float


@dataclass(frozen=True, kw_only=True)
class Track:
    """What is in the headers of a track.

    unit, movie_unit: seconds of a unit of the track and of the movie.  edits: () without a list.
    is_fragmented: whether the movie comes in fragments, where FFmpeg reads a part without a length as all of it.
    """

    is_shown: bool
    unit: Fraction
    movie_unit: Fraction
    edits: tuple[Edit, ...]
    is_fragmented: bool = False

    @property
    def starts_s(self) -> Fraction:
        """When the first part of the track is shown."""
        total = Fraction(0)
        for edit in self.edits:
            if edit.start >= 0:
                break
            total += edit.duration * self.movie_unit
        return total

    @property
    def is_plain(self) -> bool:
        """Whether the list only delays the track, or cuts it at both ends."""
        parts = [edit for edit in self.edits if edit.start >= 0]
        is_read = all(edit.rate == 1 and (edit.duration or self.is_fragmented) for edit in parts)
        return len(parts) <= 1 and is_read and self.edits[-1:] == tuple(parts)


class ShownFrame(NamedTuple):
    """A frame as an edit list shows it. time_s: since the start of the movie.  pts: as FFmpeg gives it."""

    time_s: Fraction
    pts: int


def read_tracks(path: Path) -> Mapping[int, Track]:
    """Return the tracks of a file by their number; {} for what is no MP4 or QuickTime file, or damaged."""
    with Path(path).open("rb") as file:
        try:
            return _tracks(file, file.seek(0, 2))
        except (struct.error, ValueError, KeyError, ZeroDivisionError):
            return {}


def movie_start_s(tracks: Mapping[int, Track]) -> Fraction:
    """Return when the first track is shown, in seconds since the start of the movie."""
    return min((track.starts_s for track in tracks.values() if track.is_shown), default=Fraction(0))


def edited(uri: str, track: Track, frames: Sequence[tuple[int, int]]) -> tuple[list[ShownFrame], Fraction]:
    """Return the frames that a track's edit list shows, in order, and when the last part ends.

    frames: (pts, duration) of each, in units of the track as FFmpeg gives them without the list.
    Raises ClipError for a part that is shown faster or slower, and for more than `MAX_FRAMES`.
    """
    ordered = sorted(frames)
    starts = [pts for pts, _ in ordered]
    media_end = starts[-1] + ordered[-1][1] if ordered else 0
    shown: list[ShownFrame] = []
    now_s = Fraction(0)
    for edit in track.edits:
        lasts_s = edit.duration * track.movie_unit
        if edit.start >= 0:
            if edit.rate not in (0, 1):
                raise ClipError(
                    uri, "corrupt", f"its edit list plays a part at {edit.rate:g} times its speed, which is not read"
                )
            if not edit.duration:
                lasts_s = max(media_end - edit.start, 0) * track.unit
            first = max(bisect_right(starts, edit.start) - 1, 0)
            end = bisect_left(starts, edit.start + lasts_s / track.unit) if edit.rate else first + 1
            if len(shown) + end - first > MAX_FRAMES:
                raise ClipError(uri, "too_large", f"its edit list shows more than {MAX_FRAMES} frames")
            for at in range(first, end):
                late_s = max(starts[at] - edit.start, 0) * track.unit * int(edit.rate)
                shown.append(ShownFrame(now_s + late_s, ordered[at][0]))
        now_s += lasts_s
    return shown, now_s


def _tracks(file: BinaryIO, size: int) -> dict[int, Track]:
    movie = _inside(file, (0, size), b"moov")
    header = _inside(file, movie, b"mvhd")
    if movie is None or header is None:
        return {}
    movie_unit = _unit(_read(file, header))
    found: dict[int, Track] = {}
    for name, span in _children(file, movie):
        about, media = _inside(file, span, b"tkhd"), _inside(file, span, b"mdia", b"mdhd")
        if name != b"trak" or about is None or media is None:
            continue
        kind = _read(file, _inside(file, span, b"mdia", b"hdlr"))[8:12]
        found[_number(_read(file, about))] = Track(
            is_shown=kind in (b"vide", b"soun"),
            unit=_unit(_read(file, media)),
            movie_unit=movie_unit,
            edits=_edits(_read(file, _inside(file, span, b"edts", b"elst"))),
            is_fragmented=_inside(file, movie, b"mvex") is not None,
        )
    return found


def _children(file: BinaryIO, span: Span) -> Iterator[tuple[bytes, Span]]:
    """Yield (name, content) of the boxes between two places. Raises ValueError for what is no chain of boxes."""
    at, end = span
    for _ in range(MAX_BOXES):
        if at + 8 > end:
            return
        file.seek(at)
        header = file.read(16)
        size, name = struct.unpack(">I4s", header[:8])
        start = at + 8
        if size == 1:
            size, start = struct.unpack(">Q", header[8:])[0], at + 16
        elif size == 0:
            size = end - at
        if start > at + size:
            raise ValueError(f"a box of {size} bytes")
        yield name, (start, min(at + size, end))
        at += size
    raise ValueError(f"more than {MAX_BOXES} boxes")


def _inside(file: BinaryIO, span: Span | None, *names: bytes) -> Span | None:
    """Return the content of the first box of each name inside the one before, None if there is none."""
    for name in names:
        if span is None:
            return None
        span = next((found for one, found in _children(file, span) if one == name), None)
    return span


def _read(file: BinaryIO, span: Span | None) -> bytes:
    if span is None:
        return b""
    file.seek(span[0])
    return file.read(span[1] - span[0])


def _unit(header: bytes) -> Fraction:
    """Return the seconds of a unit, of `mvhd` or `mdhd`."""
    return Fraction(1, struct.unpack_from(">I", header, 20 if header[:1] == b"\1" else 12)[0])


def _number(header: bytes) -> int:
    """Return the number of a track, of `tkhd`."""
    return int(struct.unpack_from(">I", header, 20 if header[:1] == b"\1" else 12)[0])


def _edits(table: bytes) -> tuple[Edit, ...]:
    if len(table) < 8:
        return ()
    entry = struct.Struct(">QqhH" if table[:1] == b"\1" else ">IihH")
    count = min(struct.unpack_from(">I", table, 4)[0], (len(table) - 8) // entry.size)
    found = entry.iter_unpack(table[8 : 8 + count * entry.size])
    return tuple(Edit(duration, max(start, -1), whole + part / 65536) for duration, start, whole, part in found)
