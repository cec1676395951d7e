"""AutoDQ, the protocol of Dream-1k, from the judge's verdicts on single events."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rlsys.evaluation.answered import Answered
from rlsys.evaluation.protocols.texts import answer_part, label
from rlsys.evaluation.protocols.weighted import Metrics, Weighted, harmonic, mean_of
from rlsys.types import Json

MAX_EVENTS = 10
"""Most events that AutoDQ extracts from a caption."""


def caption_text(_: Answered, text: str) -> str | None:
    """Read the caption: the <answer> block, else what follows </think>, else all of the response."""
    return answer_part(text).strip() or None


def _entailed_share(verdicts: Json) -> float:
    """Return the share of events that are entailed; NaN if the verdicts are missing or one is undecided.

    No events at all give 1, as in AutoDQ's code.
    """
    if not isinstance(verdicts, list | tuple):
        return math.nan
    entailed = [verdict.get("entailed") if isinstance(verdict, Mapping) else None for verdict in verdicts]
    if not all(isinstance(one, bool) for one in entailed):
        return math.nan
    return entailed.count(True) / len(entailed) if entailed else 1.0


def caption_scores(row: Answered, value: str | None) -> dict[str, float]:
    """Return the recall and precision of a row's events, and whether more of them were judged than AutoDQ extracts.

    recall: share of the reference's events that the caption entails.  precision: share of the caption's events that
    the reference entails.  A row without a caption has 0; NaN, in both, where the judge failed or could not tell.
    """
    if value is None:
        return {"recall": 0.0, "precision": 0.0, "over_limit": 0.0}
    verdicts = row.verdicts if isinstance(row.verdicts, Mapping) else {}
    sides = [verdicts.get(side) for side in ("recall", "precision")]
    recall, precision = map(_entailed_share, sides)
    if math.isnan(recall) or math.isnan(precision):
        return {"recall": math.nan, "precision": math.nan, "over_limit": math.nan}
    is_over = any(len(side) > MAX_EVENTS for side in sides if side)
    return {"recall": recall, "precision": precision, "over_limit": float(is_over)}


def caption_metrics(weighted: Weighted) -> Metrics:
    """Return precision and recall as means over subtasks of means over rows, and F1 of these two averages.

    Source: AutoDQ's code. `over_limit_frac`: share of rows with more than ten events on a side.
    """
    subtasks = weighted.groups(lambda row: label(row, "subtask", "dataset", "category") or "all")
    recalls, precisions = (
        {name: weighted.mean(side, where=where) for name, where in subtasks.items()} for side in ("recall", "precision")
    )
    recall, precision = mean_of(list(recalls.values())), mean_of(list(precisions.values()))
    single = {f"f1/{name}": harmonic(precisions[name], recalls[name]) for name in subtasks if len(subtasks) > 1}
    return {
        "f1": harmonic(precision, recall),
        "precision": precision,
        "recall": recall,
        **single,
        "over_limit_frac": weighted.mean("over_limit"),
    }
