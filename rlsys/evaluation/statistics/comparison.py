"""Two evaluations of the same rows side by side: paired differences, and the rows that changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlsys.evaluation.protocols.protocol import Protocol_
from rlsys.evaluation.protocols.weighted import ScoredRow
from rlsys.evaluation.statistics.bootstrap import Interval, percentiles, resampled
from rlsys.evaluation.statistics.slices import slices

_SHOWN = 3
_EQUAL = 1e-9


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A metric on the same rows of two evaluations.

    a, b: its values.  difference: b - a.  interval: 95 % of the difference on resampled videos, the same resample on
    both sides.  p_value: two-sided, of no difference; a bootstrap p-value, never below 2 / (num + 1).
    """

    num_rows: int
    a: float
    b: float
    difference: float
    interval: Interval
    p_value: float


@dataclass(frozen=True, kw_only=True)
class Change:
    """A row whose score differs. text_a, text_b: the first text of each side, "" without one."""

    row_id: str
    question: str
    score_a: float
    score_b: float
    text_a: str
    text_b: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What two evaluations by one protocol differ in.

    metric: the name of what is compared.  overall: on all rows.  slices: kind -> slice -> difference, see
    `rlsys.evaluation.statistics.slices`.  gained, lost: rows that b scores higher or lower, the largest change first.
    only_a, only_b: ids of rows that one side lacks, which are left out.
    """

    protocol: str
    metric: str
    overall: Difference
    slices: Mapping[str, Mapping[str, Difference]]
    gained: tuple[Change, ...]
    lost: tuple[Change, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]


def compare(
    a: Sequence[ScoredRow],
    b: Sequence[ScoredRow],
    protocol: Protocol_,
    *,
    metric: str = "",
    intersect: bool = False,
    num: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Return how b differs from a, by `metric` ("" is the protocol's primary one), with a paired bootstrap over videos.

    a, b: rows with their scores by `protocol`, in any order. Their sets of rows must be equal; with `intersect` the
    rows that both have are compared. Rows are paired by id, and must ask the same question with the same truth.
    Raises ValueError for row sets that differ, a row that stands twice on a side, rows that do not fit each other, no
    common row, or a metric that the protocol does not have.
    """
    sides = _by_id(a, "a"), _by_id(b, "b")
    only_a = tuple(name for name in sides[0] if name not in sides[1])
    only_b = tuple(name for name in sides[1] if name not in sides[0])
    if (only_a or only_b) and not intersect:
        raise ValueError(
            f"the two evaluations do not have the same rows: {_some(only_a)} only in a, {_some(only_b)} only in b; "
            "evaluate both on the same data, or compare the rows that both have (intersect)."
        )
    common = [name for name in sides[0] if name in sides[1]]
    if not common:
        raise ValueError("the two evaluations have no row in common; compare evaluations of the same data set.")
    first, second = ([side[name] for name in common] for side in sides)
    _check_same_questions(first, second)
    metric = metric or protocol.primary
    changes = _changes(first, second, protocol.row_score)
    return Comparison(
        protocol=protocol.name,
        metric=metric,
        overall=_difference(first, second, protocol, metric, num, seed),
        slices={
            kind: {
                name: _difference([first[i] for i in rows], [second[i] for i in rows], protocol, metric, num, seed)
                for name, rows in members.items()
            }
            for kind, members in slices([row for row, _ in first]).items()
        },
        gained=tuple(change for change in changes if change.score_b > change.score_a),
        lost=tuple(change for change in changes if change.score_b < change.score_a),
        only_a=only_a,
        only_b=only_b,
    )


def _by_id(rows: Sequence[ScoredRow], side: str) -> dict[str, ScoredRow]:
    found: dict[str, ScoredRow] = {}
    for row in rows:
        if row[0].row_id in found:
            raise ValueError(f"row {row[0].row_id} stands twice in {side}; keep one of them.")
        found[row[0].row_id] = row
    return found


def _some(names: Sequence[str]) -> str:
    if not names:
        return "no row"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


def _check_same_questions(first: Sequence[ScoredRow], second: Sequence[ScoredRow]) -> None:
    for (ours, _), (theirs, _) in zip(first, second, strict=True):
        if (ours.question, _listed(ours.truth)) != (theirs.question, _listed(theirs.truth)):
            raise ValueError(
                f"row {ours.row_id} has another question or truth in b than in a; compare evaluations of one data set."
            )


def _listed(value: object) -> object:
    """Return a truth with lists for tuples, as it is after it was written to JSON."""
    if isinstance(value, Mapping):
        return {key: _listed(member) for key, member in value.items()}
    return [_listed(member) for member in value] if isinstance(value, list | tuple) else value


def _difference(
    first: Sequence[ScoredRow], second: Sequence[ScoredRow], protocol: Protocol_, metric: str, num: int, seed: int
) -> Difference:
    values = [protocol.aggregate(side) for side in (first, second)]
    # the slice of a metric that a group of rows lacks ("accuracy/short" of long videos) is no number
    a, b = (side.get(metric, float("nan")) for side in values)
    draws = [resampled(protocol, side, num=num, seed=seed) for side in (first, second)]
    if any(metric not in side for side in draws):
        known = ", ".join(draws[0])
        raise ValueError(f"protocol {protocol.name} has no metric {metric!r} on these rows; it has {known}.")
    found = draws[1][metric] - draws[0][metric]
    return Difference(
        num_rows=len(first),
        a=a,
        b=b,
        difference=b - a,
        interval=percentiles(found),
        p_value=_p_value(found[~np.isnan(found)]),
    )


def _p_value(differences: np.ndarray) -> float:
    """Return twice the share of resamples on the rarer side of 0; ties count on both sides."""
    if not differences.size:
        return float("nan")
    rarer = min(int((differences <= _EQUAL).sum()), int((differences >= -_EQUAL).sum()))
    return min(1.0, 2 * (rarer + 1) / (differences.size + 1))


def _changes(first: Sequence[ScoredRow], second: Sequence[ScoredRow], score: str) -> list[Change]:
    changes = [
        Change(
            row_id=ours.row_id,
            question=ours.question,
            score_a=scores_a[score],
            score_b=scores_b[score],
            text_a=ours.texts[0] if ours.texts else "",
            text_b=theirs.texts[0] if theirs.texts else "",
        )
        for (ours, scores_a), (theirs, scores_b) in zip(first, second, strict=True)
        if abs(scores_b[score] - scores_a[score]) > _EQUAL
    ]
    return sorted(changes, key=lambda change: -abs(change.score_b - change.score_a))
