"""Turn termination signals into an orderly exit."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Sent by schedulers and `kill`, by a terminal that closes, and by Ctrl-\\. Ctrl-C is Python's KeyboardInterrupt."""

_before: dict[signal.Signals, Any] = {}


@contextmanager
def end_on_signals() -> Iterator[None]:
    """Within the block, a signal of ENDING raises SystemExit(128 + its number), so that every `with` block cleans up.

    Ignored signals (as SIGHUP under `nohup`) stay ignored. Outside the main thread, where Python delivers no signals,
    and inside another such block nothing changes.
    """
    if _before or threading.current_thread() is not threading.main_thread():
        yield
        return
    _before.update({one: signal.getsignal(one) for one in ENDING if signal.getsignal(one) is not signal.SIG_IGN})
    rearm()
    try:
        yield
    finally:
        for one, handler in _before.items():
            signal.signal(one, handler if handler is not None else signal.SIG_DFL)
        _before.clear()


def rearm() -> None:
    """Restore the handlers of `end_on_signals` after a library has set its own.

    Ray's C++ code prints stack traces on SIGTERM, and its Python code exits without unwinding.
    """
    if threading.current_thread() is threading.main_thread():
        for one in _before:
            signal.signal(one, _end)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
