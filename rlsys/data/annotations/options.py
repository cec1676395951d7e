"""Answer options as data sets write them, and which of them an annotated answer means."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from rlsys.data.annotations.rows import Problem, is_number, short
from rlsys.data.annotations.sets.records import as_list
from rlsys.types import Json

_LETTERED = re.compile(r"(?:[(\[]([A-Z])[)\]][.:]?|([A-Z])[).:、])\s*(\S.*)", re.DOTALL)
_IN_STRING = re.compile(r"(?<![A-Za-z0-9(])(?:\(([A-Z])\)|([A-Z])[).:、])(?=\s*\S)")
_HEADING = re.compile(r"(?:(?:the )?(?:options?|choices|candidates)(?: are)?|选项)\s?:?", re.IGNORECASE)
_WIDE = re.compile("[\uff01-\uff5e]")
_ANSWER = re.compile(r"\(?([A-Za-z])(?:(?:\)[.:]?|[.:])\s*(.*))?", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Option:
    """letter: A to Z.  text: without the letter."""

    letter: str
    text: str

    def __str__(self) -> str:
        return f"({self.letter}) {self.text}"


def read_options(values: Json) -> tuple[tuple[Option, ...], Problem | None]:
    """Read options written `(A) …`, `A. …`, `A) …` or bare, which get letters in order; or say what is wrong with them.

    One string with all of them is split at its letters, or read as JSON or Python. An object has them by their letters.
    """
    if isinstance(values, str):
        values = _split(values)
    if isinstance(values, dict) and all(re.fullmatch("[A-Z]", letter) for letter in values):
        values = [f"({letter}) {text}" if _is_text(text) else text for letter, text in values.items()]
    if not isinstance(values, list) or not 2 <= len(values) <= 26:
        return (), Problem(field="options", text=f"{short(values)} is not a list of 2 to 26 options")
    texts = [str(value) if is_number(value) else value for value in values]
    if not all(map(_is_text, texts)):
        return (), Problem(field="options", text=f"{short(values)}: every option needs a text")
    texts = [text.strip() for text in texts]
    found = [_LETTERED.fullmatch(_narrow(text)) for text in texts]
    letters = [match.group(1) or match.group(2) for match in found if match]
    if len(letters) == len(texts):
        if len(set(letters)) < len(letters):
            return (), Problem(field="options", text=f"letters {' '.join(letters)} repeat")
        own = [text[match.start(3) :] for text, match in zip(texts, found, strict=True) if match]
        return tuple(Option(letter=letter, text=text) for letter, text in zip(letters, own, strict=True)), None
    # "U.S. army" among bare options is no letter, "A. army" in the first place is one
    if any(match and (match.group(1) or match.group(2) == _letter(index)) for index, match in enumerate(found)):
        return (), Problem(field="options", text=f"{short(values)}: some have a letter and some have none")
    return tuple(Option(letter=_letter(index), text=text) for index, text in enumerate(texts)), None


def _narrow(text: str) -> str:
    """Return `text` with plain letters and signs in place of full-width ones, each in its place."""
    return _WIDE.sub(lambda match: chr(ord(match.group()) - 0xFEE0), text)


def _is_text(value: Json) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _split(text: str) -> Json:
    """Return the options in one string, `A. x, B. y` or `(A) x (B) y`, one by one; `text` itself when it has none.

    Its letters and signs may be full-width; a heading such as `Options:` may precede them.
    """
    written = as_list(text, (list, tuple, dict))
    if not isinstance(written, str):
        return written
    text = _narrow(text)
    starts: list[int] = []
    for match in _IN_STRING.finditer(text):
        if (match.group(1) or match.group(2)) == _letter(len(starts)):
            starts.append(match.start())
    before = text[: starts[0]].strip() if starts else ""
    if len(starts) < 2 or (before and not _HEADING.fullmatch(before)):
        return text
    ends = [*starts[1:], len(text)]
    return [text[start:end].strip().rstrip(",;").strip() for start, end in zip(starts, ends, strict=True)]


def right_letter(answer: Json, options: Sequence[Option]) -> tuple[str | None, Problem | None]:
    """Return the letter of the option that `answer` means: its letter, its text, or both; or why it means none.

    A contradiction: no such option, or the letter of one option with the text of another. Dirt: a letter
    with a text that no option has, and, with the letter of the first of them, the text of several options.
    """
    text = str(answer) if is_number(answer) else answer
    if not isinstance(text, str):
        return None, Problem(field="answer", text=f"{short(answer)} is not the letter or text of an option")
    by_text = _with_text(text, options)
    if len(by_text) == 1:
        return by_text[0], None
    if by_text:
        twice = f"{short(answer)} is the text of the options {', '.join(by_text)}; the first of them counts as right"
        return by_text[0], Problem(field="answer", text=twice, is_counted=True)
    match = _ANSWER.fullmatch(text.strip())
    letter, rest = (match.group(1).upper(), match.group(2) or "") if match else ("", "")
    if letter not in {option.letter for option in options}:
        known = ", ".join(map(str, options))
        return None, Problem(field="answer", text=f"{short(answer)} is not among {known}", is_contradiction=True)
    others = _with_text(rest, options)
    if not rest.strip() or letter in others:
        return letter, None
    if others:
        wrong = f"{short(answer)} has the letter of one option and the text of ({others[0]})"
        return None, Problem(field="answer", text=wrong, is_contradiction=True)
    return letter, Problem(field="answer", text=f"{short(answer)}: no option has this text")


def _letter(index: int) -> str:
    return chr(ord("A") + index)


def _with_text(text: str, options: Sequence[Option]) -> list[str]:
    return [option.letter for option in options if _plain(option.text) == _plain(text)]


_QUOTES = str.maketrans("‘’“”", "''\"\"")


def _plain(text: str) -> str:
    plain = unicodedata.normalize("NFKC", text).translate(_QUOTES)
    return " ".join(plain.casefold().split()).rstrip(".")
