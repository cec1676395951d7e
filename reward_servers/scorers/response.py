"""A response as built-in and custom scorers see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reward_servers.schema import ScoreRow
from rlsys.config.answers import Reading
from rlsys.tasks.answers import Answer, last_block
from rlsys.tasks.table import Task, expected_answer, task_named
from rlsys.types import Json


@dataclass(frozen=True, kw_only=True, eq=False)
class Response:
    """One response and what is known of its prompt.

    task: the task's name.  text: the whole response.  think_text: its reasoning, None when it wrote none.
    asks_for_think: whether the prompt requested <think>…</think>.
    answers: what could be read in each block ("answer", "glue", "box"), None where nothing could.
    truth: the annotation as given in the row.  expected: the same, read like `answers`.
    question: "" when the caller did not send it.  num_tokens, of the response, and duration_s, of the clip: None
    when the caller did not send them.
    """

    task: str
    text: str
    think_text: str | None
    asks_for_think: bool
    answers: Mapping[str, Answer | None]
    truth: Json
    expected: Mapping[str, Answer]
    question: str
    num_tokens: int | None
    duration_s: float | None
    is_well_formed: bool = False
    """Whether the whole response has the correct format."""

    @property
    def row(self) -> Task:
        """Return the task's row of the table."""
        return task_named(self.task)


def read_response(row: ScoreRow, reading: Reading = "paper") -> Response:
    """Return the response of `row`, read. Raises ValueError for an unknown task or a broken truth."""
    task = task_named(row.task)
    truth = task.read_truth(row.truth)
    expected = expected_answer(row.truth, row.options, truth)
    return Response(
        task=row.task,
        text=row.text,
        think_text=last_block(row.text, "think"),
        asks_for_think=row.think,
        answers=task.parse(row.text, reading, expected),
        truth=row.truth,
        expected=truth,
        question=row.question,
        num_tokens=row.num_tokens,
        duration_s=row.duration_s,
        is_well_formed=task.is_well_formed(row.text, think=row.think, reading=reading, expected=expected),
    )
