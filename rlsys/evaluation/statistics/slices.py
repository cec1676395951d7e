"""Groups of rows by what is asked: duration, length and position of the true span, kind of question."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from rlsys.evaluation.answered import Answered
from rlsys.evaluation.protocols.texts import numbers
from rlsys.tasks.geometry import TimeSpan, merge_spans

Slices = dict[str, dict[str, tuple[int, ...]]]
"""Kind -> slice -> indices of its rows."""

DURATIONS_S = (0, 10, 30, 60, 180, 600, 1800)
LENGTHS_S = (0, 2, 5, 10, 20, 60, 180)
POSITIONS = ("first third", "middle third", "last third")
MAX_SLICES = 40
"""Most values of a label by which rows are grouped; a label with more tells rows apart, not kinds."""
_NOT_KINDS = frozenset({"video", "duration_s", "qid", "question_id", "index", "cover"})


def slices(answered: Sequence[Answered]) -> Slices:
    """Return the slices of the rows, by kind and name; a slice holds the indices of its rows in `answered`.

    "duration": of the video.  "span_length": time that the true periods cover.  "span_position": the third of the
    video in which the middle of the true periods lies; a video shorter than its truth lasts as long as it.
    Every label of text with 2 to 40 values is a kind of its own, "question_type" and "category" among them.
    Rows of which a kind is not known are in none of its slices; slices without rows are left out.
    """
    kinds: dict[str, Callable[[Answered], str | None]] = {
        "duration": lambda row: _binned(_duration_s(row), DURATIONS_S),
        "span_length": lambda row: _binned(_covered_s(row), LENGTHS_S),
        "span_position": _position,
    }
    order = {
        "duration": _names(DURATIONS_S),
        "span_length": _names(LENGTHS_S),
        "span_position": POSITIONS,
    }
    found: Slices = {}
    for kind, name_of in kinds.items():
        members = _members(answered, name_of)
        found[kind] = {name: members[name] for name in order[kind] if name in members}
    for key in _kinds_of_labels(answered):
        found[key] = dict(sorted(_members(answered, lambda row, key=key: _text(row.labels.get(key))).items()))  # type: ignore[misc]
    return {kind: members for kind, members in found.items() if members}


def true_spans(row: Answered) -> tuple[TimeSpan, ...]:
    """Return the true periods of a row, merged and in order; () if its truth has none or cannot be read."""
    truth = row.truth
    if isinstance(truth, Mapping):
        truth = truth.get("glue", [truth.get("period")])
    elif numbers(truth, 2) is not None:
        truth = [truth]
    if not isinstance(truth, list | tuple):
        return ()
    spans = [numbers(span, 2) for span in truth]
    return tuple(merge_spans([(span[0], span[1]) for span in spans if span is not None]))


def _duration_s(row: Answered) -> float | None:
    value = row.labels.get("duration_s")
    return float(value) if isinstance(value, int | float) and value > 0 else None


def _covered_s(row: Answered) -> float | None:
    spans = true_spans(row)
    return sum(end - start for start, end in spans) if spans else None


def _position(row: Answered) -> str | None:
    spans, duration_s = true_spans(row), _duration_s(row)
    if not spans or duration_s is None:
        return None
    start, end = spans[0][0], spans[-1][1]
    share = (start + end) / 2 / max(duration_s, end)
    return POSITIONS[min(2, int(3 * share))]


def _names(edges: Sequence[float]) -> list[str]:
    return [*(f"{low:g}-{high:g} s" for low, high in pairwise(edges)), f"over {edges[-1]:g} s"]


def _binned(value: float | None, edges: Sequence[float]) -> str | None:
    """Return the bin of `value`; a bin holds its upper edge."""
    if value is None:
        return None
    return _names(edges)[sum(value > edge for edge in edges[1:])]


def _kinds_of_labels(answered: Sequence[Answered]) -> list[str]:
    keys = sorted({key for row in answered for key in row.labels} - _NOT_KINDS)
    values = {key: {text for row in answered if (text := _text(row.labels.get(key)))} for key in keys}
    return [
        key
        for key in keys
        if key not in ("duration", "span_length", "span_position") or values[key]
        if 2 <= len(values[key]) <= MAX_SLICES
    ]


def _text(value: str | float | None) -> str | None:
    return value or None if isinstance(value, str) else None


def _members(answered: Sequence[Answered], name_of: Callable[[Answered], str | None]) -> dict[str, tuple[int, ...]]:
    members: dict[str, list[int]] = {}
    for index, row in enumerate(answered):
        name = name_of(row)
        if name is not None:
            members.setdefault(name, []).append(index)
    return {name: tuple(indices) for name, indices in members.items()}
