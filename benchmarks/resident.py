"""Resident memory of a process and its children over time, as the kernel counts it.

A thread reads `/proc/PID/status` every few milliseconds, from outside, so that code under test runs as it is. What a
process holds for itself and what it maps of shared memory (Ray's object store) are apart. With `RETURNED` in a
process's environment glibc gives freed tensors back at once, so that resident means used.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

RETURNED = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "524288", "MALLOC_ARENA_MAX": "2"}
"""Settings of glibc by which an allocation above 256 KiB is a mapping of its own, which ends with it."""
POLL_S, LOOK_S = 0.005, 0.2
GRAIN = 1 << 20
"""Bytes by which a reading must differ from the one before to be kept."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Bytes of one process in a span of time: of its own at the start, at most and at the end, and shared at most."""

    before: int
    peak: int
    after: int
    shared: int

    @property
    def beyond(self) -> int:
        """Bytes that came on top of those at the start."""
        return self.peak - self.before


@dataclass(kw_only=True)
class _Series:
    """Readings of one process: seconds, own bytes, shared bytes. role: "" until its title matches one."""

    role: str = ""
    readings: list[tuple[float, int, int]] = field(default_factory=list)


class Watch:
    """A record of the memory of `pid` and its descendants from its creation to `stop`.

    roles: name -> pattern of the command line of processes to watch; the first that matches counts.
    """

    def __init__(self, pid: int, roles: Mapping[str, str]) -> None:
        self._root, self._roles = pid, {name: re.compile(pattern) for name, pattern in roles.items()}
        self._series: dict[int, _Series] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the record."""
        self._ended.set()
        self._thread.join()

    def usage(self, start: float, end: float) -> dict[str, list[Usage]]:
        """Return by role what each of its processes held between two readings of `time.monotonic`."""
        found: dict[str, list[Usage]] = {}
        for _, series in sorted(self._series.items()):
            until = [reading for reading in series.readings if reading[0] <= end]
            first = max((index for index, reading in enumerate(until) if reading[0] <= start), default=None)
            if first is None or not series.role:
                continue
            own = [reading[1] for reading in until[first:]]
            shared = max(reading[2] for reading in until[first:])
            usage = Usage(before=own[0], peak=max(own), after=own[-1], shared=shared)
            found.setdefault(series.role, []).append(usage)
        return found

    def _watch(self) -> None:
        looked = -LOOK_S
        while not self._ended.wait(POLL_S):
            if time.monotonic() - looked > LOOK_S:
                self._look()
                looked = time.monotonic()
            for pid, series in list(self._series.items()):
                self._read(pid, series)

    def _look(self) -> None:
        """Note new processes, and the roles of those whose titles have changed."""
        try:
            root = psutil.Process(self._root)
            processes = [root, *root.children(recursive=True)]
        except psutil.Error:
            return
        for process in processes:
            series = self._series.setdefault(process.pid, _Series())
            if series.role:
                continue
            try:
                title = " ".join(process.cmdline())
            except psutil.Error:
                continue
            series.role = next((name for name, pattern in self._roles.items() if pattern.search(title)), "")

    def _read(self, pid: int, series: _Series) -> None:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return
        values = dict(re.findall(r"^(RssAnon|RssShmem):\s+(\d+) kB", status, re.MULTILINE))
        if len(values) < 2:
            return  # it has ended
        own, shared = int(values["RssAnon"]) << 10, int(values["RssShmem"]) << 10
        last = series.readings[-1] if series.readings else None
        if last is None or abs(own - last[1]) > GRAIN or abs(shared - last[2]) > GRAIN:
            series.readings.append((time.monotonic(), own, shared))
