"""Measure how far a judge's verdicts agree with people's.

The file has one JSON object a line:
`{"reference": "…", "prediction": "…", "events": [{"event": "…", "entailed": true}, …]}`
`events` are events of the reference, `entailed` is True where a person finds the event described by `prediction`.
`reference` is optional. Other keys are ignored.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reward_servers.judging.judge import Judge, JudgeTask
from reward_servers.judging.local_judge import judged_in_order
from rlsys.errors import UserError


class LabelError(UserError):
    """A file of labels that cannot be read; the message names the line and the form."""


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
class Calibration:
    """Agreement of a judge with people.

    counts: (person's label, judge's verdict) -> events; the verdict is None where the judge cannot tell.

    failed: status -> rows without any verdict, which are in no other figure.
    """

    judge: str
    counts: Counter[tuple[bool, bool | None]]
    failed: Counter[str]
    first_failure: str

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

    def _undecided(self) -> int:
        return self.counts[True, None] + self.counts[False, None]


async def calibrate(judge: Judge, path: Path, num_at_once: int = 8, timeout_s: float = 300.0) -> Calibration:
    """Compare verdicts on the labelled events of a file with the labels. Raises LabelError for a broken file."""
    rows = list(labelled_rows(path))
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
    return Calibration(judge=f"{judge.kind}, {judge.model}", counts=counts, failed=failed, first_failure=first_failure)


def labelled_rows(path: Path) -> Iterator[LabelledRow]:
    """Yield the rows of a file. Raises LabelError naming the line."""
    found = False
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            yield LabelledRow.model_validate_json(line)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(map(str, problem["loc"])) or "JSON"
            raise LabelError(
                f"{path} line {number}: {where}: {problem['msg']}; "
                'write {"reference": …, "prediction": …, "events": [{"event": …, "entailed": true}, …]}.'
            ) from error
        found = True
    if not found:
        raise LabelError(f"{path}: no row; write one JSON object a line.")


def _lines(path: Path) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise LabelError(f"{path}: {error.strerror}; give a JSONL file of labels.") from error


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
