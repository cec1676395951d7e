"""Times and periods as data sets write them: numbers, texts of numbers, clock times, objects of a start and an end."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

from rlsys.types import Json

_TIME = r"((?:\d{1,3}:)?\d{1,3}:\d{1,2}(?:\.\d{1,9}|,\d{3}(?![\d:]))?|\d{1,12}(?:\.\d{0,30})?)"
"""Seconds, or a clock time, in which subtitles (.srt) have a comma before milliseconds."""
_UNIT = r"(?:\s?(?:s|secs?|seconds?)\b\.?)?"
_SECONDS = re.compile(rf"([-+]?){_TIME}{_UNIT}")
_PERIOD = re.compile(
    rf"(?!\d+,\d+\Z)[\[(<]?\s*{_TIME}{_UNIT}(?:\s*(?:,|;|-|–|—|~|\bto\b|\band\b)\s*|\s+){_TIME}{_UNIT}\s*[\])>]?"
)
"""A period; not "1,5", which may be one number."""
_SIDES = (("start", "end"), ("start_time", "end_time"), ("begin", "end"), ("start_s", "end_s"), ("from", "to"))
"""Keys of an object that is one period."""


def plain_seconds(value: Json) -> Json:
    """Return the seconds that a text such as "12.5", "12.5 s" or "1:02.5" means; any other value as it is."""
    match = _SECONDS.fullmatch(value.strip().lower()) if isinstance(value, str) else None
    if match is None:
        return value
    return -_seconds(match.group(2)) if match.group(1) == "-" else _seconds(match.group(2))


def plain_rate(value: Json) -> Json:
    """Return the rate that a text such as "30000/1001" means, as ffprobe writes it; any other value as it is."""
    try:
        return float(Fraction(value.strip())) if isinstance(value, str) else value
    except (ValueError, ArithmeticError):
        return value


def plain_times(value: Json) -> Json:
    """Return a period or several as lists of numbers, where they are written so; what is no time stays as it is.

    Read are texts such as "1.5 - 2", "(1.5, 2.0)", "[1.5 2.]" and "0:01 to 0:02", objects of a start and an end, and
    lists of these or of texts of numbers.
    """
    if isinstance(value, str):
        match = _PERIOD.fullmatch(value.strip().lower())
        return [_seconds(match.group(1)), _seconds(match.group(2))] if match else value
    if isinstance(value, Mapping):
        sides = next((names for names in _SIDES if set(names) <= set(value)), None)
        if sides is not None:
            return [plain_seconds(value[name]) for name in sides]
        return {name: plain_times(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain_times(plain_seconds(one)) for one in value]
    return value


def one_period(value: Json) -> Json:
    """Return `plain_times` of a value that should be one period, without a list around it."""
    found = plain_times(value)
    return found[0] if isinstance(found, list) and len(found) == 1 and isinstance(found[0], list) else found


def listed_periods(value: Json) -> Json:
    """Return `plain_times` of a value that should be a list of periods; one period alone becomes a list of it."""
    found = plain_times(value)
    is_one = isinstance(found, list) and len(found) == 2 and not any(isinstance(one, list) for one in found)
    return [found] if is_one else found


def _seconds(text: str) -> float:
    seconds = 0.0
    for part in text.replace(",", ".").split(":"):
        seconds = 60 * seconds + float(part)
    return seconds
