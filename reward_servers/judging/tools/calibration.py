"""Measure how far a judge's verdicts agree with people's.

The file has one JSON object a line:
`{"reference": "…", "prediction": "…", "events": [{"event": "…", "entailed": true}, …]}`
`events` are events of the reference, `entailed` is True where a person finds the event described by `prediction`.
`reference` is optional. Other keys are ignored. A line that is not so is left out and reported.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reward_servers.judging.judge import Judge, JudgeTask
from reward_servers.judging.local_judge import judged_in_order
from rlsys.errors import UserError
from rlsys.json_lines import in_short, json_lines, why_no_lines
from rlsys.types import Json

_FORM = '{"reference": …, "prediction": …, "events": [{"event": …, "entailed": true}, …]}'


class LabelError(UserError):
    """A file without any labels that can be read; the message names the first problem and the form."""


class _Label(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    event: str = Field(min_length=1)
    entailed: bool


class LabelledRow(BaseModel):
    """A prediction with the labels that people gave it."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    reference: str = ""
    prediction: str
    events: list[_Label] = Field(min_length=1)


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The rows of a file, and what is wrong with the lines that hold none."""

    rows: tuple[LabelledRow, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Agreement of a judge with people.

    counts: (person's label, judge's verdict) -> events; the verdict is None where the judge cannot tell.

    failed: status -> rows without any verdict, which are in no other figure.
    problems: of the lines that were left out.
    """

    judge: str
    counts: Counter[tuple[bool, bool | None]]
    failed: Counter[str]
    first_failure: str
    problems: tuple[str, ...] = ()

    @property
    def num_decided(self) -> int:
        return sum(count for (_, verdict), count in self.counts.items() if verdict is not None)

    @property
    def agreement(self) -> float:
        """Return the share of decided events with the same label and verdict; NaN without any."""
        same = self.counts[True, True] + self.counts[False, False]
        return same / self.num_decided if self.num_decided else math.nan

    @property
    def kappa(self) -> float:
        """Return the agreement beyond chance: 1 is full, 0 what both shares alone would give; NaN when undefined.

        Source: Cohen (1960), A coefficient of agreement for nominal scales.
        """
        total = self.num_decided
        if not total:
            return math.nan
        said_yes = self.counts[True, True] + self.counts[True, False]
        found_yes = self.counts[True, True] + self.counts[False, True]
        by_chance = (said_yes * found_yes + (total - said_yes) * (total - found_yes)) / total**2
        return (self.agreement - by_chance) / (1 - by_chance) if by_chance < 1 else math.nan

    def lines(self) -> Iterator[str]:
        """Yield the lines for a person to read."""
        yield f"judge       {self.judge}"
        yield f"events      {self.num_decided} decided, {self._undecided()} where the judge cannot tell"
        yield f"agreement   {self.agreement:.3f}"
        yield f"kappa       {self.kappa:.3f}"
        yield ""
        yield f"{'person':14}{'judge:entailed':>14}{'not entailed':>14}{'abstained':>14}"
        for label, name in ((True, "entailed"), (False, "not entailed")):
            cells = "".join(f"{self.counts[label, verdict]:>14}" for verdict in (True, False, None))
            yield f"{name:14}{cells}"
        if self.failed:
            yield ""
            yield f"rows without verdicts: {_listed(self.failed)}; the first: {self.first_failure}"
        if self.problems:
            yield ""
            yield f"{len(self.problems)} lines were left out: {in_short(self.problems)}"

    def _undecided(self) -> int:
        return self.counts[True, None] + self.counts[False, None]


async def calibrate(judge: Judge, labels: Labels, num_at_once: int = 8, timeout_s: float = 300.0) -> Calibration:
    """Compare verdicts on labelled events with the labels."""
    rows = labels.rows
    tasks = [
        JudgeTask(
            kind="events",
            reference=row.reference,
            reference_events=tuple(label.event for label in row.events),
            prediction=row.prediction,
        )
        for row in rows
    ]
    counts: Counter[tuple[bool, bool | None]] = Counter()
    failed: Counter[str] = Counter()
    first_failure = ""
    todo = iter(rows)
    async for score in judged_in_order(judge, tasks, num_at_once, timeout_s):
        row = next(todo)
        if score.evidence is None:
            failed[score.status] += 1
            first_failure = first_failure or score.reason
        else:  # a row that abstains as a whole still has a verdict on most of its events
            verdicts = [verdict["entailed"] for verdict in score.evidence["recall"]]
            counts.update((label.entailed, verdict) for label, verdict in zip(row.events, verdicts, strict=True))
    return Calibration(
        judge=f"{judge.kind}, {judge.model}",
        counts=counts,
        failed=failed,
        first_failure=first_failure,
        problems=labels.problems,
    )


def read_labels(path: Path) -> Labels:
    """Return the rows of a file. Raises LabelError if it cannot be read or has no row."""
    rows: list[LabelledRow] = []
    problems: list[str] = []
    try:
        for number, entry in json_lines(path):
            found = entry if isinstance(entry, str) else _row(entry)
            if isinstance(found, str):
                problems.append(f"line {number}: {found}")
            else:
                rows.append(found)
        if rows:
            return Labels(rows=tuple(rows), problems=tuple(problems))
        kind = why_no_lines(path)
    except OSError as error:
        raise LabelError(f"{path}: {error.strerror}; give a JSONL file of labels.") from error
    first = f" ({problems[0]})" if problems else ""
    raise LabelError(f"{path}: no row of labels{first}, and the file {kind}; write one object a line: {_FORM}.")


def _row(entry: Mapping[str, Json]) -> LabelledRow | str:
    """Return the labels of an object, or what is wrong with it in words."""
    try:
        return LabelledRow.model_validate_json(json.dumps(entry))  # strict as JSON, where objects are models
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
