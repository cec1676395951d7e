"""How each kind of answer is read: as the cited code does, leniently, or strictly.

`paper` follows the code that published the task, its quirks included. `lenient` takes the spellings that evaluation
suites take, and never an ambiguous answer. `strict` takes only the format that the prompt asks for, with words around
a period, a list or a box. docs/answers.md
shows the three side by side. Every reader takes any text and runs in time linear in its length.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from rlsys.config.answers import Reading
from rlsys.tasks import answers, lenient
from rlsys.tasks.answers import Answer, Boxes, Choice, Expected, Number, Phrase, TimeSpans

Reader = Callable[[str, Expected], Answer | None]
"""(content of a block, what is known of the row) -> its answer, or None."""

_DECIMAL = r"[0-9]{1,9}(?:\.[0-9]{1,17})?"
_PAIR = re.compile(r"(?<!\d)(\d{1,9}(?:\.\d{0,17})?) (?:to|and) (\d{1,9}(?!\d)(?:\.\d{0,17})?)", re.IGNORECASE)
_TUPLE = re.compile(rf"\(({_DECIMAL}),\s*({_DECIMAL})\)(?:,\s*)?")
_LEADING_ZERO = re.compile(r"0+[1-9][0-9]*")  # Python's literals, with which the cited code reads, have none
_SIGNED = r"[+-]?(?:[0-9]{1,9}(?:\.[0-9]{0,17})?|\.[0-9]{1,17})(?:[eE][+-]?[0-9])?"
_BOX_ROW = re.compile(r"\[\s*" + r"\s*,\s*".join([f"({_SIGNED})"] * 4) + r"\s*,?\s*\](?:\s*,\s*|\s*\Z)")
_PAPER_NUMBER = re.compile(_SIGNED)
_MAX_NUMBER = 1e9
_ANSWER_PREFIXES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is",
    "The correct option is",
    "Best answer:Best option:",
)
"""What the cited code removes; it joins the last two by a missing comma."""
_MAX_CHOICE_CHARS = 1 << 16  # longer blocks are no answer


@dataclass(frozen=True, kw_only=True)
class Readers:
    """The readers of one kind of answer. takes_first: under `paper` the first block of a name counts, not the last."""

    paper: Reader
    lenient: Reader
    strict: Reader
    takes_first: bool = False

    def read(self, text: str, name: str, reading: Reading, expected: Expected) -> Answer | None:
        """Return the answer in the block `name` of the response `text`; None where there is none."""
        find = answers.first_block if reading == "paper" and self.takes_first else answers.last_block
        content = find(text, name)
        return None if content is None else self.of(reading)(content, expected)

    def of(self, reading: Reading) -> Reader:
        """Return the reader of one reading."""
        return {"paper": self.paper, "lenient": self.lenient, "strict": self.strict}[reading]


def _paper_period(text: str, _: Expected) -> TimeSpans | None:
    """Read the last `a to b` or `a and b`, each word with one space on both sides; pairs are found from left to right.

    What stands around a pair does not matter, a sign or a unit included. Source: VideoChat-R1's code, of which numbers
    with more than nine digits are not read here.
    """
    pairs = _PAIR.findall(text)
    return TimeSpans(spans=((float(pairs[-1][0]), float(pairs[-1][1])),)) if pairs else None


def _paper_periods(text: str, _: Expected) -> TimeSpans | None:
    """Read `[(s, e), …]` and nothing around it, each s <= e; `[]` is an answer. Source: VideoChat-R1's code."""
    if text.endswith("\n"):
        text = text[:-1]
    if not (text.startswith("[") and text.endswith("]")):
        return None
    spans = _tuples(text[1:-1])
    return None if spans is None or any(start > end for start, end in spans) else TimeSpans(spans=spans)


def _tuples(text: str) -> tuple[tuple[float, float], ...] | None:
    spans: list[tuple[float, float]] = []
    position = 0
    while position < len(text):
        match = _TUPLE.match(text, position)
        is_joined = position == 0 or text[position - 1] != ")"
        if match is None or not is_joined or any(map(_LEADING_ZERO.fullmatch, match.groups())):
            return None
        spans.append((float(match.group(1)), float(match.group(2))))
        position = match.end()
    return None if text.endswith((" ", "\n", "\t")) else tuple(spans)


def _paper_boxes(text: str, expected: Expected) -> Boxes | None:
    """Read a list of exactly as many lists of four numbers as there are frames, and nothing around it.

    The numbers may be anything. Source: VideoChat-R1's code.
    """
    text = text.replace("\n", "").strip(" \t")
    if not (text.startswith("[") and text.endswith("]")):
        return None
    boxes: list[tuple[float, float, float, float]] = []
    inner = text[1:-1].strip()
    position = 0
    while position < len(inner):
        match = _BOX_ROW.match(inner, position)
        if match is None:
            return None
        x0, y0, x1, y1 = (float(number) for number in match.groups())
        boxes.append((x0, y0, x1, y1))
        position = match.end()
    is_bounded = all(abs(corner) < _MAX_NUMBER for box in boxes for corner in box)
    return Boxes(boxes=tuple(boxes)) if is_bounded and len(boxes) == expected.num_boxes else None


def _paper_choice(text: str, expected: Expected) -> Choice | None:
    """Read the first capital letter from A to G, wherever it is, after usual phrases are removed.

    Rows whose true letter comes after G, which the cited code cannot score, take a letter at the beginning.
    Source: VideoChat-R1's code.
    """
    if len(text) > _MAX_CHOICE_CHARS:
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
    """Read the first word, without a full stop at its end, as a number. Source: VSI-Bench's code."""
    stripped = text.strip()
    match = _PAPER_NUMBER.match(stripped)
    if match is None:
        return None
    rest = stripped[match.end() :].lstrip(".")
    value = float(match.group())
    return Number(value=value) if abs(value) < _MAX_NUMBER and (not rest or rest[0].isspace()) else None


def _any(read: Callable[[str], Answer | None]) -> Reader:
    return lambda text, _: read(text)


READERS: Mapping[str, Readers] = MappingProxyType(
    {
        "period": Readers(paper=_paper_period, lenient=lenient.period, strict=_any(answers.read_period)),
        "periods": Readers(
            paper=_paper_periods, lenient=lenient.periods, strict=_any(answers.read_periods), takes_first=True
        ),
        "boxes": Readers(
            paper=_paper_boxes,
            lenient=lenient.boxes,
            strict=lambda text, expected: answers.read_boxes(text, expected.num_boxes),
            takes_first=True,
        ),
        "box": Readers(paper=_any(answers.read_box), lenient=lenient.box, strict=_any(answers.read_box)),
        "choice": Readers(
            paper=_paper_choice, lenient=lenient.choice, strict=_any(answers.read_choice), takes_first=True
        ),
        "phrase": Readers(
            paper=_paper_phrase,
            lenient=_any(answers.read_phrase),
            strict=_any(answers.read_phrase),
            takes_first=True,
        ),
        "number": Readers(paper=_paper_number, lenient=lenient.number, strict=_any(answers.read_number)),
        "caption": Readers(
            paper=_any(answers.read_caption), lenient=_any(answers.read_caption), strict=_any(answers.read_caption)
        ),
    }
)
"""Kind of answer, as the task table names it -> its readers."""
