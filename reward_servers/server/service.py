"""The reward service: rows in, one reply per row, rules here and the judge elsewhere. `app.py` puts it on Serve."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol

from reward_servers.judging.judge import JudgeTask
from reward_servers.schema import ScoreReply, ScoreRequest, ScorerFault, ScoreRow
from reward_servers.scorers.judged_rows import Judged, ask_judge_about
from reward_servers.scorers.scorer_processes import ScorerProcesses
from reward_servers.scorers.scorers import Response, Ruled, default_names, ruled
from reward_servers.scorers.user_scorers import UserScorerError
from rlsys.tasks.table import TASKS, judged_scores
from rlsys.types import Score

RATE_WINDOW_S = 60.0
_RULE_THREADS = 4  # requests whose rules are applied at once: a long one must not hold up the event loop


class Busy(Exception):
    """The request cannot be taken now. retry_after_s: when to ask again."""

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class JudgeService(Protocol):
    """Service that judged rows are sent to. `score` raises Busy when too many wait already."""

    kind: str

    async def score(self, tasks: Sequence[JudgeTask], timeout_s: float) -> list[Score]: ...


class RewardService:
    """Scores requests. judge: None where captions and reasoning are not judged; such rows are "infra".

    custom: the custom scorers, which `close` stops. Every scorer is held to the request's deadline.
    """

    def __init__(self, judge: JudgeService | None = None, custom: ScorerProcesses | None = None) -> None:
        self._judge, self._custom = judge, custom or ScorerProcesses({})
        self._threads = ThreadPoolExecutor(_RULE_THREADS, "rules")
        self._open = 0
        self._recent: deque[tuple[float, int]] = deque()  # (when, rows) of the last minute
        self._counts: Counter[str] = Counter()

    @property
    def own_scores(self) -> tuple[str, ...]:
        """Names of the custom scores."""
        return self._custom.names

    def slow_scorers(self) -> Mapping[str, float]:
        """Return the custom scorers that take long, with their mean seconds."""
        return self._custom.slow()

    def close(self) -> None:
        """Stop the processes of the custom scorers."""
        self._custom.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def judge_kind(self) -> str | None:
        return None if self._judge is None else self._judge.kind

    def tasks(self) -> tuple[str, ...]:
        """Return the tasks that can be scored here."""
        return tuple(
            name for name in TASKS if self._judge is not None or not judged_scores(name) & set(default_names(name))
        )

    async def score(self, request: ScoreRequest) -> list[ScoreReply]:
        """Return one reply per row, in order.

        Each row has its own task; one that cannot be scored leaves the others alone.

        Raises Busy when too many requests wait for the judge.
        """
        self._open += 1
        started_s = time.perf_counter()
        try:
            scores, faults = await self._scores(request)
        except Busy:
            self._counts["refused"] += 1
            raise
        finally:
            self._open -= 1
        seconds = (time.perf_counter() - started_s) / len(scores)
        self._counts.update({"requests": 1, "rows": len(scores)})
        self._recent.append((time.monotonic(), len(scores)))
        self._counts.update(f"rows_{score.status}" for score in scores)
        return [
            _reply(row, score, seconds, faults.get(index))
            for index, (row, score) in enumerate(zip(request.rows, scores, strict=True))
        ]

    def counters(self) -> dict[str, float]:
        """Return the counts since the start: requests, refused ones, rows, rows by status.

        `open` is now, `rows_per_s` of the last minute, `scorer_<name>_s` the mean seconds of a custom scorer.
        """
        while self._recent and self._recent[0][0] < time.monotonic() - RATE_WINDOW_S:
            self._recent.popleft()
        rate = sum(rows for _, rows in self._recent) / RATE_WINDOW_S
        seconds = {f"scorer_{name}_s": seconds for name, seconds in self._custom.seconds().items()}
        counts = {name: float(count) for name, count in self._counts.items()}
        return {"open": self._open, "rows_per_s": rate, **counts, **seconds}

    async def _scores(self, request: ScoreRequest) -> tuple[list[Score], dict[int, ScorerFault]]:
        """Return a score per row, and by row the fault of a custom scorer. The judge comes last: it costs the most."""
        deadline_s = time.monotonic() + request.timeout_s
        names = [tuple(row.scores) if row.scores is not None else default_names(row.task) for row in request.rows]
        found = await self._ruled(request, names, deadline_s)
        scores = [row.score for row in found]
        faults = await self._add_custom(scores, found, names, deadline_s)
        asked: dict[int, Judged] = {}
        for index, row in enumerate(request.rows):
            judged = judged_scores(row.task) & set(names[index])
            if judged and scores[index].status == "ok":
                asked[index] = ask_judge_about(row, judged, request.settings)
        verdicts = await self._judged(list(asked.values()), deadline_s)
        for index, verdict in zip(asked, verdicts, strict=True):
            scores[index] = joined(scores[index], verdict)
        return scores, faults

    async def _ruled(self, request: ScoreRequest, names: Sequence[Sequence[str]], deadline_s: float) -> list[Ruled]:
        """Apply the built-in rules in a thread. Rows that are not done at the deadline are "infra"."""
        done: list[Ruled] = []

        def work() -> None:
            for row, wanted in zip(request.rows, names, strict=True):
                if time.monotonic() > deadline_s:
                    return
                own = [name for name in wanted if name not in judged_scores(row.task)]
                done.append(ruled(row, own, request.settings, request.settings.reading, self._custom.names))

        job = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            async with asyncio.timeout(max(deadline_s - time.monotonic(), 0.0)):
                await job
        except TimeoutError:
            pass  # the thread ends after the row that it is at
        reason = (
            f"the rules did not come to this row within the request's {request.timeout_s:g} s (timeout_s); send fewer "
            "rows or shorter texts per request, or raise reward.timeout_s."
        )
        late = Ruled(score=Score(status="infra", scores={}, reason=reason))
        in_time = list(done)
        return in_time + [late] * (len(request.rows) - len(in_time))

    async def _add_custom(
        self, scores: list[Score], found: Sequence[Ruled], names: Sequence[Sequence[str]], deadline_s: float
    ) -> dict[int, ScorerFault]:
        """Add the custom scores to `scores`, all rows at once, and return the first fault of each row that has one."""
        calls = [
            (index, name, row.response)
            for index, row in enumerate(found)
            if row.response is not None
            for name in names[index]
            if name in self._custom.names and name not in row.response.row.scores
        ]
        results = await asyncio.gather(*(self._custom_score(name, response, deadline_s) for _, name, response in calls))
        faults: dict[int, ScorerFault] = {}
        for (index, _, _), (score, fault) in zip(calls, results, strict=True):
            scores[index] = joined(scores[index], score)
            if fault is not None:
                faults.setdefault(index, fault)
        return faults

    async def _custom_score(self, name: str, response: Response, deadline_s: float) -> tuple[Score, ScorerFault | None]:
        try:
            value = await self._custom.score(name, response, deadline_s)
        except UserScorerError as error:
            return Score(status="infra", scores={}, reason=str(error)), error.fault
        return Score(status="ok", scores={name: value}, reason=""), None

    async def _judged(self, asked: Sequence[Judged], deadline_s: float) -> list[Score]:
        """Return a score per member: what needs no judge is there already, the rest is one call to the judge."""
        tasks = [task for judged in asked for task in judged.tasks]
        if not tasks:
            verdicts: list[Score] = []
        elif self._judge is None:
            reason = "these servers have no judge; set reward.judge.urls, or install the extra `embedding`"
            verdicts = [Score(status="infra", scores={}, reason=reason)] * len(tasks)
        else:
            verdicts = await self._ask(tasks, deadline_s)
        remaining = iter(verdicts)
        return [
            joined(judged.known, *(_with_own_evidence(task, next(remaining)) for task in judged.tasks))
            for judged in asked
        ]

    async def _ask(self, tasks: Sequence[JudgeTask], deadline_s: float) -> list[Score]:
        assert self._judge is not None
        left_s = max(deadline_s - time.monotonic(), 0.0)
        try:
            async with asyncio.timeout(left_s + 1.0):  # the judge keeps the deadline itself, with a better message
                return await self._judge.score(tasks, left_s)
        except TimeoutError:
            reason = f"the judge did not answer within the request's {left_s:.1f} s"
            return [Score(status="infra", scores={}, reason=reason)] * len(tasks)


def _with_own_evidence(task: JudgeTask, score: Score) -> Score:
    """Return `score` with evidence on consistency under its own name, as a row may have both kinds of verdict."""
    if task.kind == "events" or score.evidence is None:
        return score
    return replace(score, evidence={"consistency": score.evidence})


def joined(*parts: Score) -> Score:
    """Return several scores of one response as one: "ok" only when all are, else the first that is not."""
    failed = next((part for part in parts if part.status != "ok"), None)
    evidence: dict[str, Any] = {}
    for part in parts:
        evidence |= part.evidence or {}
    if failed is not None:
        return Score(status=failed.status, scores={}, reason=failed.reason, evidence=evidence or None)
    scores = {name: value for part in parts for name, value in part.scores.items()}
    return Score(status="ok", scores=scores, reason="", evidence=evidence or None)


def _reply(row: ScoreRow, score: Score, seconds: float, fault: ScorerFault | None) -> ScoreReply:
    return ScoreReply(
        rollout_id=row.rollout_id,
        status=score.status,
        scores=dict(score.scores),
        reason=_sendable(score.reason),
        evidence=_sendable(score.evidence),
        seconds=seconds,
        fault=None if fault is None else ScorerFault(**_sendable(fault.model_dump())),
    )


def _sendable(value: Any) -> Any:
    """Return a JSON value without lone surrogates, which models and scorers may write and UTF-8 cannot hold."""
    written = json.dumps(value, ensure_ascii=False)
    try:
        written.encode()
    except UnicodeEncodeError:
        return json.loads(written.encode("utf-8", "replace"))
    return value
