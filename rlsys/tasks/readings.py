"""Readers of each kind of answer, for the three settings of `answers.reading`: paper, lenient and strict.

`paper` follows the code that published the task, including its quirks. `lenient` accepts the spellings that evaluation
suites accept unless they are ambiguous. `strict` accepts only the format that the prompt requests, with words around a
period, a list or a box. docs/answers.md compares the three. Every reader accepts any text and runs in time linear in
its length.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from rlsys.config.answers import Reading
from rlsys.tasks import answers, lenient, lenient_choice, lenient_number
from rlsys.tasks.answers import Answer, Boxes, Choice, Expected, Number, Phrase, TimeSpans

Reader = Callable[[str, Expected], Answer | None]
"""(content of a block, information about the row) -> the answer, or None."""

_DECIMAL = r"[0-9]{1,9}(?:\.[0-9]{1,30})?"
_PAIR = re.compile(r"(?<!\d)(\d{1,9}(?:\.\d{0,30})?) (?:to|and) (\d{1,9}(?!\d)(?:\.\d{0,30})?)", re.IGNORECASE)
_TUPLE = re.compile(rf"\(({_DECIMAL}),\s*({_DECIMAL})\)(?:,\s*|\Z)")
_LEADING_ZERO = re.compile(r"0+[1-9][0-9]*")  # the cited code parses Python literals, which have none
_SIGNED = rf"[+-]?{answers.LOOSE_DECIMAL}(?:[eE][+-]?[0-9])?"
_BOX_ROW = re.compile(r"\[\s*" + r"\s*,\s*".join([f"({_SIGNED})"] * 4) + r"\s*,?\s*\](?:\s*,\s*|\s*\Z)")
_PAPER_NUMBER = re.compile(_SIGNED)
_ANSWER_PREFIXES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is",
    "The correct option is",
    "Best answer:Best option:",
)
"""Phrases that the cited code removes. It lacks a comma between the last two, which are therefore one."""


@dataclass(frozen=True, kw_only=True)
class Readers:
    """The readers of one kind of answer. Where `paper` or `lenient` is None, the strict reader takes its place.

    takes_first: whether under `paper` the first block of a name counts instead of the last.
    """

    strict: Reader
    paper: Reader | None = None
    lenient: Reader | None = None
    takes_first: bool = False

    def read(self, text: str, name: str, reading: Reading, expected: Expected) -> Answer | None:
        """Return the answer in the block `name` of the response `text`; None if there is none."""
        find = answers.first_block if reading == "paper" and self.takes_first else answers.last_block
        content = find(text, name)
        return None if content is None else self.of(reading)(content, expected)

    def of(self, reading: Reading) -> Reader:
        """Return the reader for one setting of `answers.reading`."""
        return {"paper": self.paper, "lenient": self.lenient, "strict": None}[reading] or self.strict


def _paper_period(text: str, _: Expected) -> TimeSpans | None:
    """Read the last `a to b` or `a and b`, with single spaces; pairs are found from left to right.

    Anything around a pair is ignored, including signs and units. Source: VideoChat-R1's code, except that numbers with
    more than nine digits are not read here.
    """
    pairs = _PAIR.findall(text)
    return TimeSpans(spans=((float(pairs[-1][0]), float(pairs[-1][1])),)) if pairs else None


def _paper_periods(text: str, _: Expected) -> TimeSpans | None:
    """Read `[(s, e), …]` and nothing around it, each s <= e; `[]` is an answer. Source: VideoChat-R1's code."""
    inner = _in_brackets(text.removesuffix("\n"))
    pairs = None if inner is None else answers.successive(_TUPLE, inner)
    if inner is None or pairs is None or inner.endswith((" ", "\n", "\t")):
        return None
    if any(_LEADING_ZERO.fullmatch(number) for pair in pairs for number in pair.groups()):
        return None
    spans = tuple((float(pair.group(1)), float(pair.group(2))) for pair in pairs)
    return None if any(start > end for start, end in spans) else TimeSpans(spans=spans)


def _in_brackets(text: str) -> str | None:
    """Return what is between the brackets if `text` begins with `[` and ends with `]`; else None."""
    return text[1:-1] if text.startswith("[") and text.endswith("]") else None


def _paper_boxes(text: str, expected: Expected) -> Boxes | None:
    """Read a list of exactly as many lists of four numbers as there are frames, and nothing around it.

    The numbers may have any size and sign. Source: VideoChat-R1's code.
    """
    inner = _in_brackets(text.replace("\n", "").strip(" \t"))
    rows = None if inner is None else answers.successive(_BOX_ROW, inner.strip())
    if rows is None or len(rows) != expected.num_boxes:
        return None
    boxes = tuple(answers.as_box(map(float, row.groups())) for row in rows)
    is_bounded = all(abs(corner) < answers.MAX_NUMBER for box in boxes for corner in box)
    return Boxes(boxes=boxes) if is_bounded else None


def _paper_choice(text: str, expected: Expected) -> Choice | None:
    """Read the first capital letter from A to G, wherever it is, after common phrases are removed.

    If the true letter comes after G, which the cited code cannot score, the letter at the beginning is read.
    Source: VideoChat-R1's code.
    """
    if len(text) > lenient.MAX_CHARS:
        return None
    if expected.letter > "G":
        return answers.read_choice(text)
    for prefix in _ANSWER_PREFIXES:
        text = text.replace(prefix, "")
    letter = next((char for char in text if "A" <= char <= "G"), None)
    return None if letter is None else Choice(letter=letter)


def _paper_phrase(text: str, _: Expected) -> Phrase | None:
    """Read the whole block, in lower case and without white space around it. Source: VideoChat-R1's code."""
    return Phrase(text=text.strip().lower()) if 0 < len(text.strip()) <= answers.MAX_PHRASE_CHARS else None


def _paper_number(text: str, _: Expected) -> Number | None:
    """Read the first word, without full stops at its end, as a number. Source: VSI-Bench's code."""
    stripped = text.strip()
    match = _PAPER_NUMBER.match(stripped)
    if match is None:
        return None
    rest = stripped[match.end() :].lstrip(".")
    value = float(match.group())
    return Number(value=value) if abs(value) < answers.MAX_NUMBER and (not rest or rest[0].isspace()) else None


def _any(read: Callable[[str], Answer | None]) -> Reader:
    """Return a reader that needs to know nothing of the row."""
    return lambda text, _: read(text)


def _strict_boxes(text: str, expected: Expected) -> Boxes | None:
    return answers.read_boxes(text, expected.num_boxes)


READERS: Mapping[str, Readers] = MappingProxyType(
    {
        "period": Readers(strict=_any(answers.read_period), lenient=lenient.period, paper=_paper_period),
        "periods": Readers(
            strict=_any(answers.read_periods), lenient=lenient.periods, paper=_paper_periods, takes_first=True
        ),
        "boxes": Readers(strict=_strict_boxes, lenient=lenient.boxes, paper=_paper_boxes, takes_first=True),
        "box": Readers(strict=_any(answers.read_box), lenient=lenient.box),
        "choice": Readers(
            strict=_any(answers.read_choice), lenient=lenient_choice.choice, paper=_paper_choice, takes_first=True
        ),
        "phrase": Readers(strict=_any(answers.read_phrase), paper=_paper_phrase, takes_first=True),
        "number": Readers(strict=_any(answers.read_number), lenient=lenient_number.number, paper=_paper_number),
        "caption": Readers(strict=_any(answers.read_caption)),
    }
)
"""Kind of answer, as the task table names it -> its readers."""
