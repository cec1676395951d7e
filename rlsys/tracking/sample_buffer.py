"""Buffer the rows of samples and verdicts on disk until all steps that share a file are complete."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlsys.tracking.spool import encode, read_records

STEPS_PER_FILE = 10


@dataclass(frozen=True, kw_only=True)
class SampleBlock:
    """The rows of up to `STEPS_PER_FILE` steps, in order. path: the file that buffers them until `forget`, if any."""

    path: Path | None
    samples: Sequence[Mapping[str, Any]]
    verdicts: Sequence[Mapping[str, Any]]

    def forget(self) -> None:
        if self.path is not None:
            self.path.unlink()


class SampleBuffer:
    """A buffer with one file per block in `folder`. A step that is added again, after a crash, counts once."""

    def __init__(self, folder: Path) -> None:
        self._folder = Path(folder)

    def add(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Add records `{"step", "samples", "verdicts"}` of one block; they are flushed to disk when this returns."""
        self._folder.mkdir(parents=True, exist_ok=True)
        file = os.open(self._path(records[0]["step"]), os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.ftruncate(file, _whole_bytes(file))
            with os.fdopen(os.dup(file), "ab") as appended:
                appended.write(b"".join(map(encode, records)))
            os.fdatasync(file)
        finally:
            os.close(file)

    def complete(self, step: int | None) -> list[SampleBlock]:
        """Return the blocks that `step` does not belong to, oldest first; all blocks for None."""
        if not self._folder.is_dir():
            return []
        still_open = None if step is None else self._path(step)
        blocks = [path for path in sorted(self._folder.glob("*.jsonl")) if path != still_open]
        return [block_of((row for row, _ in read_records(path) if row is not None), path) for path in blocks]

    def _path(self, step: int) -> Path:
        return self._folder / f"{step // STEPS_PER_FILE:08d}.jsonl"


def steps_name(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a name such as `step_000010_to_000019` from the first and the last row."""
    return f"step_{rows[0]['step']:06d}_to_{rows[-1]['step']:06d}"


def _whole_bytes(file: int) -> int:
    """Return the length up to the end of the last complete line: a process may have died while writing one."""
    size = os.fstat(file).st_size
    for end in range(size, 0, -4096):
        start = max(0, end - 4096)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
    return 0


def block_of(rows: Iterable[Mapping[str, Any]], path: Path | None = None) -> SampleBlock:
    """Return the block of records `{"step", "samples", "verdicts"}`."""
    by_step = {record["step"]: record for record in rows}
    records = [by_step[step] for step in sorted(by_step)]
    return SampleBlock(
        path=path,
        samples=[row for record in records for row in record["samples"]],
        verdicts=[row for record in records for row in record["verdicts"]],
    )
