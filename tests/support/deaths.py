"""The death of the process in the middle of what it writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


class Killed(BaseException):
    """Stands for the death of the process: nothing in the code under test handles it."""


def die_at(call: int, monkeypatch: pytest.MonkeyPatch, operations: Iterable[tuple[Any, str]]) -> None:
    """Make the process die at the call-th of these file system operations, each an (owner, name)."""
    calls = 0

    def dying(operation: Callable[..., Any]) -> Callable[..., Any]:
        def count(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401
            nonlocal calls
            calls += 1
            if calls == call:
                raise Killed
            return operation(*arguments, **options)

        return count

    for owner, name in operations:
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))
