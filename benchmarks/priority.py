"""The scheduling policy of a process that encodes video."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def keeps_priority() -> Iterator[None]:
    """Restore the scheduling policy of this thread, which SVT-AV1 makes a real-time one where it runs as root.

    Everything that the thread starts later would inherit that, and leave other processes no CPU.
    """
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        if os.sched_getscheduler(0) != policy:
            os.sched_setscheduler(0, policy, priority)
