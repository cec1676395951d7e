"""Score stored evidence again: with other tiers from the stored verdicts, or with another judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from reward_servers.judging.event_scores import EventVerdict, event_scores
from reward_servers.judging.judge import Judge, JudgeTask
from reward_servers.judging.local_judge import judged_in_order
from rlsys.config.run import ScoreSettings
from rlsys.errors import UserError
from rlsys.json_lines import in_short, json_lines, why_no_lines
from rlsys.types import Json, Score


class EvidenceError(UserError):
    """A file without any evidence that can be read; the message names the first problem."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The rows of a file that hold event verdicts, by their line, and what is wrong with the lines that are left out.

    Rows of other tasks, without event verdicts, are in neither.
    """

    rows: tuple[tuple[int, dict[str, Json]], ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Rescored:
    """A row before and after. row: as it would be stored now.  before, after: event recall, or the row's status.

    num_events, num_flipped: verdicts on reference events, and how many of them differ from the stored ones.
    """

    line: int
    row: dict[str, Json]
    before: float | str
    after: float | str
    num_events: int
    num_flipped: int

    @property
    def is_changed(self) -> bool:
        return self.before != self.after or self.num_flipped > 0


@dataclass
class RescoreSummary:
    """Add up rows: how many changed, and the mean recall of those that have one before and after.

    problems: of the lines that were left out.
    """

    problems: tuple[str, ...] = ()
    counts: Counter[str] = field(default_factory=Counter)
    sum_before: float = 0.0
    sum_after: float = 0.0

    def add(self, row: Rescored) -> None:
        self.counts["rows"] += 1
        self.counts["changed"] += row.is_changed
        self.counts["events"] += row.num_events
        self.counts["flipped"] += row.num_flipped
        self.counts["lost"] += isinstance(row.after, str) and not isinstance(row.before, str)
        self.counts["won"] += isinstance(row.before, str) and not isinstance(row.after, str)
        if not isinstance(row.before, str) and not isinstance(row.after, str):
            self.counts["both"] += 1
            self.sum_before += row.before
            self.sum_after += row.after

    def lines(self) -> Iterator[str]:
        """Yield the lines for a person to read."""
        counts, both = self.counts, self.counts["both"]
        yield f"rows       {counts['rows']} with event verdicts, {counts['changed']} changed"
        yield f"verdicts   {counts['flipped']} of {counts['events']} differ"
        yield f"scored     {counts['won']} that were not before, {counts['lost']} no longer"
        if both:
            yield f"recall     mean {self.sum_before / both:.4f} before, {self.sum_after / both:.4f} now ({both} rows)"
        if self.problems:
            yield f"left out   {len(self.problems)} lines: {in_short(self.problems)}"


async def rescore(
    stored: Stored, judge: Judge | None, settings: ScoreSettings, num_at_once: int = 8, timeout_s: float = 300.0
) -> AsyncIterator[Rescored]:
    """Yield stored rows scored again, in order.

    judge None: the stored verdicts under `settings.recall_tiers`, offline. A judge: new verdicts on the stored
    reference events, so that both can be compared event by event.
    """
    if judge is None:
        for number, row in stored.rows:
            yield _compared(number, row, _from_stored(row, settings))
        return
    tasks = [_task(row, settings) for _, row in stored.rows]
    todo = iter(stored.rows)
    async for score in judged_in_order(judge, tasks, num_at_once, timeout_s):
        yield _compared(*next(todo), score)


def _compared(number: int, row: dict[str, Json], score: Score) -> Rescored:
    stored, scores = row["evidence"], row.get("scores") or {}
    evidence = score.evidence or stored
    pairs = zip(stored["recall"], evidence["recall"], strict=True)
    kept = {name: value for name, value in scores.items() if name not in ("recall", "precision", "f1")}
    is_ok = score.status == "ok"
    now = {"status": score.status, "scores": {**kept, **score.scores} if is_ok else {}, "reason": score.reason}
    before = scores.get("recall")
    return Rescored(
        line=number,
        row={**row, **now, "evidence": evidence},
        before=before if isinstance(before, int | float) else str(row.get("status", "not scored")),
        after=score.scores["recall"] if is_ok else score.status,
        num_events=len(stored["recall"]),
        num_flipped=sum(old["entailed"] is not new["entailed"] for old, new in pairs),
    )


def _from_stored(row: Mapping[str, Json], settings: ScoreSettings) -> Score:
    evidence = row["evidence"]
    recall = [EventVerdict.from_json(value) for value in evidence["recall"]]
    backwards = evidence.get("precision")
    precision = None if backwards is None else [EventVerdict.from_json(value) for value in backwards]
    scores = event_scores(recall, precision, _want(evidence), settings.recall_tiers)
    if scores is None:
        return Score(status="abstain", scores={}, reason="the judge could not tell events that decide the score")
    return Score(status="ok", scores=scores, reason="")


def _task(row: Mapping[str, Json], settings: ScoreSettings) -> JudgeTask:
    evidence = row["evidence"]
    return JudgeTask(
        kind="events",
        reference=evidence["reference"],
        reference_events=tuple(verdict["event"] for verdict in evidence["recall"]),
        prediction=evidence["prediction"],
        want=frozenset(_want(evidence)),
        tiers=settings.recall_tiers,
    )


def _want(evidence: Mapping[str, Json]) -> set[str]:
    return {"recall"} if evidence.get("precision") is None else {"recall", "precision", "f1"}


def read_stored(path: Path) -> Stored:
    """Return the rows of a JSONL file that hold event verdicts in `evidence`.

    A line that is no JSON object or whose evidence is broken is left out. Raises EvidenceError if the file cannot be
    read, or if every line is left out.
    """
    rows: list[tuple[int, dict[str, Json]]] = []
    problems: list[str] = []
    num_lines = 0
    try:
        for number, entry in json_lines(path):
            num_lines += 1
            problem = entry if isinstance(entry, str) else _broken(entry)
            if problem:
                problems.append(f"line {number}: {problem}")
            elif not isinstance(entry, str) and _has_verdicts(entry):
                rows.append((number, entry))
        if len(problems) < num_lines:
            return Stored(rows=tuple(rows), problems=tuple(problems))
        kind = why_no_lines(path)
    except OSError as error:
        raise EvidenceError(f"{path}: {error.strerror}; give a JSONL file of scored rows.") from error
    first = f" ({problems[0]})" if problems else ""
    raise EvidenceError(
        f"{path}: no scored row{first}, and the file {kind}; give a JSONL file as `rlsys score` writes it."
    )


def _has_verdicts(row: Mapping[str, Json]) -> bool:
    return isinstance(row.get("evidence"), dict) and "recall" in row["evidence"]


def _broken(row: Mapping[str, Json]) -> str:
    """Return what is wrong with the verdicts of a row, "" if nothing is or if it has none."""
    if not _has_verdicts(row):
        return ""
    evidence = row["evidence"]
    try:
        for direction in ("recall", "precision"):
            verdicts = evidence.get(direction)
            if not isinstance(verdicts, list | None) or (direction == "recall" and not verdicts):
                raise ValueError(f"{direction} {str(verdicts)[:120]}: write a list of verdicts.")
            for value in verdicts or ():
                EventVerdict.from_json(value)
        for name in ("reference", "prediction"):
            if not isinstance(evidence.get(name), str):
                raise ValueError(f"{name}: write a text.")
        if not isinstance(row.get("scores"), dict | None):
            raise ValueError(f"scores {str(row['scores'])[:120]}: write an object of scores by name.")
    except ValueError as error:
        return f"broken evidence: {error}"
    return ""
