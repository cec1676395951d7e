"""Rule scorers: pure functions from a response and the truth to numbers in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlsys.answers import Answer
from rlsys.geometry import mean_box_iou, spans_iou
from rlsys.tasks import Task, task_named
from rlsys.types import Json, Score


@dataclass(frozen=True, kw_only=True)
class Response:
    """A response and what could be read in it. answers: per block of the task, None where nothing could."""

    task: Task
    text: str
    think: bool
    answers: Mapping[str, Answer | None]


Scorer = Callable[[Response, str | None, Mapping[str, Answer]], float]
"""(response, the block that the table's row names, true answer per block) -> number in [0, 1]."""


def _layout(response: Response, _block: str | None, _truth: Mapping[str, Answer]) -> float:
    """1 when the whole response is laid out as asked and can be read. Source: VideoChat-R1, eq. 3."""
    return float(response.task.is_well_formed(response.text, think=response.think))


def _compared(measure: Callable[[Any, Any], float]) -> Scorer:
    """A scorer of one block: `measure(answer, true answer)`, 0 when the block holds no answer."""

    def scorer(response: Response, block: str | None, truth: Mapping[str, Answer]) -> float:
        if block is None:
            raise ValueError(f"{response.task.name}: this scorer compares one block; name it in the task's row.")
        answer = response.answers[block]
        return 0.0 if answer is None else measure(answer, truth[block])

    return scorer


SCORERS: Mapping[str, Scorer] = {
    "layout": _layout,
    "spans_iou": _compared(lambda answer, truth: spans_iou(answer.spans, truth.spans)),
    "mean_box_iou": _compared(lambda answer, truth: mean_box_iou(answer.boxes, truth.boxes)),
    "same_choice": _compared(lambda answer, truth: float(answer.letter == truth.letter)),  # VideoChat-R1, eq. 5
}


def score(task: str, text: str, truth: Json, think: bool = True) -> Score:
    """Every score of `task` for the response `text`.

    A response that cannot be read is "ok" with scores of 0. An unknown task or a broken truth is
    "malformed" with the reason and without scores: nothing can be said about the response.
    """
    try:
        row = task_named(task)
        expected = row.read_truth(truth)
    except ValueError as error:
        return Score(status="malformed", scores={}, reason=str(error))
    response = Response(task=row, text=text, think=think, answers=row.parse(text))
    scores = {name: SCORERS[how.scorer](response, how.block, expected) for name, how in row.scores.items()}
    return Score(status="ok", scores=scores, reason="")
