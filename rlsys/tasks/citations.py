"""Find the times that a text mentions: moments and periods of the video, from any string and in linear time."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rlsys.tasks.answers import DECIMAL
from rlsys.tasks.geometry import TimeSpan

_WORD = re.compile(r"[^\s()\[\]{}<>\"'`*,;=“”‘’]+")
_SECONDS = re.compile(rf"({DECIMAL})(seconds?|secs?|s)?")
_CLOCK = re.compile(r"(?:([0-9]{1,3}):)?([0-9]{1,3}):([0-5][0-9](?:\.[0-9]{1,17})?)(?:s)?")
_UNITS = frozenset({"s", "sec", "secs", "second", "seconds"})
_JOINS = frozenset({"to", "and", "until", "till", "through", "-", "–", "—"})
_DASH = re.compile(r"[-–—]")
_LONGEST_WORD = 64


def cited_spans(text: str) -> tuple[TimeSpan, ...]:
    """Return every moment (t, t) and period (start, end) that `text` mentions, in seconds, in order.

    A moment is a number with a unit (`12.5 s`, `3 seconds`) or a clock time (`01:30`). A period is two moments
    joined by "to", "and", "until" or a dash, of which one needs a unit; with "to" neither does.
    Other numbers ("2 and 4 people") are not times. A period may end before it starts.
    """
    words = [word.rstrip(".!?:") if len(word) <= _LONGEST_WORD else "" for word in _WORD.findall(text.lower())]
    spans: list[TimeSpan] = []
    index = 0
    while index < len(words):
        if not words[index][:1].isdigit():
            index += 1
            continue
        span, index = _span_at(words, index)
        if span is not None:
            spans.append(span)
    return tuple(spans)


def cited_periods(text: str) -> tuple[TimeSpan, ...]:
    """Return the periods that `text` mentions, as a model writes its guesses while it reasons; see `cited_spans`."""
    return tuple((start, end) for start, end in cited_spans(text) if start != end)


def _span_at(words: Sequence[str], index: int) -> tuple[TimeSpan | None, int]:
    """Return the span that begins at word `index`, and the index of the word to continue at."""
    parts = _DASH.split(words[index])
    if len(parts) == 2 and all(parts):
        return _glued(parts, words, index)
    first, has_unit, after = _moment(words, index)
    if first is None:
        return None, index + 1
    if after < len(words) and words[after] in _JOINS:
        second, has_second_unit, end = _moment(words, after + 1)
        if second is not None and (has_unit or has_second_unit or words[after] == "to"):
            return (first, second), end
    return ((first, first) if has_unit else None), after


def _glued(parts: Sequence[str], words: Sequence[str], index: int) -> tuple[TimeSpan | None, int]:
    """Return the period written as `12-15s` or `12-15 s` at `index`, and the index of the word after it."""
    first, has_unit, _ = _moment(parts, 0)
    second, has_second_unit, _ = _moment(parts, 1)
    after = index + 1
    if after < len(words) and words[after] in _UNITS:
        has_unit, after = True, after + 1
    if first is None or second is None or not (has_unit or has_second_unit):
        return None, index + 1
    return (first, second), after


def _moment(words: Sequence[str], index: int) -> tuple[float | None, bool, int]:
    """Return (seconds or None, whether a unit or a colon marks it as a time, index of the word after it)."""
    if index >= len(words):
        return None, False, index
    word = words[index]
    clock = _CLOCK.fullmatch(word)
    if clock is not None:
        hours, minutes, seconds = clock.groups()
        return 3600 * float(hours or 0) + 60 * float(minutes) + float(seconds), True, index + 1
    plain = _SECONDS.fullmatch(word)
    if plain is None:
        return None, False, index + 1
    if plain.group(2) is None and index + 1 < len(words) and words[index + 1] in _UNITS:
        return float(plain.group(1)), True, index + 2
    return float(plain.group(1)), plain.group(2) is not None, index + 1
