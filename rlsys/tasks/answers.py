"""Parse the text of a response into blocks, and the content of a block into an answer.

Every reader accepts any string and returns an answer or None, in time linear in the string's length. Responses are
untrusted, so there is no eval, no float() of unchecked text, and no regular expression that backtracks without bound.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rlsys.tasks.geometry import Box, TimeSpan


@dataclass(frozen=True, kw_only=True)
class TimeSpans:
    """Time periods in seconds, in the order written. An empty or reversed one is a wrong answer, not an error."""

    spans: tuple[TimeSpan, ...]


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """Boxes in frame order, in the unit that the task requests. An empty or reversed one is a wrong answer."""

    boxes: tuple[Box, ...]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The choice of one option by its letter, A to Z."""

    letter: str


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """The name of a class.

    text: the name as it is compared.  written: for a truth, the annotation in lower case; None for a response.
    """

    text: str
    written: str | None = field(default=None, compare=False)


@dataclass(frozen=True, kw_only=True)
class Number:
    """A finite number without its unit."""

    value: float


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A caption, never empty. events: the events that it describes, if they are annotated."""

    text: str
    events: tuple[str, ...] | None = None


Answer = TimeSpans | Boxes | Choice | Phrase | Number | Caption


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The information about a row that a reader of its responses may use.

    options: (letter, words) of each option, () if unknown.  letter: the true option's, "" without options.
    num_boxes: number of boxes in the truth.  frame: (width, height) in pixels if the truth is in pixels, else None.
    """

    options: tuple[tuple[str, str], ...] = ()
    letter: str = ""
    num_boxes: int = 0
    frame: tuple[float, float] | None = None


UNKNOWN = Expected()


_TAG = re.compile(r"</?(?:think|answer|glue|box)>")
_WORD = re.compile(r"[^\s()\[\]{}<>\"'`*,;=]+")
DECIMAL = r"[0-9]{1,9}(?:\.[0-9]{0,30})?"
"""A plain decimal. The number of its digits is bounded, so that no text makes it slow or its value infinite."""
LOOSE_DECIMAL = rf"(?:{DECIMAL}|\.[0-9]{{1,30}})"
"""A plain decimal that may begin with its point."""
MAX_NUMBER = 1e9
"""Bound on the size of numbers in answers and truths: `DECIMAL` has nine digits before the point."""
_DECIMAL = re.compile(DECIMAL)


def _row_of(width: int) -> re.Pattern[str]:
    """Return the pattern of `[n, …]` or `(n, …)` with `width` numbers, followed by a comma or the end of the text.

    No two `\s*` are adjacent, which keeps matching linear.
    """
    numbers = r"\s*,\s*".join([f"({DECIMAL})"] * width)
    return re.compile(rf"\s*[\[(]\s*{numbers}\s*[\])]\s*(?:,\s*|\Z)")


_ROW = {2: _row_of(2), 4: _row_of(4)}
_NUMBER = re.compile(rf"([+-]?{DECIMAL})\s?(?:%|[A-Za-z/°²³]{{0,20}})\.?")
MAX_PHRASE_CHARS = 200
_LETTER = re.compile(r"\(?([A-Za-z])(?:\)?[.:]?$|\)[.:]?\s|[.:]\s)")


def whole_layout(text: str, blocks: Sequence[str]) -> dict[str, str] | None:
    """Return the content of each block if `text` consists of exactly these blocks, in order; else None.

    White space may surround the blocks. Any other tag, text outside the blocks, or a block inside another gives None.
    Source: VideoChat-R1, eq. 3, whose code demands a full match but allows further tags inside a block. They are
    rejected here, because readers would disagree on which of two answers counts.
    """
    tags = list(_TAG.finditer(text))
    if [tag.group() for tag in tags] != [f"<{slash}{name}>" for name in blocks for slash in ("", "/")]:
        return None
    outside = [0, *(tag.end() for tag in tags[1::2])]
    if any(text[end : tag.start()].strip() for end, tag in zip(outside, tags[::2], strict=False)):
        return None
    if text[outside[-1] :].strip():
        return None
    pairs = zip(blocks, tags[::2], tags[1::2], strict=True)
    return {name: text[opening.end() : closing.start()] for name, opening, closing in pairs}


def last_block(text: str, name: str) -> str | None:
    """Return the content of the last `<name>…</name>` in `text`; None if there is no closed one.

    A block starts at the last opening tag before a closing tag, and ends at the first closing tag after it.
    """
    opening, closing = f"<{name}>", f"</{name}>"
    start = text.rfind(opening, 0, max(text.rfind(closing), 0))
    if start < 0:
        return None
    start += len(opening)
    return text[start : text.find(closing, start)]


def first_block(text: str, name: str) -> str | None:
    """Return the content from the first `<name>` to the next `</name>`; None if there is no such pair."""
    opening, closing = f"<{name}>", f"</{name}>"
    start = text.find(opening)
    end = text.find(closing, start + len(opening)) if start >= 0 else -1
    return text[start + len(opening) : end] if end >= 0 else None


def read_period(text: str) -> TimeSpans | None:
    """Return the last `a to b` or `a and b` in `text`, in seconds, as one span; None if there is none.

    Numbers are plain decimals with ASCII digits: no sign, exponent or clock time. Only the second one may have a unit.
    The period in `a to b and c` is a to b. A period that ends before it starts is an answer with IoU 0, not None.
    Source: VideoChat-R1 §3.3, temporal grounding.
    """
    words = _WORD.findall(text)
    for index in range(len(words) - 2, 0, -1):
        pair = _pair(words, index)
        if pair is not None:
            before = _pair(words, index - 2) if words[index].lower() == "and" and index > 2 else None
            return TimeSpans(spans=(before or pair,))
    return None


def _pair(words: Sequence[str], index: int) -> TimeSpan | None:
    """Return the period whose "to" or "and" is the word at `index`; None if there is none."""
    if words[index].lower() not in ("to", "and"):
        return None
    start, end = _seconds(words[index - 1]), _seconds(_without_unit(words[index + 1]))
    return None if start is None or end is None else (start, end)


def _seconds(word: str) -> float | None:
    word = word.rstrip(".")
    return float(word) if _DECIMAL.fullmatch(word) else None


def _without_unit(word: str) -> str:
    word = word.rstrip(".!?:").lower()
    for unit in ("seconds", "secs", "sec", "s"):
        if word.endswith(unit):
            return word[: -len(unit)]
    return word


def read_periods(text: str) -> TimeSpans | None:
    """Return the list of periods in `text`: `[(s, e), …]`, `[[s, e], …]` or a single pair.

    Returns None if a member is not a pair of plain decimals or the list is empty. Words around the list are ignored.
    """
    rows = _rows(text, width=2)
    return None if rows is None else TimeSpans(spans=tuple((row[0], row[1]) for row in rows))


def read_boxes(text: str, count: int) -> Boxes | None:
    """Return the list of exactly `count` boxes `[[x0, y0, x1, y1], …]` in `text`.

    Returns None for another number of boxes, a box without four numbers, or a corner outside 0..1, because pixels are
    not the requested format. Words around the list are ignored.
    """
    rows = _rows(text, width=4)
    if rows is None or len(rows) != count or any(value > 1 for row in rows for value in row):
        return None
    return Boxes(boxes=tuple(map(as_box, rows)))


def read_box(text: str) -> Boxes | None:
    """Return the one box `[x0, y0, x1, y1]` in `text`, in any unit; None for several boxes or none.

    The truth decides whether its numbers are pixels or fractions. Words around the box are ignored.
    """
    rows = _rows(text, width=4)
    return None if rows is None or len(rows) != 1 else Boxes(boxes=(as_box(rows[0]),))


def as_box(numbers: Iterable[float]) -> Box:
    """Return four numbers as a box. Raises ValueError for another count."""
    x0, y0, x1, y1 = numbers
    return x0, y0, x1, y1


def read_choice(text: str) -> Choice | None:
    """Return the option letter that `text` consists of or begins with.

    It may be written as `C`, `(C)`, `C.`, `(C) unwrap it` or `C. unwrap it`.
    Returns None for a sentence that merely begins with a one-letter word ("A boy …").
    """
    match = _LETTER.match(text.strip())
    return None if match is None else Choice(letter=match.group(1).upper())


def read_phrase(text: str) -> Phrase | None:
    """Return `text` in lower case, without repeated white space, quotes, brackets and punctuation around it.

    Returns None if nothing is left, or more than 200 characters: that is a sentence around the answer, not an answer.
    """
    if len(text) > 2 * MAX_PHRASE_CHARS:
        return None
    phrase = " ".join(text.casefold().split()).strip(" \"'`*“”‘’()[].!,;:")
    return Phrase(text=phrase) if 0 < len(phrase) <= MAX_PHRASE_CHARS else None


def read_number(text: str) -> Number | None:
    """Return the number that `text` consists of, with at most a sign and a unit: `3`, `-2.5`, `12 %`, `3.5 m.`.

    Returns None for words before it, an exponent, a thousands separator, or ten digits before the point.
    """
    match = _NUMBER.fullmatch(text.strip())
    return None if match is None else Number(value=float(match.group(1)))


def read_caption(text: str) -> Caption | None:
    """Return all of `text` as a caption; None if it is only white space."""
    stripped = text.strip()
    return Caption(text=stripped) if stripped else None


def _rows(text: str, width: int) -> list[tuple[float, ...]] | None:
    """Return the rows of `width` numbers in the bracketed list, or single row, in `text`; None if there is none."""
    start = min((at for at in (text.find("["), text.find("(")) if at >= 0), default=-1)
    end = max(text.rfind("]"), text.rfind(")"))
    if not 0 <= start < end:
        return None
    row = _ROW[width]
    single = row.fullmatch(text, start, end + 1)
    if single is not None:
        return [_numbers(single)]
    rows = successive(row, text, start + 1, end)
    return [_numbers(match) for match in rows] if rows else None


def successive(
    pattern: re.Pattern[str], text: str, start: int = 0, end: int | None = None
) -> list[re.Match[str]] | None:
    """Return the matches of `pattern` that fill `text[start:end]` one after another; None if something else is in it.

    The pattern must not match the empty string.
    """
    matches: list[re.Match[str]] = []
    end = len(text) if end is None else end
    while start < end:
        match = pattern.match(text, start, end)
        if match is None:
            return None
        matches.append(match)
        start = match.end()
    return matches


def _numbers(match: re.Match[str]) -> tuple[float, ...]:
    return tuple(float(number) for number in match.groups())
