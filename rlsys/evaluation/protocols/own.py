"""Protocols of our own for every task of the table: one for each of the readings paper, strict and lenient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from rlsys.config.answers import Reading
from rlsys.evaluation.answered import Answered
from rlsys.evaluation.metrics import RECALL_THRESHOLDS
from rlsys.evaluation.protocols.captions import caption_metrics, caption_scores, caption_text
from rlsys.evaluation.protocols.protocol import Protocol_
from rlsys.evaluation.protocols.texts import expected
from rlsys.evaluation.protocols.weighted import Metrics, Weighted
from rlsys.tasks.answers import Answer, Boxes, Caption, Choice, Number, Phrase, TimeSpans
from rlsys.tasks.geometry import mean_box_iou, relative_accuracy, spans_iou
from rlsys.tasks.table import TASKS, Task
from rlsys.types import Json

READINGS: Mapping[Reading, str] = {
    "paper": "as the code that published the task reads it",
    "strict": "only the format that the prompt requests",
    "lenient": "spellings that evaluation suites accept, unless they are ambiguous",
}

_MEASURES: Mapping[str, Callable[[Json, Answer], float]] = {
    "spans_iou": lambda value, truth: spans_iou(value, _plain(truth)),
    "mean_box_iou": lambda value, truth: mean_box_iou(value, _plain(truth)),
    "same_choice": lambda value, truth: float(value == _plain(truth)),
    "same_phrase": lambda value, truth: float(isinstance(truth, Phrase) and value in (truth.text, truth.written)),
    "relative_accuracy": lambda value, truth: relative_accuracy(value, _plain(truth)),
}
"""Scorer of the task table -> (value, true answer) -> score."""


def _plain(answer: Answer | None) -> Json:
    """Return an answer as a plain value, see `Protocol_`."""
    match answer:
        case TimeSpans(spans=value) | Boxes(boxes=value) | Choice(letter=value):
            return value
        case Number(value=value) | Phrase(text=value) | Caption(text=value):
            return value
    return None


def _read(task: Task, reading: Reading, row: Answered, text: str) -> Json:
    """Return the value of the task's only block, or a dict of the values of its blocks; None if none can be read."""
    values = {name: _plain(answer) for name, answer in task.parse(text, reading, expected(row)).items()}
    if all(value is None for value in values.values()):
        return None
    return values if len(values) > 1 else next(iter(values.values()))


def _scores(task: Task, row: Answered, value: Json) -> dict[str, float]:
    """Return the scores of a row that compare one block; all 0 if the truth cannot be read."""
    wanted = {name: how for name, how in task.scores.items() if not how.is_optional and how.scorer in _MEASURES}
    try:
        truth = task.read_truth(row.truth)
    except ValueError:
        truth = {}
    values = value if len(task.blocks) > 1 and value is not None else dict.fromkeys(task.blocks, value)
    scores = dict.fromkeys(wanted, 0.0)
    for name, how in wanted.items():
        if how.block is not None and how.block in truth and values[how.block] is not None:
            scores[name] = _MEASURES[how.scorer](values[how.block], truth[how.block])
    return scores


def _metrics(task: Task, weighted: Weighted) -> Metrics:
    """Return the mean of each score; "iou" becomes "miou" and R@m."""
    metrics: Metrics = {}
    for name in (name for name, how in task.scores.items() if not how.is_optional and how.scorer in _MEASURES):
        metrics["miou" if name == "iou" else name] = weighted.mean(name)
        if name == "iou":
            metrics |= {f"r_at_{threshold}": weighted.share("iou", threshold) for threshold in RECALL_THRESHOLDS}
    return metrics


def _own(task: Task, reading: Reading, rule: str) -> Protocol_:
    is_caption = task.name == "captioning"
    row_score = "recall" if is_caption else task.correctness
    primary = "f1" if is_caption else ("miou" if row_score == "iou" else row_score)
    return Protocol_(
        name=f"{task.name}/{reading}",
        tasks=frozenset({task.name}),
        source="rlsys, docs/answers.md",
        rule="the whole caption" if is_caption else rule,
        primary=primary,
        row_score=row_score,
        reader=caption_text if is_caption else partial(_read, task, reading),
        scorer=caption_scores if is_caption else partial(_scores, task),
        summary=caption_metrics if is_caption else partial(_metrics, task),
    )


OWN = tuple(_own(task, reading, rule) for task in TASKS.values() for reading, rule in READINGS.items())
"""`<task>/<reading>` of every task."""
