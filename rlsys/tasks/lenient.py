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
    Expected,
    TimeSpans,
    as_box,
    read_boxes,
)
from rlsys.tasks.geometry import Box, TimeSpan

MAX_CHARS = 1 << 16
"""Length of a block above which it is not an answer."""
MAX_SHORT_CHARS = 2_000
"""The same for an answer that is one letter or one number."""

_MAX_MARKS = 30

_BOXED = re.compile(r"\\(?:boxed|text|mathrm)\s?\{([^{}]{0,200})\}")
_ESCAPED = re.compile(r"\\([\[\](){}])|\\(?:[,;:!]|(?:left|right)(?![a-z]))")
_FORMATTING = re.compile(r"```(?:json)?|[*_`$\"'“”‘’]|<\|(?:box|object_ref)_(?:start|end)\|>")
_NUM = LOOSE_DECIMAL

_UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_TOKEN = re.compile(
    r"(?P<clock>(?:[0-9]{1,3}:)?[0-9]{1,3}:[0-5]?[0-9](?:\.[0-9]{1,30}|,[0-9]{3}(?![0-9:]))?(?![0-9:]))"
    rf"|(?P<number>{_NUM})"
    r"|(?P<end>[,;]?\s{0,3}(?:and\s)?\s{0,3}(?:end(?:s|ing)?|finish(?:es|ing)?)(?:[_ ]?time)?\s{0,3}"
    r"(?:at(?![a-z])|[:=]|(?![a-z]))"
    r"|[,;]?\s{0,3}结束(?:时间)?\s{0,3}(?:[:=于在]|为))"
    r"|(?P<join>(?:开始)?[,;]?(?:到|至)"
    r"|(?:up\s)?\\?to(?![a-z])|and(?![a-z])|until(?![a-z])|till(?![a-z])|through(?:\sto)?(?![a-z])"
    r"|[-–—=]{1,3}>|--|\\(?:long)?rightarrow|[→⇒⟶]|[-–—−‐‒―~〜∼])"
    r"|(?P<unit>(?:hours?|hrs?|h|minutes?|mins?|milliseconds?|msecs?|ms|m|seconds?|secs?|s)(?![a-z])"
    r"|小时|分钟|分|毫秒|秒钟|秒)"
    r"|(?P<word>[a-z]+)"
    r"|(?P<space>\s+)"
    r"|(?P<other>.)",
    re.DOTALL,
)
_UNITS = {"小时": "h", "分钟": "m", "分": "m", "秒钟": "s", "秒": "s", "毫秒": "ms"}
_BRACKETS = {"[": "]", "(": ")", "{": "}", "<": ">", "【": "】"}
_FILLERS = frozenset(
    (
        *("t", "second", "time", "timestamp", "at", "about", "around", "approximately", "approx", "roughly"),
        *("~", "+", "=", "<", "≈", "第", "约", "the"),
    )
)
"""Tokens that may stand between the word that joins two times and the second of them."""
_MAX_FILLERS = 3
_NO_SECONDS = frozenset(("%", "frame", "帧", "percent", "per", "pct", "fps"))
"""Tokens next to a pair of numbers that are no times."""
_SKIPPED = frozenset((*"[](){}<>【】:=#,", "in", "number", "numbers", "index", "indices"))
"""Tokens that may stand between a pair of numbers and what says their unit."""
_STARTS = ("start", "begin", "from", "time", "onset")
"""How the names of the first time of a period begin."""
_LIST_MARKS = re.compile(r"^[ \t]{0,9}(?:[-*•]|[0-9]{1,2}[.)])[ \t]+", re.MULTILINE)
_DECIMAL_COMMA = re.compile(
    r"(?<![0-9:.,\[({<【])[0-9]{1,9},[0-9]{1,9}\s?(?:[a-z秒]{1,7}\s)?(?:to|and|until|till|[-–—−~到至→])"
)
"""A number with a comma before the word that joins two times: decimals or thousands, which one is not known."""
FEET = re.compile(r"[0-9]\s?['\"’”′″]\s?(?![0-9]{3}(?![0-9]))[0-9]")
"""Feet and inches or minutes and seconds: two numbers, which would be one without the marks."""
_Token = tuple[str, str]


Value = TypeVar("Value")


def plain_text(text: str, max_chars: int = MAX_CHARS) -> str | None:
    """Return `text` without Markdown, quotes, LaTeX and full-width characters; None if it is too long."""
    if len(text) > max_chars:
        return None
    normalized = _normalized(text)
    if len(normalized) > max_chars:  # one character of a ligature may stand for eighteen
        return None
    plain = _ESCAPED.sub(lambda match: match.group(1) or " ", _BOXED.sub(r"\1", normalized))
    return _FORMATTING.sub("", plain)


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


def only_value(values: Iterable[Value]) -> Value | None:
    """Return the value if all values are equal; None if they differ or there is none."""
    different = set(values)
    return different.pop() if len(different) == 1 else None


def period(text: str, _: Expected) -> TimeSpans | None:
    """Read the only period in `text`, in clock times or numbers with or without units; None for several or none."""
    spans, _num_unpaired = _periods_in(text)
    only = only_value(spans)
    return None if only is None else TimeSpans(spans=(only,))


def periods(text: str, _: Expected) -> TimeSpans | None:
    """Read all periods in `text`; None when a number in it belongs to none. An empty list is an answer."""
    if (plain_text(text) or "").strip() in ("[]", "()"):
        return TimeSpans(spans=())
    spans, num_unpaired = _periods_in(text)
    return TimeSpans(spans=tuple(spans)) if spans and not num_unpaired else None


def _periods_in(text: str) -> tuple[list[TimeSpan], int]:
    """Return the periods in `text` from left to right, none overlapping, and the count of times outside of them."""
    found = plain_text(text)
    if found is None or FEET.search(text) or _DECIMAL_COMMA.search(lowered := found.lower()):
        return [], 0
    tokens = _tokens(_LIST_MARKS.sub("", lowered))
    counts_frames = ("word", "frames") in tokens
    spans: list[TimeSpan] = []
    num_unpaired = index = 0
    while index < len(tokens):
        first = _moment(tokens, index)
        if first is None:
            index += 1
            continue
        start, (first_s, has_unit, after) = index, first
        second = _second_moment(tokens, index, after)
        if second is None:
            num_unpaired += 1
            index = after
            continue
        second_s, second_unit_s, index = second
        is_other = not (has_unit or second_unit_s) and (counts_frames or _counts_other(tokens, start, index))
        if is_other or _goes_on(tokens, index):
            return [], num_unpaired + 1
        scale = 1.0 if has_unit or second_unit_s is None else second_unit_s
        if max(first_s * scale, second_s) < MAX_NUMBER:
            spans.append((first_s * scale, second_s))
    is_choice = len(spans) > 1 and ("word", "or") in tokens
    return spans, num_unpaired + is_choice


def _goes_on(tokens: Sequence[_Token], index: int) -> bool:
    """Return whether a third time is joined to the two before `index`: a date, or three moments of which two count."""
    is_joined = index + 1 < len(tokens) and tokens[index][0] in ("join", "end") and tokens[index][1] != "and"
    return is_joined and tokens[index + 1][1][0].isdigit()


def _counts_other(tokens: Sequence[_Token], start: int, index: int) -> bool:
    """Return whether the pair of numbers from `start` to before `index`, without units, are no seconds."""
    before = next((token for token in reversed(tokens[max(start - 4, 0) : start]) if token[1] not in _SKIPPED), None)
    after = next((token for token in tokens[index : index + 4] if token[1] not in _SKIPPED), None)
    has_other_unit = after is not None and after[0] == "unit" and not after[1].startswith(("s", "秒"))
    return has_other_unit or any(token is not None and token[1] in _NO_SECONDS for token in (before, after))


def _tokens(text: str) -> list[_Token]:
    """Return the kind and text of each token except white space.

    A number in a word (`3rd`, `video1`), in a fraction or a malformed clock time (`1/2`, `1:99`), and one that a colon
    follows (`period 1:`) is a word.
    """
    found: list[_Token] = []
    is_glued, glue = False, ""  # whether a word ends where this token begins, and the signs that it goes on behind
    matches = list(_TOKEN.finditer(text))
    for at, match in enumerate(matches):
        kind, token = match.lastgroup or "other", match.group()
        after = matches[at + 1] if at + 1 < len(matches) else None
        if kind == "number" and (
            is_glued or (after and (after.lastgroup in ("word", "number") or after.group() in (":", "/")))
        ):
            kind = "word"
        if kind == "word":
            glue = "./:" if match.lastgroup == "number" else "."
        is_glued = kind == "word" or (kind == "other" and token in glue and is_glued)
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
        for part in token.replace(",", ".").split(":"):
            seconds = 60 * seconds + float(part)
        is_named = _unit(tokens, index + 1) in ("m", "s")  # "1:05 min"
        return seconds, True, index + 1 + is_named
    if kind != "number" or (index > 0 and _is_minus(tokens, index - 1)):
        return None
    unit, after = _unit(tokens, index + 1), index + 1
    if unit is None:
        return float(token), False, after
    seconds, after = float(token) * _UNIT_S[unit], after + 1
    while unit in ("h", "m") and after < len(tokens) and tokens[after][0] == "number":  # "1 minute 5", "1 h 1 min 5 s"
        smaller = _unit(tokens, after + 1)
        if smaller is None:
            return seconds + float(tokens[after][1]) * _UNIT_S[unit] / 60, True, after + 1
        if _UNIT_S[smaller] >= _UNIT_S[unit]:
            break
        seconds, unit, after = seconds + float(tokens[after][1]) * _UNIT_S[smaller], smaller, after + 2
    return seconds, True, after


def _unit(tokens: Sequence[_Token], index: int) -> str | None:
    if index >= len(tokens) or tokens[index][0] != "unit":
        return None
    token = tokens[index][1]
    return _UNITS.get(token) or ("ms" if token.startswith(("ms", "milli")) else token[0])


def _is_minus(tokens: Sequence[_Token], index: int) -> bool:
    """Return whether the sign at `index` is ±, or a minus: no time precedes it that it could join to the next."""
    if tokens[index][1] == "±":
        return True
    if tokens[index] not in (("join", "-"), ("join", "−")):
        return False
    return index == 0 or tokens[index - 1][0] not in ("number", "clock", "unit")


def _second_moment(tokens: Sequence[_Token], start: int, index: int) -> tuple[float, float | None, int] | None:
    """Return (seconds, seconds of its unit or None, index after it) of the time joined to the one before `index`."""
    opening = tokens[start - 1][1] if start else ""
    closing = _BRACKETS.get(opening)
    is_closed = False
    if index + 1 < len(tokens) and tokens[index + 1][0] in ("join", "end"):  # "[12.5] to [17.8]", "12.5 sec. to"
        is_closed = tokens[index][1] == closing
        index += is_closed or tokens[index] == ("other", ".")
    if index >= len(tokens):
        return None
    after = index + 1
    is_joined = tokens[index][0] == "join" or (tokens[index][0] == "end" and _may_be_start(tokens, start))
    # [a, b] and (a, b) are periods; so is "a, b" if the text holds nothing else
    if not is_joined and tokens[index][1] in (",", ";"):
        second = _moment(tokens, after)
        if second is None:
            return None
        is_joined = second[2] == len(tokens) and start == 0
        is_joined |= second[2] < len(tokens) and tokens[second[2]][1] == closing
    if not is_joined:
        return None
    if is_closed:
        if after == len(tokens) or tokens[after][1] != opening:
            return None
        after += 1
    for _ in range(_MAX_FILLERS):
        after += after < len(tokens) and tokens[after][1] in _FILLERS
    second = _moment(tokens, after)
    if second is None:
        return None
    unit = _unit(tokens, after + 1) if tokens[after][0] == "number" else None
    return second[0], _UNIT_S[unit] if unit else None, second[2]


def _may_be_start(tokens: Sequence[_Token], index: int) -> bool:
    """Return whether the number at `index` has no name (`name: 5`) but that of a start."""
    is_named = index >= 2 and tokens[index - 1][1] in (":", "=") and tokens[index - 2][0] == "word"
    return not is_named or tokens[index - 2][1].startswith(_STARTS)


_PERCENT = re.compile(rf"({_NUM})\s?%")
_FOUR = rf"\s*({_NUM})\s*[,;]\s*({_NUM})\s*[,;]\s*({_NUM})\s*[,;]\s*({_NUM})\s*"
_CORNER = rf"[\[(]\s*({_NUM})\s*,\s*({_NUM})\s*[\])]"
_LOW, _HIGH = "(?:min|[01])", "(?:max|[12])"
_SIDES = (f"(?:x{_LOW}|left)", f"(?:y{_LOW}|top)", f"(?:x{_HIGH}|right)", f"(?:y{_HIGH}|bottom)")
_NAMED = r"\s*,\s*".join(rf"{side}\s*[:=]\s*({_NUM})" for side in _SIDES)
_CORNERS = re.compile(
    rf"[\[({{<【]{_FOUR}(?:,\s*)?[\])}}>】]"
    rf"|{_CORNER}\s*(?:(?:,|to|and|-)\s*)?(?:bottom[- ]?right\s?:?\s?)?{_CORNER}"
    rf"|{_NAMED}"
)
_BARE_BOX = re.compile(_FOUR)
_OTHER_BOX = re.compile(
    rf"box_?2d|(?<![a-z])c?xywh|cxcy|cent(?:er|re).{{0,40}}size|[\[(]\s?y_?[a-z0-9]{{0,3}}\s?,|0\s?[-–]\s?1000"
    rf"|(?:{_CORNER}\s*[,;]?\s*){{3}}"
)
"""A text with numbers of another order or meaning (Gemini's `box_2d` begins with y), or with three points."""


def box(text: str, expected: Expected) -> Boxes | None:
    """Read the only box in `text`, as a list, a pair of corners or a JSON object; None for several or none.

    If the truth is in pixels, a box in fractions is scaled to the frame.
    """
    only = only_value(_boxes_in(text))
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
    plain = plain_text(text)
    if plain is None or _OTHER_BOX.search(plain.lower().replace("bbox", "")):
        return []
    plain = _PERCENT.sub(lambda match: f"{float(match.group(1)) / 100:.9f}", plain.lower())
    bare = _BARE_BOX.fullmatch(plain)
    found = [bare] if bare is not None else _CORNERS.finditer(plain)
    return [as_box(float(number) for number in match.groups() if number is not None) for match in found]
