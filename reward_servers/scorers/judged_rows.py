"""Which questions a row has for the judge, and what is known of it without one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from reward_servers.judging.judge import JudgeTask
from reward_servers.schema import ScoreRow
from rlsys.config.run import ScoreSettings
from rlsys.tasks.answers import Caption, last_block
from rlsys.tasks.table import task_named
from rlsys.types import Score

EVENT_SCORES = {"event_recall": "recall", "event_precision": "precision", "event_f1": "f1"}
"""Scorer of the task table -> what the judge calls it."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """tasks: what to ask.  known: the scores that need no judge, because the response holds nothing to judge."""

    tasks: tuple[JudgeTask, ...]
    known: Score


def ask_judge_about(row: ScoreRow, names: Collection[str], settings: ScoreSettings) -> Judged:
    """Ask the judge its questions about the judged scores `names` of a row whose truth has been read before.

    A response without a readable caption, or without reasoning, scores 0 there: that is a wrong answer,
    known without a judge.
    """
    task = task_named(row.task)
    scorers = {name: task.scores[name].scorer for name in names}
    events = {name: scorer for name, scorer in scorers.items() if scorer in EVENT_SCORES}
    tasks: list[JudgeTask] = []
    zeros: dict[str, float] = {}
    answers = task.parse(row.text)
    if events:
        caption, truth = answers["answer"], task.read_truth(row.truth)["answer"]
        assert isinstance(truth, Caption)
        if isinstance(caption, Caption):
            tasks.append(
                JudgeTask(
                    kind="events",
                    question=row.question,
                    reference=truth.text,
                    reference_events=truth.events,
                    prediction=caption.text,
                    want=frozenset(EVENT_SCORES[scorer] for scorer in events.values()),
                    tiers=settings.recall_tiers,
                )
            )
        else:
            zeros |= dict.fromkeys(events, 0.0)
    if "consistency" in scorers.values():
        reasoning, answer = last_block(row.text, "think"), last_block(row.text, "answer")
        if reasoning and reasoning.strip() and answer and answer.strip():
            tasks.append(
                JudgeTask(
                    kind="consistency",
                    question=row.question,
                    reference=reasoning,
                    reference_events=None,
                    prediction=answer,
                    want=frozenset(),
                    tiers=(),
                )
            )
        else:
            zeros |= {name: 0.0 for name, scorer in scorers.items() if scorer == "consistency"}
    return Judged(tasks=tuple(tasks), known=Score(status="ok", scores=zeros, reason=""))
