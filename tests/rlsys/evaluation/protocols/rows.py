"""Rows of an evaluation for the tests of protocols and statistics."""

from __future__ import annotations

from rlsys.evaluation.answered import Answered
from rlsys.types import Json

FOUR = ("(A) a dog", "(B) a cat", "(C) a cow", "(D) a hen")


def answered(
    task: str, truth: Json, *texts: str, row_id: str = "f:0", options: tuple[str, ...] = (), **labels: str | float
) -> Answered:
    return Answered(
        row_id=row_id, task=task, question="q", options=options, truth=truth, labels=labels, texts=tuple(texts)
    )


def chosen(letter: str, *texts: str, row_id: str = "f:0", **labels: str | float) -> Answered:
    return answered("multiple_choice", f"({letter})", *texts, row_id=row_id, options=FOUR, **labels)


def grounded(start_s: float, end_s: float, *texts: str, row_id: str = "f:0", **labels: str | float) -> Answered:
    return answered("temporal_grounding", [start_s, end_s], *texts, row_id=row_id, **labels)
