"""Messages between callers of judge endpoints and the owner of their limits. All of them can be pickled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

Outcome = Literal["ok", "abstain", "malformed", "rejected", "infra", "abandoned"]
"""How a call ended. abstain: a refusal. malformed: an answer that cannot be used. rejected: this call will never be
taken, the endpoint is well. infra: the endpoint's trouble. abandoned: the caller no longer wanted it."""


@dataclass(frozen=True, kw_only=True)
class Lease:
    """Leave to make one call to `url`."""

    lease_id: str
    url: str


@dataclass(frozen=True, kw_only=True)
class CallReport:
    """How the call of a lease went.

    seconds: it took.  tokens: prompt and answer; None when unknown, and the estimate stays.
    retry_after_s: the length of the pause that the endpoint requested; 0 if none.
    error: for people, without secrets.  hung_up: the caller left while the endpoint was at work.
    is_lasting: the endpoint will refuse every call until its setup is changed (a wrong key, a wrong address).
    """

    outcome: Outcome
    seconds: float = 0.0
    tokens: int | None = None
    retry_after_s: float = 0.0
    error: str = ""
    hung_up: bool = False
    is_lasting: bool = False


UNUSED = CallReport(outcome="abandoned", tokens=0)
"""The lease was given back before its call: nothing is charged."""


class NoEndpoint(Exception):
    """No endpoint could be had in time. reason: per endpoint why, with its last error."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason  # str() of an exception that went through Ray is a traceback; this stays


class Board(Protocol):
    """What a caller needs of the owner, in this process or behind an actor.

    An implementation raises NoEndpoint for its own trouble too (an owner that restarts): callers try again.
    """

    async def acquire(self, tokens: int, avoid: tuple[str, ...], wait_s: float) -> Lease: ...

    async def release(self, lease_id: str, report: CallReport) -> None: ...

    async def hedge_after_s(self) -> float | None: ...

    async def snapshot(self) -> dict[str, Any]: ...
