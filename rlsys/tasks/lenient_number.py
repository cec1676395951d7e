"""The lenient reader of numbers: the only one in a text, with its thousands separators and factors."""

from __future__ import annotations

import re

from rlsys.tasks.answers import LOOSE_DECIMAL, MAX_NUMBER, Expected, Number
from rlsys.tasks.lenient import FEET, MAX_SHORT_CHARS, only_value, plain_text

_FACTORS = {
    "k": 1e3,
    "thousand": 1e3,
    "m": 1e6,
    "million": 1e6,
    "b": 1e9,
    "bn": 1e9,
    "billion": 1e9,
    "dozen": 12.0,
    "hundred": 1e2,
    "百": 1e2,
    "千": 1e3,
    "万": 1e4,
    "亿": 1e8,
}
_AMOUNT = re.compile(
    r"(?<![0-9a-z.,])([+-]?)([1-9][0-9]{0,2}(?:,[0-9]{3}){1,2}(?![0-9])(?:\.[0-9]{1,30})?|" + LOOSE_DECIMAL + r")"
    r"(?:(k|bn?)(?![a-z])|\s?(dozen|hundred|thousand|million|billion)s?(?![a-z])|([百千万亿]))?"
    r"(?!(?:st|nd|rd|th)(?![a-z]))(?![0-9a-z]*[0-9])",
)
_SQUARES_AND_MINUS = str.maketrans({"²": None, "³": None, "−": "-", "–": "-"})
_OTHER_NUMBER = re.compile(
    r"[0-9]\s?[⁰¹²³⁴-⁹₀-₉]|[0-9]\s?(?:[MB]|\s[KMB]|(?i:mln|mil|lakhs?|crores?|trillions?))(?![A-Za-z])"
    r"|^\s*[-–−]\s+[0-9]|[<>≤≥≠]\s?[0-9]|[0-9]\s?\+(?!\s?[0-9])|(?i:\b(?:not|minus|negative|at\s+(?:least|most)"
    r"|(?:more|less|fewer|greater)\s+than|up\s+to|over|under)\s+[0-9]|[0-9]\s+or\s+(?:more|less|fewer)\b|and\s+a\s+half\b)",
    re.MULTILINE,
)
"""A text whose number is a bound or a power, has a sign or a factor that is not read, or is denied."""


def number(text: str, _: Expected) -> Number | None:
    """Read the only number in `text`, with words around it, thousands separators or a factor; None for several."""
    plain = plain_text(text.translate(_SQUARES_AND_MINUS).replace("{,}", ","), MAX_SHORT_CHARS)
    if plain is None or FEET.search(text) or _OTHER_NUMBER.search(text):
        return None
    values: list[float] = []
    lowered = plain.lower()
    for match in _AMOUNT.finditer(lowered):
        sign, digits, *factors = match.groups()
        factor = next((_FACTORS[name] for name in factors if name), 1.0)
        values.append((-1.0 if sign == "-" else 1.0) * float(digits.replace(",", "")) * factor)
    # a digit that is left over is part of another notation, such as "1e3"
    is_whole = not any(char.isdigit() for char in _AMOUNT.sub("", lowered))
    only = only_value(values)
    return Number(value=only) if only is not None and is_whole and abs(only) < MAX_NUMBER else None
