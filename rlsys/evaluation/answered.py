"""Record of one evaluated row: what was asked, what is true, and what a model answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rlsys.data.annotations.annotations import UnanswerableRow
from rlsys.types import Json, PromptItem


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One row of an evaluation with the texts that a model answered.

    row_id: `PromptItem.prompt_id` of the row.  task: key of `rlsys.tasks.table.TASKS`.
    question, options, truth and labels: as in `PromptItem`.
    texts: one response per sample; () if the row could not be answered, which counts as wrong.
    reason: why there are no texts, or "".
    verdicts: the judge's evidence on the first text, None without a judge; a caption's has "recall" and "precision",
    lists of `{"event": …, "entailed": true, false or null}`.
    """

    row_id: str
    task: str
    question: str
    options: tuple[str, ...]
    truth: Json
    labels: Mapping[str, str | float] = field(default_factory=dict)
    texts: tuple[str, ...] = ()
    reason: str = ""
    verdicts: Json = None


def unasked(row: PromptItem | UnanswerableRow) -> Answered:
    """Return a row before it is answered; one that cannot be asked with the reason."""
    return Answered(
        row_id=row.prompt_id,
        task=row.task,
        question=row.question,
        options=row.options,
        truth=row.truth,
        labels=row.labels,
        reason=row.reason if isinstance(row, UnanswerableRow) else "",
    )
