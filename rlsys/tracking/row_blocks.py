"""Rows of samples and verdicts, gathered on disk until the steps that share a file are together."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlsys.tracking.spool import encode, read_records

STEPS_PER_FILE = 10


@dataclass(frozen=True, kw_only=True)
class RowBlock:
    """Rows of up to `STEPS_PER_FILE` steps, in order, and the file that keeps them until `forget`."""

    path: Path
    samples: Sequence[Mapping[str, Any]]
    verdicts: Sequence[Mapping[str, Any]]

    def forget(self) -> None:
        self.path.unlink()


class RowBlocks:
    """One file per block in `folder`. A step may be added twice, after a crash; it counts once."""

    def __init__(self, folder: Path) -> None:
        self._folder = Path(folder)

    def add(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Keep what each `{"step", "samples", "verdicts"}` holds, of one block; on the disk when this returns."""
        self._folder.mkdir(parents=True, exist_ok=True)
        file = os.open(self._path(records[0]["step"]), os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.ftruncate(file, _whole_bytes(file))
            with os.fdopen(os.dup(file), "ab") as appended:
                appended.write(b"".join(map(encode, records)))
            os.fdatasync(file)
        finally:
            os.close(file)

    def complete(self, step: int | None) -> list[RowBlock]:
        """The blocks that `step` is no part of, oldest first; all of them for None."""
        if not self._folder.is_dir():
            return []
        still_open = None if step is None else self._path(step)
        return [_read(path) for path in sorted(self._folder.glob("*.jsonl")) if path != still_open]

    def _path(self, step: int) -> Path:
        return self._folder / f"{step // STEPS_PER_FILE:08d}.jsonl"


def steps_name(rows: Sequence[Mapping[str, Any]]) -> str:
    """`step_000010_to_000019`, of the first row and the last."""
    return f"step_{rows[0]['step']:06d}_to_{rows[-1]['step']:06d}"


def _whole_bytes(file: int) -> int:
    """Bytes up to the end of the last whole line: a process may have died while it wrote one."""
    size = os.fstat(file).st_size
    for end in range(size, 0, -4096):
        start = max(0, end - 4096)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
    return 0


def _read(path: Path) -> RowBlock:
    by_step = {record["step"]: record for record, _ in read_records(path) if record is not None}
    records = [by_step[step] for step in sorted(by_step)]
    return RowBlock(
        path=path,
        samples=[row for record in records for row in record["samples"]],
        verdicts=[row for record in records for row in record["verdicts"]],
    )
