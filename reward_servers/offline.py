"""Score the rows of a file with the functions that the service runs, the judge included, without a cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from reward_servers.judging.judge import Judge, JudgeTask
from reward_servers.judging.local_judge import in_order, open_judge, pumped
from reward_servers.judging.which_judge import judge_kind
from reward_servers.schema import RequestSettings, ScoreRequest, ScoreRow
from reward_servers.scorers.scorer_processes import ScorerProcesses
from reward_servers.server.service import RewardService
from rlsys.config.answers import Reading
from rlsys.config.run import ConfigError, JudgeConfig, ScoreSettings
from rlsys.tasks.table import TASKS, default_names, task_name
from rlsys.types import Json, Score

_ROWS_AT_ONCE = 8


class OfflineRow(BaseModel):
    """One line of a file: a response, its truth, and whether reasoning was requested. Other keys are ignored.

    The truth of a caption may be the reference caption itself. scores: null computes the task's default
    scores, or those that the caller gives the task. question, num_tokens, duration_s, options: see `schema.ScoreRow`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    task: str
    text: str
    truth: Any
    think: bool = True
    scores: list[str] | None = None
    question: str = ""
    num_tokens: int | None = None
    duration_s: float | None = None
    options: list[str] = []


class OfflineJudge:
    """The judge that a file's rows are sent to. It is made when the first row needs it, and not before."""

    def __init__(self, config: JudgeConfig, resources: AsyncExitStack) -> None:
        self.kind: str = judge_kind(config)
        self._config = config
        self._resources = resources
        self._making = asyncio.Lock()
        self._judge: Judge | None = None

    async def score(self, tasks: Sequence[JudgeTask], timeout_s: float) -> list[Score]:
        """Score tasks as `RewardService` requests it."""
        async with self._making:
            if self._judge is None:
                self._judge = await self._resources.enter_async_context(open_judge(self._config))
        return await self._judge.score(tasks, time.monotonic() + timeout_s)


def score_lines(
    lines: Iterable[str],
    judge: JudgeConfig | None = None,
    settings: ScoreSettings | None = None,
    scorers: Mapping[str, str] | None = None,
    timeout_s: float = 300.0,
    reading: Reading = "paper",
    names_of: Callable[[str], Sequence[str]] = default_names,
) -> Iterator[dict[str, Json]]:
    """Yield one result per line that is not blank, in order: `line` (from 1), `task`, `status`, `scores`, `reason`, and
    `evidence` if a judge was called, `fault` if a custom scorer failed.

    A line that cannot be read is "malformed" with a reason that names the line, and the next one is scored. Up to
    `judge.max_concurrency` judged rows run at once, each for `timeout_s` at most. judge None: its defaults, which are
    sentence embeddings; where those are not installed, rows that need a judge are "infra". scorers: as
    `reward.scorers`. names_of: task -> the scores of a row that names none. Raises ConfigError for a judge that cannot
    be used.
    """
    numbers = RequestSettings(**(settings or ScoreSettings()).model_dump(), reading=reading)
    scoring = _Scoring(settings=numbers, timeout_s=timeout_s, names_of=names_of)
    return pumped(_scored_lines(lines, judge, scorers or {}, scoring))


@dataclass(frozen=True, kw_only=True)
class _Scoring:
    """The settings that apply to every row of a file."""

    settings: RequestSettings
    timeout_s: float
    names_of: Callable[[str], Sequence[str]]


async def _scored_lines(
    lines: Iterable[str],
    config: JudgeConfig | None,
    scorers: Mapping[str, str],
    scoring: _Scoring,
) -> AsyncIterator[dict[str, Json]]:
    async with AsyncExitStack() as resources:
        service = RewardService(_judge(config, resources), ScorerProcesses(scorers))
        resources.callback(service.close)

        async def scored(numbered: tuple[int, str]) -> dict[str, Json]:
            number, line = numbered
            return {"line": number, **await _scored(service, number, line, scoring)}

        todo = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
        at_once = config.max_concurrency if config is not None and config.urls else _ROWS_AT_ONCE
        async for result in in_order(todo, scored, at_once):
            yield result


def _judge(config: JudgeConfig | None, resources: AsyncExitStack) -> OfflineJudge | None:
    try:
        return OfflineJudge(config or JudgeConfig(), resources)
    except ConfigError:
        if config is not None:
            raise
        return None  # no judge was requested and none is installed: most files need no judge


async def _scored(service: RewardService, number: int, line: str, scoring: _Scoring) -> dict[str, Json]:
    try:
        row = OfflineRow.model_validate_json(line)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        found = "; ".join(f"{'.'.join(map(str, problem['loc'])) or 'JSON'}: {problem['msg']}" for problem in problems)
        return {"task": None, "status": "malformed", "scores": {}, "reason": f"line {number}: {found}"}
    truth = row.truth
    if row.task == "captioning" and isinstance(truth, str):
        truth = {"caption": truth}
    # not validated: the limits of a request over HTTP are none of a file's
    names = row.scores
    if names is None and task_name(row.task) in TASKS:  # the service names the known tasks
        names = list(scoring.names_of(row.task))
    fields = row.model_dump() | {"truth": truth, "rollout_id": str(number), "scores": names}
    request = ScoreRequest.model_construct(
        rows=[ScoreRow.model_construct(**fields)], settings=scoring.settings, timeout_s=scoring.timeout_s
    )
    (reply,) = await service.score(request)
    result = {
        "task": row.task,
        "status": reply.status,
        "scores": dict(reply.scores),
        "reason": f"line {number}: {reply.reason}" if reply.reason else "",
    }
    evidence = {} if reply.evidence is None else {"evidence": reply.evidence}
    return result | evidence | ({} if reply.fault is None else {"fault": reply.fault.model_dump()})
