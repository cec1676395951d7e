"""The judge: event recall of captions, and consistency of reasoning and answer, by a language model.

Event recall is VideoChat-R1 (arXiv:2504.06958), eq. 6, in three calls: split the reference into events (kept, so
paid for once per row), split the prediction, then one call with a verdict for every reference event. The last call
sees the events of the prediction, in order, and not its text: what a prediction says to its judge ends in the
splitter, which has no verdict to give.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from reward_servers.judging.calls import (
    MAX_EVENTS,
    JudgeCall,
    Unusable,
    consistency_call,
    entailment_call,
    prompt_version,
    split_call,
)
from reward_servers.judging.endpoints.llm import Completion, JudgeFailure
from reward_servers.judging.endpoints.shared_calls import SharedCalls
from reward_servers.judging.event_scores import EventVerdict, event_scores
from reward_servers.judging.unusable import NEEDS_CHANGE, JudgeUnusable
from reward_servers.judging.verdicts import AnswerKey, VerdictCache
from rlsys.types import Json, Score

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class JudgeTask:
    """One question about one response.

    "events": does `prediction` (a caption) describe the events of `reference`?  want: of "recall", "precision", "f1".
    reference_events: the reference's events where the annotation has them, else None.  tiers: map recall to reward.
    "consistency": does the answer `prediction` follow from the reasoning `reference`?
    """

    kind: Literal["events", "consistency"]
    question: str = ""
    reference: str
    reference_events: tuple[str, ...] | None = None
    prediction: str
    want: frozenset[str] = frozenset({"recall"})
    tiers: tuple[tuple[float, float], ...] = ()


class Judge(Protocol):
    """What scores JudgeTasks: a language model, or sentence embeddings where there is none."""

    kind: Literal["llm", "embedding"]
    model: str

    async def score(self, tasks: Sequence[JudgeTask], deadline_s: float) -> list[Score]:
        """Return one score per task, in order, each with its own status. deadline_s: of `time.monotonic`."""
        ...

    def counters(self) -> dict[str, Any]:
        """Return what was done since the start, as JSON."""
        ...

    async def close(self) -> None:
        """Give back what is held. Safe to call twice."""
        ...


class Completer(Protocol):
    """A language model that answers in JSON. Raises JudgeFailure when there is no answer. See `llm.JudgeLlm`."""

    async def complete(
        self, system: str, user: str, schema: Mapping[str, Json], schema_name: str, deadline_s: float
    ) -> Completion: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class _JudgeAnswer:
    value: Json
    url: str
    is_cached: bool


class EventJudge:
    """The judge that asks a language model. One per replica; one event loop.

    raises_final: whether a judge that cannot be used is an error of `score`; else it is the reason of every score.
    """

    kind: Literal["llm", "embedding"] = "llm"

    def __init__(self, llm: Completer, model: str, cache: VerdictCache, *, raises_final: bool = False) -> None:
        self.model = model
        self._raises_final = raises_final
        self._llm = llm
        self._cache = cache
        self._disk = ThreadPoolExecutor(max_workers=1, thread_name_prefix="verdicts")
        self._calls: SharedCalls[_JudgeAnswer] = SharedCalls()
        self._counts: Counter[str] = Counter()

    async def score(self, tasks: Sequence[JudgeTask], deadline_s: float) -> list[Score]:
        """Return one score per task, in order; equal tasks are judged once, the others side by side.

        Status "ok" has the scores of `want` (or "consistency"); "abstain" when the model cannot tell and that could
        change a score, or refuses; "infra" and "malformed" as the call failed. A failed task leaves the others alone.
        Raises JudgeUnusable when no endpoint can be used and this judge raises that.
        """
        different = list(dict.fromkeys(tasks))
        scores = await _together(*(self._score(task, deadline_s) for task in different))
        by_task = dict(zip(different, scores, strict=True))
        return [by_task[task] for task in tasks]

    def counters(self) -> dict[str, Any]:
        """Return tasks by status, calls made and shared, and the cache's figures."""
        return {
            "judge": self.kind,
            "model": self.model,
            "prompt_versions": {name: prompt_version(name) for name in ("split", "entailment", "consistency")},
            "tasks": {status: self._counts[status] for status in ("ok", "abstain", "infra", "malformed")},
            "calls": self._counts["calls"],
            "shared_calls": self._calls.num_shared,
            "second_tries": self._counts["second_tries"],
            "cache": self._cache.stats(),
        }

    async def close(self) -> None:
        """End the connections and give the cache's file back."""
        await self._llm.close()
        self._disk.shutdown(wait=True)
        self._cache.close()

    async def _score(self, task: JudgeTask, deadline_s: float) -> Score:
        started = time.perf_counter()
        try:
            judged = self._events if task.kind == "events" else self._consistency
            scores, reason, evidence = await judged(task, deadline_s)
            status: Literal["ok", "abstain", "infra", "malformed"] = "ok" if scores is not None else "abstain"
        except JudgeFailure as failure:
            if failure.is_final and self._raises_final:
                raise JudgeUnusable(f"{NEEDS_CHANGE}{failure.reason}") from None
            status, scores, reason, evidence = failure.status, None, _reason(failure), None
        except TimeoutError as error:
            status, scores, reason, evidence = "infra", None, f"judge {self.model}: {error}", None
        self._counts[status] += 1
        seconds = time.perf_counter() - started
        return Score(status=status, scores=scores or {}, reason=reason, evidence=evidence, seconds=seconds)

    async def _events(self, task: JudgeTask, deadline_s: float) -> tuple[dict[str, float] | None, str, Json]:
        reference, predicted = await _together(
            self._reference_events(task, deadline_s), self._split(task.prediction, deadline_s)
        )
        if not reference:
            raise JudgeFailure("malformed", "the reference caption is empty: there is nothing to recall")
        directions = [self._verdicts(reference, predicted, deadline_s)]
        if task.want & {"precision", "f1"}:
            directions.append(self._verdicts(predicted, reference, deadline_s))
        answers = await _together(*directions)
        recall, *others = ([EventVerdict.from_json(value) for value in answer.value] for answer in answers)
        precision = others[0] if others else None
        evidence = {
            "judge": self.kind,
            "model": self.model,
            "prompt_version": f"{prompt_version('split')}+{prompt_version('entailment')}",
            "reference": task.reference,
            "prediction": task.prediction,
            "reference_events": reference,
            "predicted_events": predicted,
            "recall": answers[0].value,
            "precision": answers[1].value if others else None,
            "cached": all(answer.is_cached for answer in answers),
            "endpoint": answers[0].url,
        }
        scores = event_scores(recall, precision, task.want, task.tiers)
        return scores, "" if scores is not None else _undecided([*recall, *(precision or ())]), evidence

    async def _consistency(self, task: JudgeTask, deadline_s: float) -> tuple[dict[str, float] | None, str, Json]:
        call = consistency_call(task.question, task.reference, task.prediction)
        answer = await self._ask(call, deadline_s)
        verdict = answer.value["consistent"]
        evidence = {
            "judge": self.kind,
            "model": self.model,
            "prompt_version": call.prompt_version,
            "question": task.question,
            "reference": task.reference,
            "prediction": task.prediction,
            **answer.value,
            "cached": answer.is_cached,
            "endpoint": answer.url,
        }
        if verdict is None:
            return None, f"the judge cannot tell: {answer.value['reason']}", evidence
        return {"consistency": float(verdict)}, "", evidence

    async def _reference_events(self, task: JudgeTask, deadline_s: float) -> list[str]:
        if task.reference_events is not None:
            return list(task.reference_events)
        return await self._split(task.reference, deadline_s)

    async def _split(self, text: str, deadline_s: float) -> list[str]:
        if not text.strip():
            return []  # no events: known without a model
        answer = await self._ask(split_call(text.strip()), deadline_s)
        return list(answer.value)

    async def _verdicts(self, events: Sequence[str], premise: Sequence[str], deadline_s: float) -> _JudgeAnswer:
        if not events or not premise:
            missed = [
                EventVerdict(event=event, entailed=False, reason="the prediction has no event") for event in events
            ]
            return _JudgeAnswer(value=[verdict.as_json() for verdict in missed], url="", is_cached=False)
        # an annotation may list more events than one answer has room for
        parts = [events[at : at + MAX_EVENTS] for at in range(0, len(events), MAX_EVENTS)]
        answers = await _together(*(self._ask(entailment_call(part, premise), deadline_s) for part in parts))
        return _JudgeAnswer(
            value=[verdict for answer in answers for verdict in answer.value],
            url=answers[0].url,
            is_cached=all(answer.is_cached for answer in answers),
        )

    async def _ask(self, call: JudgeCall, deadline_s: float) -> _JudgeAnswer:
        key = AnswerKey(call=call.name, model=self.model, prompt_version=call.prompt_version, inputs=call.inputs)
        return await self._calls.get(key, lambda: self._looked_up(key, call, deadline_s), deadline_s)

    async def _looked_up(self, key: AnswerKey, call: JudgeCall, deadline_s: float) -> _JudgeAnswer:
        run = asyncio.get_running_loop().run_in_executor
        stored = await run(self._disk, self._cache.get, key)
        if stored is not None:
            return _JudgeAnswer(value=stored.answer, url=stored.url, is_cached=True)
        answer = await self._asked(call, deadline_s)
        await run(self._disk, self._cache.put, key, answer.value, answer.url)
        return answer

    async def _asked(self, call: JudgeCall, deadline_s: float) -> _JudgeAnswer:
        problem = ""
        for attempt in ("first", "second"):
            user = call.user if attempt == "first" else call.user_again(problem)
            self._counts["calls"] += 1
            self._counts["second_tries"] += attempt == "second"
            completion = await self._llm.complete(call.system, user, call.schema, call.name, deadline_s)
            try:
                return _JudgeAnswer(value=call.read(completion.value), url=completion.url, is_cached=False)
            except Unusable as error:
                problem = str(error)
        raise JudgeFailure("malformed", f"judge {self.model}: the answer to {call.name} was twice unusable: {problem}")


def _reason(failure: JudgeFailure) -> str:
    return f"{NEEDS_CHANGE}{failure.reason}" if failure.is_final else failure.reason


def _undecided(verdicts: Sequence[EventVerdict]) -> str:
    undecided = [verdict for verdict in verdicts if verdict.entailed is None]
    return (
        f"the judge cannot tell {len(undecided)} of {len(verdicts)} events, "
        f"the first because: {undecided[0].reason or 'no reason given'}"
    )


async def _together(*work: Coroutine[Any, Any, Result]) -> list[Result]:
    """Return all results in order. When one fails the others are ended and its error is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in work]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
