"""Lenient readers, which accept the spellings of an answer that evaluation suites accept unless they are ambiguous.

Text is normalised first (full-width characters, Markdown, quotes, `\\boxed{}`), then read in one pass. If a text
holds two different answers, the readers return None instead of guessing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TypeVar

from rlsys.tasks.answers import (
    LOOSE_DECIMAL,
    MAX_NUMBER,
    Boxes,
    Choice,
    Expected,
    Number,
    TimeSpans,
    as_box,
    read_boxes,
    read_periods,
)
from rlsys.tasks.geometry import Box, TimeSpan

MAX_CHARS = 1 << 16
"""Length of a block above which it is not an answer."""
_MAX_SHORT_CHARS = 2_000
"""The same for an answer that is one letter or one number."""

_MAX_MARKS = 30

_BOXED = re.compile(r"\\(?:boxed|text|mathrm)\s?\{([^{}]{0,200})\}")
_FORMATTING = re.compile(r"[*_`$\"'“”‘’]|```(?:json)?|<\|(?:box|object_ref)_(?:start|end)\|>")
_NUM = LOOSE_DECIMAL

_UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0}
_TOKEN = re.compile(
    r"(?P<clock>(?:[0-9]{1,3}:)?[0-9]{1,3}:[0-5]?[0-9](?:\.[0-9]{1,17})?(?![0-9:]))"
    rf"|(?P<number>{_NUM})"
    r"|(?P<join>[,;]?\s{0,3}(?:and\s)?\s{0,3}end(?:s|ing)?(?:[_ ]?time)?\s{0,3}(?:at|[:=])"
    r"|to(?![a-z])|and(?![a-z])|until(?![a-z])|till(?![a-z])|through(?![a-z])|[-–—~〜]|到|至)"
    r"|(?P<unit>(?:hours?|hrs?|h|minutes?|mins?|m|seconds?|secs?|s)(?![a-z])|小时|分钟|分|秒钟|秒)"
    r"|(?P<word>[a-z]+)"
    r"|(?P<space>\s+)"
    r"|(?P<other>.)",
    re.DOTALL,
)
_UNITS = {"小时": "h", "分钟": "m", "分": "m", "秒钟": "s", "秒": "s"}
_Token = tuple[str, str]


Value = TypeVar("Value")


def _plain(text: str, max_chars: int = MAX_CHARS) -> str | None:
    """Return `text` without Markdown, quotes, LaTeX and full-width characters; None if it is too long."""
    if len(text) > max_chars:
        return None
    return _FORMATTING.sub("", _BOXED.sub(r"\1", _normalized(text)))


def _normalized(text: str) -> str:
    """Return `text` in NFKC, without the combining marks after the 30th in a row.

    Normalisation sorts such a run in time that is quadratic in its length; no language has longer ones (UAX #15, D4).
    """
    if text.isascii():
        return text
    kept: list[str] = []
    num_marks = 0
    for char in text:
        is_mark = char >= "\u0300" and unicodedata.combining(unicodedata.normalize("NFKD", char)[0]) > 0
        num_marks = num_marks + 1 if is_mark else 0
        if num_marks <= _MAX_MARKS:
            kept.append(char)
    return unicodedata.normalize("NFKC", "".join(kept))


def _only(values: Iterable[Value]) -> Value | None:
    """Return the value if all values are equal; None if they differ or there is none."""
    different = set(values)
    return different.pop() if len(different) == 1 else None


def period(text: str, _: Expected) -> TimeSpans | None:
    """Read the only period in `text`, in clock times or numbers with or without units; None for several or none."""
    spans, _num_unpaired = _periods_in(text)
    only = _only(spans)
    return None if only is None else TimeSpans(spans=(only,))


def periods(text: str, _: Expected) -> TimeSpans | None:
    """Read all periods in `text`; None when a number in it belongs to none. An empty list is an answer."""
    if text.strip() in ("[]", "()"):
        return TimeSpans(spans=())
    listed = read_periods(text)
    if listed is not None:
        return listed
    spans, num_unpaired = _periods_in(text)
    return TimeSpans(spans=tuple(spans)) if spans and not num_unpaired else None


def _periods_in(text: str) -> tuple[list[TimeSpan], int]:
    """Return the periods in `text` from left to right, none overlapping, and the count of times outside of them."""
    plain = _plain(text)
    if plain is None:
        return [], 0
    tokens = _tokens(plain.lower())
    spans: list[TimeSpan] = []
    num_unpaired = index = 0
    while index < len(tokens):
        first = _moment(tokens, index)
        if first is None:
            index += 1
            continue
        first_s, has_unit, after = first
        second = _second_moment(tokens, index, after)
        if second is None:
            num_unpaired += 1
            index = after
            continue
        second_s, second_unit_s, index = second
        scale = 1.0 if has_unit or second_unit_s is None else second_unit_s
        if max(first_s * scale, second_s) < MAX_NUMBER:
            spans.append((first_s * scale, second_s))
    return spans, num_unpaired


def _tokens(text: str) -> list[_Token]:
    """Return the kind and text of each token except white space; a number in a word (`3rd`, `video1`) is a word."""
    found: list[_Token] = []
    is_glued = False  # whether a word ends where this token begins
    matches = list(_TOKEN.finditer(text))
    for at, match in enumerate(matches):
        kind, token = match.lastgroup or "other", match.group()
        follower = matches[at + 1].lastgroup if at + 1 < len(matches) else None
        if kind == "number" and (is_glued or follower == "word"):
            kind = "word"
        is_glued = kind == "word" or (kind == "other" and token == "." and is_glued)
        if kind != "space":
            found.append((kind, token))
    return found


def _moment(tokens: Sequence[_Token], index: int) -> tuple[float, bool, int] | None:
    """Return (seconds, whether it has a unit, index after it) of the time at `index`; None if there is none."""
    if index >= len(tokens):
        return None
    kind, token = tokens[index]
    if kind == "clock":
        seconds = 0.0
        for part in token.split(":"):
            seconds = 60 * seconds + float(part)
        after = index + 1
        return seconds, True, after + (after < len(tokens) and tokens[after] == ("unit", "s"))
    if kind != "number" or (index > 0 and _is_minus(tokens, index - 1)):
        return None
    value, unit, after = float(token), _unit(tokens, index + 1), index + 1
    if unit is None:
        return value, False, after
    seconds, after = value * _UNIT_S[unit], after + 1
    if unit != "s" and after < len(tokens) and tokens[after][0] == "number":  # "1 minute 5", "1 min 5 s"
        smaller = _unit(tokens, after + 1)
        if smaller is None or _UNIT_S[smaller] < _UNIT_S[unit]:
            scale = _UNIT_S[smaller] if smaller else _UNIT_S[unit] / 60
            return seconds + float(tokens[after][1]) * scale, True, after + 1 + (smaller is not None)
    return seconds, True, after


def _unit(tokens: Sequence[_Token], index: int) -> str | None:
    if index >= len(tokens) or tokens[index][0] != "unit":
        return None
    return _UNITS.get(tokens[index][1], tokens[index][1][0])


def _is_minus(tokens: Sequence[_Token], index: int) -> bool:
    """Return whether the dash at `index` is a minus sign: no time precedes it that it could join to the next."""
    if tokens[index] != ("join", "-"):
        return False
    return index == 0 or tokens[index - 1][0] not in ("number", "clock", "unit")


def _second_moment(tokens: Sequence[_Token], start: int, index: int) -> tuple[float, float | None, int] | None:
    """Return (seconds, seconds of its unit or None, index after it) of the time joined to the one before `index`."""
    if index >= len(tokens):
        return None
    after = index + 1
    is_joined = tokens[index][0] == "join"
    # [a, b] and (a, b) are periods; so is "a, b" if the text holds nothing else
    if not is_joined and tokens[index][1] == ",":
        opening = tokens[start - 1][1] if start else ""
        second = _moment(tokens, after)
        if second is None:
            return None
        closing = tokens[second[2]][1] if second[2] < len(tokens) else ""
        is_joined = (opening, closing) in (("[", "]"), ("(", ")")) or (start == 0 and second[2] == len(tokens))
    if not is_joined:
        return None
    if after < len(tokens) and tokens[after] == ("other", "+"):
        after += 1
    second = _moment(tokens, after)
    if second is None:
        return None
    unit = _unit(tokens, after + 1)
    return second[0], _UNIT_S[unit] if unit else None, second[2]


_PERCENT = re.compile(rf"({_NUM})\s?%")
_FOUR = rf"\s*({_NUM})\s*,\s*({_NUM})\s*,\s*({_NUM})\s*,\s*({_NUM})\s*"
_CORNERS = re.compile(
    rf"[\[(]{_FOUR}[\])]"
    rf"|[\[(]\s*({_NUM})\s*,\s*({_NUM})\s*[\])]\s*,?\s*[\[(]\s*({_NUM})\s*,\s*({_NUM})\s*[\])]"
    rf"|\{{\s*x[01]\s*:\s*({_NUM})\s*,\s*y[01]\s*:\s*({_NUM})\s*,\s*x[12]\s*:\s*({_NUM})\s*,\s*y[12]\s*:\s*({_NUM})\s*\}}"
)


def box(text: str, expected: Expected) -> Boxes | None:
    """Read the only box in `text`, as a list, a pair of corners or a JSON object; None for several or none.

    If the truth is in pixels, a box in fractions is scaled to the frame.
    """
    only = _only(_boxes_in(text))
    if only is None:
        return None
    if expected.frame is not None and max(only) <= 1:
        width, height = expected.frame
        only = (only[0] * width, only[1] * height, only[2] * width, only[3] * height)
    return Boxes(boxes=(only,))


def boxes(text: str, expected: Expected) -> Boxes | None:
    """Read as many boxes as the truth has, in fractions of the frame and in any list notation; else None."""
    listed = read_boxes(text, expected.num_boxes)
    if listed is not None:
        return listed
    found = _boxes_in(text)
    is_right = len(found) == expected.num_boxes and all(corner <= 1 for row in found for corner in row)
    return Boxes(boxes=tuple(found)) if is_right else None


def _boxes_in(text: str) -> list[Box]:
    plain = _plain(text)
    if plain is None:
        return []
    plain = _PERCENT.sub(lambda match: f"{float(match.group(1)) / 100:.9f}", plain.lower())
    return [
        as_box(float(number) for number in match.groups() if number is not None) for match in _CORNERS.finditer(plain)
    ]


_WHOLE_LETTER = re.compile(r"[^A-Za-z0-9]*([A-Za-z])[^A-Za-z0-9]*")
_LEADING_LETTER = re.compile(
    r"[(\[{]?([A-Za-z])(?:[)\]}]\s*[.:。,、-]?|\s*[.:。、]|\s+-|\s+is\b)\s*(?![A-Za-z]\.)(\S.*)", re.DOTALL
)
_CUE = re.compile(
    r"(?:answer|option|choice|choose|select|pick|is|答案|选项?|选择)(?:\s+(?:is|be|option))?"
    r"[\s:为是=]{0,4}[(\[{]?([A-Z])[)\]}]?(?![A-Za-z0-9'])",
    re.IGNORECASE,
)
_BRACKETED = re.compile(r"[(\[{]([A-Z])[)\]}]")
_LONE = re.compile(r"(?<![A-Za-z0-9.'])([A-Z])(?!\.?[A-Za-z0-9'])")
_ARTICLE = re.compile(r"\s+(?!or\b|and\b|vs\b|is\b)[a-z]")


def choice(text: str, expected: Expected) -> Choice | None:
    """Read the option that `text` names by its letter, its own words, or both; None if it could mean two."""
    plain = _plain(text, _MAX_SHORT_CHARS)
    if plain is None:
        return None
    plain = plain.strip()
    found = (_letter_in(plain, expected.options), _with_words(plain, expected.options))
    letter = _only(letter for letter in found if letter is not None)
    known = {option for option, _ in expected.options}
    return None if letter is None or (known and letter not in known) else Choice(letter=letter)


def _letter_in(text: str, options: Sequence[tuple[str, str]]) -> str | None:
    whole = _WHOLE_LETTER.fullmatch(text)
    if whole is not None:
        return whole.group(1).upper()
    candidates = _candidates(text)
    leading = _LEADING_LETTER.fullmatch(text)
    if leading is not None and candidates <= {leading.group(1).upper()}:
        letter = leading.group(1).upper()
        others = _with_words(leading.group(2), options)
        return None if others not in (None, letter) else letter
    return _only(candidates) if _is_named(text) else None


def _candidates(text: str) -> set[str]:
    """Return the capital letters that are words of their own, except "A" and "I" as words of a sentence."""
    return {
        match.group(1)
        for match in _LONE.finditer(text)
        if not (match.group(1) in "AI" and _ARTICLE.match(text, match.end()))
    }


def _is_named(text: str) -> bool:
    """Return whether the text presents its letter as an answer, and does not merely use it ("vitamin C")."""
    return any(pattern.search(text) for pattern in (_CUE, _BRACKETED)) or len(set(text.split())) == 1


def _with_words(text: str, options: Sequence[tuple[str, str]]) -> str | None:
    """Return the letter of the only option whose words `text` consists of; None if there is none."""
    wanted = _words(text)
    return _only(letter for letter, words in options if wanted and _words(words) == wanted)


def _words(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .!,;:。")


_FACTORS = {
    "k": 1e3,
    "thousand": 1e3,
    "m": 1e6,
    "million": 1e6,
    "b": 1e9,
    "bn": 1e9,
    "billion": 1e9,
    "千": 1e3,
    "万": 1e4,
}
_AMOUNT = re.compile(
    r"(?<![0-9a-z.,])([+-]?)([0-9]{1,3}(?:,[0-9]{3}){1,2}(?![0-9])(?:\.[0-9]{1,17})?|" + _NUM + r")"
    r"(?:(k|bn?)(?![a-z])|\s?(thousand|million|billion)(?![a-z])|(千|万))?(?![0-9a-z]*[0-9])",
)


def number(text: str, _: Expected) -> Number | None:
    """Read the only number in `text`, with words around it, thousands separators or a factor; None for several."""
    plain = _plain(text, _MAX_SHORT_CHARS)
    if plain is None:
        return None
    values: list[float] = []
    lowered = plain.lower()
    for match in _AMOUNT.finditer(lowered):
        sign, digits, *factors = match.groups()
        factor = next((_FACTORS[name] for name in factors if name), 1.0)
        values.append((-1.0 if sign == "-" else 1.0) * float(digits.replace(",", "")) * factor)
    # a digit that is left over is part of another notation, such as "1e3"
    is_whole = not any(char.isdigit() for char in _AMOUNT.sub("", lowered))
    only = _only(values)
    return Number(value=only) if only is not None and is_whole and abs(only) < MAX_NUMBER else None
