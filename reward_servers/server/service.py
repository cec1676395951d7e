"""The reward service: rows in, one reply per row, rules here and the judge elsewhere. `app.py` puts it on Serve."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from reward_servers.judging.judge import JudgeTask
from reward_servers.schema import ScoreReply, ScoreRequest, ScoreRow
from reward_servers.scorers.judged_rows import Judged, ask_judge_about
from reward_servers.scorers.scorers import UserScorer, default_names, rule_scores
from rlsys.tasks.table import TASKS, judged_scores
from rlsys.types import Score

RATE_WINDOW_S = 60.0


class Busy(Exception):
    """The request cannot be taken now. retry_after_s: when to ask again."""

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class JudgeService(Protocol):
    """Where judged rows are sent. `score` raises Busy when too many wait already."""

    kind: str

    async def score(self, tasks: Sequence[JudgeTask], timeout_s: float) -> list[Score]: ...


class RewardService:
    """Scores requests. judge: None where captions and reasoning are not judged; such rows are "infra".

    user_scorers: score name -> a custom scorer.
    """

    def __init__(self, judge: JudgeService | None = None, user_scorers: Mapping[str, UserScorer] | None = None) -> None:
        self._judge, self._user_scorers = judge, user_scorers or {}
        self._open = 0
        self._recent: deque[tuple[float, int]] = deque()  # (when, rows) of the last minute
        self._counts: Counter[str] = Counter()

    @property
    def own_scores(self) -> tuple[str, ...]:
        """Names of the custom scores."""
        return tuple(self._user_scorers)

    @property
    def judge_kind(self) -> str | None:
        return None if self._judge is None else self._judge.kind

    def tasks(self) -> tuple[str, ...]:
        """The tasks that can be scored here."""
        return tuple(
            name for name in TASKS if self._judge is not None or not judged_scores(name) & set(default_names(name))
        )

    async def score(self, request: ScoreRequest) -> list[ScoreReply]:
        """One reply per row, in order. Each row has its own task; one that cannot be scored leaves the others alone.

        Raises Busy when too many requests wait for the judge.
        """
        self._open += 1
        started_s = time.perf_counter()
        try:
            scores = await self._scores(request)
        except Busy:
            self._counts["refused"] += 1
            raise
        finally:
            self._open -= 1
        seconds = (time.perf_counter() - started_s) / len(scores)
        self._counts.update({"requests": 1, "rows": len(scores)})
        self._recent.append((time.monotonic(), len(scores)))
        self._counts.update(f"rows_{score.status}" for score in scores)
        return [_reply(row, score, seconds) for row, score in zip(request.rows, scores, strict=True)]

    def counters(self) -> dict[str, float]:
        """Since the start: requests, refused ones, rows, rows by status; `open` is now, `rows_per_s` of a minute."""
        while self._recent and self._recent[0][0] < time.monotonic() - RATE_WINDOW_S:
            self._recent.popleft()
        rate = sum(rows for _, rows in self._recent) / RATE_WINDOW_S
        return {"open": self._open, "rows_per_s": rate, **{name: float(count) for name, count in self._counts.items()}}

    async def _scores(self, request: ScoreRequest) -> list[Score]:
        deadline_s = time.monotonic() + request.timeout_s
        ruled: list[Score] = []
        asked: dict[int, Judged] = {}
        for index, row in enumerate(request.rows):
            names = tuple(row.scores) if row.scores is not None else default_names(row.task)
            judged = judged_scores(row.task) & set(names)
            own = [name for name in names if name not in judged]
            ruled.append(rule_scores(row, own, request.settings, self._user_scorers, reading=request.settings.reading))
            if judged and ruled[-1].status == "ok":
                asked[index] = ask_judge_about(row, judged, request.settings)
        verdicts = await self._judged(list(asked.values()), deadline_s)
        for index, verdict in zip(asked, verdicts, strict=True):
            ruled[index] = joined(ruled[index], verdict)
        return ruled

    async def _judged(self, asked: Sequence[Judged], deadline_s: float) -> list[Score]:
        """A score per member: what needs no judge is there already, the rest is one call to the judge."""
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
    """A row may have both kinds of verdict: that on consistency is kept under its name."""
    if task.kind == "events" or score.evidence is None:
        return score
    return replace(score, evidence={"consistency": score.evidence})


def joined(*parts: Score) -> Score:
    """Several scores of one response as one: "ok" only when all are, else the first that is not."""
    failed = next((part for part in parts if part.status != "ok"), None)
    evidence: dict[str, Any] = {}
    for part in parts:
        evidence |= part.evidence or {}
    if failed is not None:
        return Score(status=failed.status, scores={}, reason=failed.reason, evidence=evidence or None)
    scores = {name: value for part in parts for name, value in part.scores.items()}
    return Score(status="ok", scores=scores, reason="", evidence=evidence or None)


def _reply(row: ScoreRow, score: Score, seconds: float) -> ScoreReply:
    return ScoreReply(
        rollout_id=row.rollout_id,
        status=score.status,
        scores=dict(score.scores),
        reason=score.reason,
        evidence=score.evidence,
        seconds=seconds,
    )
