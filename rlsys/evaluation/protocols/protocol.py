"""What a protocol of evaluation is: how a text is read, how a row is scored, how rows become metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlsys.evaluation.answered import Answered
from rlsys.evaluation.protocols.weighted import Metrics, ScoredRow, Weighted
from rlsys.types import Json


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The setting of a published figure, each part in words; None where its source does not state it."""

    frames: str | None = None
    pixels: str | None = None
    prompt: str | None = None
    decoding: str | None = None


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published figure. metric: a name of the protocol's metrics.  value: in the metric's unit, so 0.608 for 60.8 %.

    source: where it is printed.
    """

    model: str
    metric: str
    value: float
    setting: Setting
    source: str


@dataclass(frozen=True, kw_only=True)
class Protocol_:
    """A named way to read answers and to score them.

    name: "<data set>/<whose rule>".  tasks: tasks of the table whose rows it can score.
    source: paper or code that defines it.  rule: how it reads a text, in a sentence.
    primary: the metric that stands for all.  row_score: the score by which single rows are compared.
    reader: (row, text) -> value, None if the text holds no answer. Values are plain: a letter or word, a number, a
    tuple of (start, end) spans, a tuple of boxes, or a dict of such values by block.
    scorer: (row, value or None) -> scores by name, which are the same names for every row.
    summary: weighted rows -> metrics.
    """

    name: str
    tasks: frozenset[str]
    source: str
    rule: str
    primary: str
    row_score: str
    reader: Callable[[Answered, str], Json]
    scorer: Callable[[Answered, Json], dict[str, float]]
    summary: Callable[[Weighted], Metrics]
    published: tuple[Published, ...] = ()

    def read(self, answered: Answered, text: str) -> Json:
        """Return the answer in `text`, or None if this protocol finds none."""
        return self.reader(answered, text)

    def row_scores(self, answered: Answered, text: str) -> dict[str, float]:
        """Return the scores of a row answered with `text`, with "read": whether the text holds an answer.

        A text without an answer scores 0. A score is NaN where scoring itself failed; metrics leave such rows out and
        count them.
        """
        value = self.read(answered, text)
        return {**self.scorer(answered, value), "read": float(value is not None)}

    def scored(self, answered: Answered) -> dict[str, float]:
        """Return the scores of a row by its first text; a row without any text scores 0."""
        if answered.texts:
            return self.row_scores(answered, answered.texts[0])
        return {**self.scorer(answered, None), "read": 0.0}

    def summarise(self, weighted: Weighted) -> Metrics:
        """Return the metrics of at least one row under every weighting, with "read_frac": the share of readable texts.

        All metrics are fractions; higher is better.
        """
        return {**self.summary(weighted), "read_frac": weighted.mean("read")}

    def aggregate(self, rows: Sequence[ScoredRow]) -> dict[str, float]:
        """Return the metrics of `rows` and "num_rows"; no other metric when there are no rows.

        "num_unanswered" counts rows without a text, "num_failed" rows that could not be scored.
        """
        if not rows:
            return {"num_rows": 0.0}
        weighted = Weighted(rows)
        metrics = {name: float(values[0]) for name, values in self.summarise(weighted).items()}
        failed = sum(bool(scores[self.row_score] != scores[self.row_score]) for _, scores in rows)
        return {
            **metrics,
            "num_rows": float(len(rows)),
            "num_unanswered": float(sum(not row.texts for row, _ in rows)),
            "num_failed": float(failed),
        }
