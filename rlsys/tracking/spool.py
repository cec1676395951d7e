"""The spool: a run's records on disk, in order, and how far an uploader has acknowledged them.

A folder holds segments `000001.jsonl`, …, of lines `CRC32 JSON`, and the file `position`, up to which all records are
acknowledged. Records are atomic: a partly written last line is removed when the spool is opened again. The position is
written after the acknowledgement, so a record may be delivered twice after a crash but is never skipped; receivers must
be idempotent. Acknowledged records are kept, so that a run can be recreated if its store is lost.

Why not an SQLite table, which would need about half the code: `output_dir` often lies on NFS or Lustre, where SQLite's
locks and write-ahead log are not safe, and a lost page can corrupt the whole table, whereas here it costs only the
lines on it.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rlsys.errors import UserError
from rlsys.files import sync, write_whole
from rlsys.locks import hold

log = logging.getLogger(__name__)

SEGMENT_BYTES = (
    1 << 20
)  # a segment that is this long is followed by another: the newest alone is read when a run resumes
READ_AHEAD = 64  # records held in memory by the reader
POSITION_FILE = "position"
HEAD = "head"  # first record of a segment: the newest step of each kind until then
Record = Mapping[str, Any]


class SpoolInUseError(UserError):
    """Another process has this spool open."""


class Spool:
    """An append-only queue in a folder, for one writer and one reader, which may be two threads.

    A record is a mapping of JSON values with a `kind`, and a `step` if it belongs to one.
    Raises SpoolInUseError while another process has the folder open; the lock is released when that process ends.
    """

    def __init__(self, folder: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._folder, self._segment_bytes = Path(folder), segment_bytes
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self._folder / "lock")
        self._guard = threading.Lock()
        self.last_steps: dict[str, int] = {}
        """The newest step of each kind that was ever appended, acknowledged or not."""
        self.num_waiting = 0
        self._segment: int  # that is written to, its descriptor, and its length
        self._file: int
        self._size: int
        self._ahead: deque[tuple[Record, tuple[int, int]]] = deque()
        self._read_to = self._recover()
        self._synced_to = (0, 0)

    def append(self, record: Record) -> None:
        """Add a record; it survives the death of the process at once, that of the machine after `sync`.

        Raises OSError that names the folder if it cannot be written; no part of it is written then.
        """
        try:
            if self._size >= self._segment_bytes:
                self._next_segment()
            size = _append(self._file, self._size, record)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._folder)) from error
        with self._guard:
            self._size = size
            self.num_waiting += 1
        _note_step(self.last_steps, record)

    def sync(self) -> None:
        """Flush everything appended so far to disk."""
        with self._guard:
            end, file = (self._segment, self._size), os.dup(self._file)
        try:
            if end != self._synced_to:
                os.fdatasync(file)
                self._synced_to = end
        finally:
            os.close(file)

    def waiting(self) -> Sequence[Record]:
        """Return the oldest unacknowledged records, at most `READ_AHEAD`; () if there are none."""
        while not self._ahead:
            segment, offset = self._read_to
            with self._guard:
                end = self._size if segment == self._segment else None
            for record, after in read_records(self._path(segment), offset, end):
                self._read_to = (segment, after)
                if record is not None and record["kind"] != HEAD:
                    self._ahead.append((record, self._read_to))
                if len(self._ahead) == READ_AHEAD:
                    break
            if not self._ahead:
                if end is not None:
                    return ()
                self._read_to = (segment + 1, 0)
        return [record for record, _ in self._ahead]

    def acknowledge(self, number: int) -> None:
        """Acknowledge the first `number` records of `waiting()`.

        If the disk does not take that, it is logged, and a process that opens the spool again delivers them again.
        """
        for _ in range(number):
            _, position = self._ahead.popleft()
        try:
            self._put_position(position)
        except OSError as error:
            log.warning("%s: which records were uploaded could not be noted: %s", self._folder, error)
        with self._guard:
            self.num_waiting -= number

    def close(self) -> None:
        """Close the spool and release its lock. Unacknowledged records stay."""
        try:
            self.sync()
        finally:
            os.close(self._file)
            self._lock.release()

    def _recover(self) -> tuple[int, int]:
        """Open the newest segment, removing a partial record, and return the position from which to read."""
        segments = sorted(int(path.stem) for path in segment_files(self._folder))
        position = self._position()
        if not segments or position[0] < segments[0]:
            position = (segments[0] if segments else 1, 0)
        self._segment, self._size = (segments or [1])[-1], 0
        for segment in segments[segments.index(position[0]) if position[0] in segments else 0 :]:
            after = 0
            for record, after in read_records(self._path(segment)):
                if record is not None:
                    _note_step(self.last_steps, record)
                    self.num_waiting += (segment, after) > position and record["kind"] != HEAD
            if segment == self._segment:
                self._size = after
        self._file = _opened(self._path(self._segment))
        os.ftruncate(self._file, self._size)
        if not self._size:
            self._size = _append(self._file, 0, {"kind": HEAD, "last_steps": self.last_steps})
            sync(self._folder)
        return position

    def _next_segment(self) -> None:
        self.sync()
        file = _opened(self._path(self._segment + 1))
        try:
            os.ftruncate(file, 0)
            size = _append(file, 0, {"kind": HEAD, "last_steps": self.last_steps})
            os.fsync(file)
            sync(self._folder)
        except OSError:
            os.close(file)
            raise
        with self._guard:
            before, self._file, self._segment, self._size = self._file, file, self._segment + 1, size
        os.close(before)

    def _position(self) -> tuple[int, int]:
        try:
            segment, offset = map(int, (self._folder / POSITION_FILE).read_text().split())
        except (OSError, ValueError):  # none yet, or the machine died while writing it: deliver everything again
            return (0, 0)
        return (segment, offset)

    def _put_position(self, position: tuple[int, int]) -> None:
        write_whole(self._folder / POSITION_FILE, f"{position[0]} {position[1]}\n")

    def _path(self, segment: int) -> Path:
        return self._folder / f"{segment:06d}.jsonl"


def segment_files(folder: Path) -> list[Path]:
    """Return the segments in a folder, which also holds other files, in order."""
    return sorted(path for path in Path(folder).glob("*.jsonl") if path.stem.isdecimal())


def encode(record: Record) -> bytes:
    """Return a record as a line with a checksum."""
    text = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def read_records(path: Path, start: int = 0, end: int | None = None) -> Iterator[tuple[dict[str, Any] | None, int]]:
    """Yield the records of a file from byte `start` to `end`, each with the position after it.

    An incomplete last line is skipped. A damaged line in the middle is logged and yields None.
    """
    with path.open("rb") as file:
        file.seek(start)
        position = start
        while end is None or position < end:
            line = file.readline()
            if not line.endswith(b"\n"):
                return
            position += len(line)
            record = _decoded(line)
            if record is None:
                log.error("%s: the line that ends at byte %d is damaged and skipped", path, position)
            yield record, position


def _decoded(line: bytes) -> dict[str, Any] | None:
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    record: dict[str, Any] = json.loads(text)
    return record


def _note_step(last_steps: dict[str, int], record: Record) -> None:
    if record["kind"] == HEAD:
        last_steps.update(record["last_steps"])
    elif "step" in record:
        last_steps[record["kind"]] = max(record["step"], last_steps.get(record["kind"], record["step"]))


def _append(file: int, size: int, record: Record) -> int:
    """Append a record and return the new size of the file. A partial write, as on a full disk, is removed again."""
    line = encode(record)
    try:
        written = 0
        while written < len(line):
            written += os.pwrite(file, line[written:], size + written)
    except OSError:
        os.ftruncate(file, size)
        raise
    return size + len(line)


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)


def _locked(path: Path) -> FileLock:
    try:
        return hold(path)
    except Timeout as error:
        raise SpoolInUseError(
            f"{path.parent}: another process is writing the record of this run, so it is still running; stop it first."
        ) from error
