"""What a response says, read out of its text.

Every reader takes any string at all and returns a value or None, in time linear in the
string's length: a response is untrusted, so there is no eval, no float() of unchecked text
and no regular expression that can start over.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from rlsys.tasks.geometry import Box, TimeSpan


@dataclass(frozen=True, kw_only=True)
class TimeSpans:
    """Periods in seconds, in the order written; one may be empty or reversed (a wrong answer, not an error)."""

    spans: tuple[TimeSpan, ...]


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """Boxes in frame order, corners in the unit that the task asks for; one may be empty or reversed."""

    boxes: tuple[Box, ...]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The letter of an answer option, upper case A to Z."""

    letter: str


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """A class name. text: as it is compared.  written: of a truth, in lower case and otherwise as it is written."""

    text: str
    written: str | None = field(default=None, compare=False)


@dataclass(frozen=True, kw_only=True)
class Number:
    """A finite number without its unit."""

    value: float


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A description in free words, never empty. events: those it describes, where they are annotated."""

    text: str
    events: tuple[str, ...] | None = None


Answer = TimeSpans | Boxes | Choice | Phrase | Number | Caption


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a reader may know of the row that a response answers.

    options: (letter, words) of each option, () when unknown.  letter: of the true option, "" without one.
    num_boxes: boxes of the truth.  frame: (width, height) in pixels of a truth in pixels.
    """

    options: tuple[tuple[str, str], ...] = ()
    letter: str = ""
    num_boxes: int = 0
    frame: tuple[float, float] | None = None


UNKNOWN = Expected()


_TAG = re.compile(r"</?(?:think|answer|glue|box)>")
_WORD = re.compile(r"[^\s()\[\]{}<>\"'`*,;=]+")
_DECIMAL = re.compile(r"[0-9]{1,9}(?:\.[0-9]{0,17})?")  # bounded: no text makes it slow or its value infinite


def _row_of(width: int) -> re.Pattern[str]:
    """`[n, …]` or `(n, …)`, then a comma or the end. No two `\s*` are neighbours, which keeps it linear."""
    numbers = r"\s*,\s*".join([f"({_DECIMAL.pattern})"] * width)
    return re.compile(rf"\s*[\[(]\s*{numbers}\s*[\])]\s*(?:,\s*|\Z)")


_ROW = {2: _row_of(2), 4: _row_of(4)}
_NUMBER = re.compile(rf"([+-]?{_DECIMAL.pattern})\s?(?:%|[A-Za-z/°²³]{{0,20}})\.?")
MAX_PHRASE_CHARS = 200
_LETTER = re.compile(r"\(?([A-Za-z])(?:\)?[.:]?$|\)[.:]?\s|[.:]\s)")


def whole_layout(text: str, blocks: Sequence[str]) -> dict[str, str] | None:
    """Content of each block when `text` is exactly those blocks in order, with whitespace between and around.

    None for any other tag, order, text outside the blocks, or a block inside another.
    Source: VideoChat-R1, eq. 3, whose code demands a full match; theirs lets further tags hide
    inside a block, ours does not, since a second answer is then read differently by each reader.
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
    """Content of the last `<name>…</name>`, wherever it is; None when there is no closed one.

    After an opening tag the block ends at the first closing tag; of openings before it, the last counts.
    """
    opening, closing = f"<{name}>", f"</{name}>"
    start = text.rfind(opening, 0, max(text.rfind(closing), 0))
    if start < 0:
        return None
    start += len(opening)
    return text[start : text.find(closing, start)]


def first_block(text: str, name: str) -> str | None:
    """Content from the first `<name>` to the next `</name>`; None when there is no such pair."""
    opening, closing = f"<{name}>", f"</{name}>"
    start = text.find(opening)
    end = text.find(closing, start + len(opening)) if start >= 0 else -1
    return text[start + len(opening) : end] if end >= 0 else None


def read_period(text: str) -> TimeSpans | None:
    """The last `a to b` or `a and b` in `text`, in seconds, as one span.

    Numbers are plain decimals with ASCII digits: no sign, exponent or clock time. A unit may follow
    only the second one. In `a to b and c` the first two are the period. A period that ends before it starts is an
    answer (with IoU 0), not None. Source: VideoChat-R1 §3.3, temporal grounding.
    """
    words = _WORD.findall(text)
    for index in range(len(words) - 2, 0, -1):
        pair = _pair(words, index)
        if pair is not None:
            before = _pair(words, index - 2) if words[index].lower() == "and" and index > 2 else None
            return TimeSpans(spans=(before or pair,))
    return None


def _pair(words: Sequence[str], index: int) -> TimeSpan | None:
    """The period whose joining word is at `index`."""
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
    """The list of periods in `text`: `[(s, e), …]`, or `[[s, e], …]`, or one bare pair.

    None when a member is not a pair of plain decimals, or the list is empty. Words around the list are ignored.
    """
    rows = _rows(text, width=2)
    return None if rows is None else TimeSpans(spans=tuple((row[0], row[1]) for row in rows))


def read_boxes(text: str, count: int) -> Boxes | None:
    """The list of exactly `count` boxes `[[x0, y0, x1, y1], …]` in `text`.

    None for another number of boxes, a box without four numbers, or a corner outside 0..1:
    pixels are not the requested format. Words around the list are ignored.
    """
    rows = _rows(text, width=4)
    if rows is None or len(rows) != count or any(value > 1 for row in rows for value in row):
        return None
    return Boxes(boxes=tuple((row[0], row[1], row[2], row[3]) for row in rows))


def read_box(text: str) -> Boxes | None:
    """The one box `[x0, y0, x1, y1]` in `text`, in any unit; None for several boxes or none.

    The truth decides between pixels and fractions, not this function. Words around the box are ignored.
    """
    rows = _rows(text, width=4)
    return None if rows is None or len(rows) != 1 else Boxes(boxes=((rows[0][0], rows[0][1], rows[0][2], rows[0][3]),))


def read_choice(text: str) -> Choice | None:
    """The option letter that `text` consists of or begins with: `C`, `(C)`, `C.`, `(C) unwrap it`, `C. unwrap it`.

    None for a sentence that merely begins with a one-letter word ("A boy …").
    """
    match = _LETTER.match(text.strip())
    return None if match is None else Choice(letter=match.group(1).upper())


def read_phrase(text: str) -> Phrase | None:
    """`text` without case, repeated white space, quotes, brackets or a final full stop; None when nothing is left.

    None too for more than 200 characters: that is a sentence around the answer, not the answer.
    """
    if len(text) > 2 * MAX_PHRASE_CHARS:
        return None
    phrase = " ".join(text.casefold().split()).strip(" \"'`*“”‘’()[].!,;:")
    return Phrase(text=phrase) if 0 < len(phrase) <= MAX_PHRASE_CHARS else None


def read_number(text: str) -> Number | None:
    """The number that `text` consists of, with at most a sign and a unit: `3`, `-2.5`, `12 %`, `3.5 m.`.

    None for words before it, an exponent, a thousands separator, or ten digits before the point.
    """
    match = _NUMBER.fullmatch(text.strip())
    return None if match is None else Number(value=float(match.group(1)))


def read_caption(text: str) -> Caption | None:
    """All of `text`; None when it is white space only."""
    stripped = text.strip()
    return Caption(text=stripped) if stripped else None


def _rows(text: str, width: int) -> list[tuple[float, ...]] | None:
    """Rows of `width` numbers in the bracketed list (or single row) that `text` holds; None when it holds none."""
    start = min((at for at in (text.find("["), text.find("(")) if at >= 0), default=-1)
    end = max(text.rfind("]"), text.rfind(")"))
    if not 0 <= start < end:
        return None
    row = _ROW[width]
    single = row.fullmatch(text, start, end + 1)
    if single is not None:
        return [_numbers(single)]
    rows: list[tuple[float, ...]] = []
    position = start + 1
    while position < end:
        match = row.match(text, position, end)
        if match is None:
            return None
        rows.append(_numbers(match))
        position = match.end()
    return rows or None


def _numbers(match: re.Match[str]) -> tuple[float, ...]:
    return tuple(float(number) for number in match.groups())
