"""Rule scorers: pure functions from a response and the truth to numbers in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reward_servers.schema import ScoreRow
from reward_servers.scorers.reasoning_scorers import anchor_progress, cited_times, length_bonus
from reward_servers.scorers.response import Response, read_response
from rlsys.config.answers import Reading
from rlsys.config.run import ScoreSettings
from rlsys.tasks.geometry import mean_box_iou, relative_accuracy, spans_iou
from rlsys.tasks.table import GROUP_SCORES, JUDGED, Scoring, default_names
from rlsys.types import Json, Score

__all__ = ["SCORERS", "Response", "Ruled", "default_names", "rule_scores", "ruled", "score"]

Scorer = Callable[[Response, Scoring, ScoreSettings], float]
"""(response, the score's entry in the task's row, settings) -> number in [0, 1]."""


def _layout(response: Response, _how: Scoring, _settings: ScoreSettings) -> float:
    """Return 1 when the whole response has the correct format and can be parsed. Source: VideoChat-R1, eq. 3."""
    return float(response.is_well_formed)


def _compared(measure: Callable[[Any, Any, ScoreSettings], float]) -> Scorer:
    """Return a scorer of one block: `measure(answer, true answer, settings)`, 0 when the block holds no answer."""

    def scorer(response: Response, how: Scoring, settings: ScoreSettings) -> float:
        if how.block is None:
            raise ValueError(f"{response.task}: {how.scorer} compares one block; name it in the task's row.")
        answer = response.answers[how.block]
        return 0.0 if answer is None else measure(answer, response.expected[how.block], settings)

    return scorer


def _length_bonus(response: Response, _how: Scoring, settings: ScoreSettings) -> float:
    right = response.row.scores[response.row.correctness]
    return length_bonus(response, SCORERS[right.scorer](response, right, settings), settings)


SCORERS: Mapping[str, Scorer] = {
    "layout": _layout,
    "spans_iou": _compared(lambda answer, truth, _: spans_iou(answer.spans, truth.spans)),
    "mean_box_iou": _compared(lambda answer, truth, _: mean_box_iou(answer.boxes, truth.boxes)),
    "same_choice": _compared(lambda answer, truth, _: float(answer.letter == truth.letter)),  # VideoChat-R1, eq. 5
    "same_phrase": _compared(
        lambda answer, truth, _: float(answer.text in (truth.text, truth.written))
    ),  # VideoChat-R1, eq. 5
    "relative_accuracy": _compared(
        lambda answer, truth, settings: relative_accuracy(answer.value, truth.value, settings.relative_error_tiers)
    ),
    "length_bonus": _length_bonus,
    "cited_times": cited_times,
    "anchor_progress": anchor_progress,
}


@dataclass(frozen=True, kw_only=True)
class Ruled:
    """The built-in scores of a row. response: what custom scorers are called with; None where the row is not "ok"."""

    score: Score
    response: Response | None = None


def ruled(
    row: ScoreRow,
    names: Sequence[str],
    settings: ScoreSettings,
    reading: Reading = "paper",
    custom: Collection[str] = (),
) -> Ruled:
    """Return the scores `names` of `row`, in that order, except those that the judge or the caller computes.

    custom: the names of custom scores, which the caller computes.
    A response that cannot be read is "ok" with scores of 0. "malformed" with a reason and without scores: an unknown
    task or score, a broken truth, or a field that a score needs and the row does not give.
    """
    try:
        response = read_response(row, reading)
        scores = {name: _score(response, name, settings, custom) for name in names if _is_ruled(response, name, custom)}
    except ValueError as error:
        return Ruled(score=Score(status="malformed", scores={}, reason=str(error)))
    return Ruled(score=Score(status="ok", scores=scores, reason=""), response=response)


def rule_scores(row: ScoreRow, names: Sequence[str], settings: ScoreSettings, reading: Reading = "paper") -> Score:
    """Return the built-in scores `names` of `row`, see `ruled`."""
    return ruled(row, names, settings, reading).score


def score(task: str, text: str, truth: Json, think: bool = True, reading: Reading = "paper") -> Score:
    """Compute the default scores of `task`, except the judge's, for the response `text`."""
    # not validated: the limits of a request are none of a function call's
    row = ScoreRow.model_construct(rollout_id="0", task=task, text=text, truth=truth, think=think)
    return rule_scores(row, default_names(task), ScoreSettings(), reading)


def _is_ruled(response: Response, name: str, custom: Collection[str]) -> bool:
    how = response.row.scores.get(name)
    return name not in custom if how is None else how.scorer not in JUDGED | GROUP_SCORES


def _score(response: Response, name: str, settings: ScoreSettings, custom: Collection[str]) -> float:
    how = response.row.scores.get(name)
    if how is not None:
        return SCORERS[how.scorer](response, how, settings)
    known = ", ".join([*response.row.scores, *custom])
    raise ValueError(f"score {name!r} is not known for {response.task}; these servers have {known}.")
