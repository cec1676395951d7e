"""Coroutines of several event loops that wait for the next change of a state that threads share."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class _Waiter:
    loop: asyncio.AbstractEventLoop
    event: asyncio.Event
    ticket: int | None


class Waiters:
    """The events of those that wait. The lock of the shared state must be held for every call."""

    def __init__(self) -> None:
        self._waiters: list[_Waiter] = []

    def news(self, ticket: int | None = None) -> asyncio.Event:
        """Return an event for the next change, or with a ticket for the next change while it is first in line."""
        event = asyncio.Event()
        self._waiters.append(_Waiter(asyncio.get_running_loop(), event, ticket))
        return event

    def wake(self, first_in_line: int | None) -> None:
        """Set the events of all whose turn it is. first_in_line: the lowest ticket, None if there is none."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if waiter.ticket is not None and first_in_line is not None and waiter.ticket > first_in_line:
                self._waiters.append(waiter)  # not its turn
                continue
            with suppress(RuntimeError):  # nothing waits on a closed loop
                waiter.loop.call_soon_threadsafe(waiter.event.set)
