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
_received: list[int] = []


@contextmanager
def end_on_signals() -> Iterator[None]:
    """Within the block, a signal of ENDING raises SystemExit(128 + its number), so that every `with` block cleans up.

    Whatever a library makes of that exception, the block ends with it. Ignored signals (as SIGHUP under `nohup`) stay
    ignored. Outside the main thread, where Python delivers no signals, and inside another such block nothing changes.
    """
    if _before or threading.current_thread() is not threading.main_thread():
        yield
        return
    _before.update({one: signal.getsignal(one) for one in ENDING if signal.getsignal(one) is not signal.SIG_IGN})
    rearm()
    try:
        yield
    except BaseException as error:
        if isinstance(error, SystemExit) and error.code == signal.SIGTERM:  # of Ray's own handler
            _received.append(signal.SIGTERM)
        if _received:  # Ray turns the exit into SystemExit(1) inside its calls
            raise _exit(_received[0]) from error
        raise
    finally:
        for one, handler in _before.items():
            signal.signal(one, handler if handler is not None else signal.SIG_DFL)
        _before.clear()
        _received.clear()


def rearm() -> None:
    """Restore the handlers of `end_on_signals` after a library has set its own.

    Ray's C++ code prints stack traces on SIGTERM, and its Python code exits without unwinding.
    """
    if threading.current_thread() is threading.main_thread():
        for one in _before:
            signal.signal(one, _end)


@contextmanager
def defer_signals() -> Iterator[None]:
    """Hold the signals of `end_on_signals`, and SIGINT, back until the end of the block; a second one ends it at once.

    For calls into libraries that lose or print an exception which is raised inside them. Outside the main thread and
    outside a block of `end_on_signals` nothing changes.
    """
    if not _before or threading.current_thread() is not threading.main_thread():
        yield
        return
    takes_interrupts = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    for one in (*_before, *([signal.SIGINT] if takes_interrupts else [])):
        signal.signal(one, _note)
    try:
        yield
    except Exception as error:
        if _received:  # the person's wish comes first
            raise _exit(_received[0]) from error
        raise
    finally:
        if takes_interrupts:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        rearm()
    if _received:
        raise _exit(_received[0])


def name_of_end(error: BaseException) -> str | None:
    """Return the name of the signal whose exception this is, None for another one."""
    if isinstance(error, KeyboardInterrupt):
        return signal.SIGINT.name
    if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code - 128 in ENDING:
        return signal.Signals(error.code - 128).name
    return None


def _end(number: int, frame: FrameType | None) -> NoReturn:
    _received.append(number)
    raise _exit(number)


def _note(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    if len(_received) > 1:
        raise _exit(number)


def _exit(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
