"""Deadlines of tests, which scale with the measured speed of the machine.

A deadline in a test is written in seconds of an idle reference machine (two cores). `patience` turns it into seconds
of this machine under its present load. A deadline that is never reached costs no time, so it may be generous.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress

import pytest

REFERENCE_S = 0.5
"""Seconds that the probe takes on the reference machine."""
PROBE = "import numpy; numpy.linalg.svd(numpy.random.default_rng(0).random((200, 200)))"
"""A small example of what tests wait for: a process starts, imports a library, and computes."""
SLOWEST_S = 60.0
"""Seconds after which the probe is given up; the machine counts as that slow."""
MEASURE_EVERY_S = 60.0
"""Seconds between measurements, because the load of a machine changes while a test suite runs."""


def patience(seconds: float) -> float:
    """Return `seconds` of the reference machine in seconds of this one, but never fewer."""
    return round(seconds * _pace.value, 1)


class _Pace:
    """The factor by which this machine is slower than the reference machine; at least 1."""

    def __init__(self) -> None:
        self._value: float | None = None
        self._measured_at = 0.0

    @property
    def value(self) -> float:
        if self._value is None:
            self.measure()
        return self._value or 1.0

    def measure(self) -> None:
        start = time.monotonic()
        # one thread: two of OpenBLAS spin while they wait for each other, for ever where other work has their cores
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        with suppress(subprocess.TimeoutExpired):
            subprocess.run([sys.executable, "-c", PROBE], check=True, env=environment, timeout=SLOWEST_S)
        self._measured_at = time.monotonic()
        self._value = max(1.0, (self._measured_at - start) / REFERENCE_S)

    def measure_if_old(self) -> None:
        if self._value is not None and time.monotonic() - self._measured_at > MEASURE_EVERY_S:
            self.measure()


_pace = _Pace()


def pytest_runtest_setup() -> None:
    """Measure between tests, never inside one, where it would block an event loop."""
    _pace.measure_if_old()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Scale the time limit of every test by the machine's pace, as the deadlines inside it are."""
    if item.config.getoption("timeout", None) is not None or item.config.option.collectonly:
        return
    marker = item.get_closest_marker("timeout")
    limit_s = float(marker.args[0] if marker else item.config.getini("timeout"))
    item.add_marker(pytest.mark.timeout(patience(limit_s)), append=False)
