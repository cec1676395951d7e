"""Scoring rows of a file with the functions that the service runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from reward_servers.scorers import score
from rlsys.types import Json


class OfflineRow(BaseModel):
    """One line: a response, its truth, and whether reasoning was asked for. Other keys are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    task: str
    text: str
    truth: Any
    think: bool = True


def score_lines(lines: Iterable[str]) -> Iterator[dict[str, Json]]:
    """One result per line that is not blank: `line` (from 1), `task`, `status`, `scores`, `reason`.

    A line that cannot be read is "malformed" with a reason that names the line, and the next one goes on.
    """
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield {"line": number, **_scored(number, line)}


def _scored(number: int, line: str) -> dict[str, Json]:
    try:
        row = OfflineRow.model_validate_json(line)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        found = "; ".join(f"{'.'.join(map(str, problem['loc'])) or 'JSON'}: {problem['msg']}" for problem in problems)
        return {"task": None, "status": "malformed", "scores": {}, "reason": f"line {number}: {found}"}
    result = score(row.task, row.text, row.truth, row.think)
    reason = f"line {number}: {result.reason}" if result.reason else ""
    return {"task": row.task, "status": result.status, "scores": dict(result.scores), "reason": reason}
