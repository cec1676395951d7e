"""Readers of option letters, as VLMEvalKit, lmms-eval and the data sets' own code read them, quirks included."""

from __future__ import annotations

import re

from rlsys.evaluation.answered import Answered
from rlsys.evaluation.protocols.texts import answer_part, letters_of, true_letter

_VLMEVALKIT_PREFIXES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option isThe correct option is",
    "Best answer:Best option:",
    "Answer:",
    "Option:",
)
"""Phrases that VLMEvalKit removes. Its list lacks two commas, which makes one phrase of two in two places."""

_LMMS_PHRASES = (
    *(
        f"{article}{word} is"
        for word in ("answer", "correct answer", "best answer", "correct option", "best option", "choice")
        for article in ("the ", "")
    ),
    "the correct choice is",
    "correct choice is",
    "i choose",
    "i select",
    "i pick",
    "my answer is",
    "my choice is",
    "옵션",
    "정답은",
    "답은",
    "답:",
    "答案是",
    "答案为",
    "选",
    "答えは",
)
_LMMS_FORMATS = (("({})", 6), ("{}.", 5), ("{}:", 4), ("{})", 3), ("{} ", 2))
"""(how a letter may be written, priority)"""
_LMMS_START, _LMMS_END, _LMMS_PHRASE, _LMMS_ANYWHERE = 10, 9, 7, 0

_PERCEPTION = re.compile(r"\b([A-D])\b")

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_OPTION_LINE = re.compile(r"^([A-E])\.\s*(.+)$", re.IGNORECASE)
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_MAX_FULL_STOPS = 32
"""lmms-eval passes `re.UNICODE`, which is 32, as the count of replacements."""
_WORD_LETTER = re.compile(r"\b([A-E])\b", re.IGNORECASE)


def vlmevalkit_letter(_: Answered, text: str) -> str | None:
    """Read the first capital letter from A to D, wherever it is, after usual prefixes are removed.

    Where there is none VLMEvalKit asks a language model to choose an option; here the row counts as wrong.
    """
    plain = answer_part(text).strip()
    for prefix in _VLMEVALKIT_PREFIXES:
        plain = plain.replace(prefix, "")
    return next((char for char in plain if char in "ABCD"), None)


def lmms_letter(row: Answered, text: str, letters: str = "") -> str | None:
    """Read the letter that is written in the most certain way: lmms-eval's priority extractor.

    From most to least certain: the text starts with it; ends with it; it follows a phrase such as "the answer is";
    `(A)`; `A.`; `A:`; `A)`; `A` before a space; anywhere. Of equally certain ones the last in the text counts.
    letters: the letters that count; "" means those of the row's options, or A to H if it lists none.
    """
    letters = letters or (letters_of(row) if row.options else "ABCDEFGH")
    plain = answer_part(text).strip()
    for char in ",.!?;:'\"":
        plain = plain.strip(char)
    padded = f" {plain} "
    stripped = plain.strip()
    found = [
        (priority, padded.rfind(form.format(letter)), letter)
        for form, priority in _LMMS_FORMATS
        for letter in letters
        if form.format(letter) in padded
    ]
    found += _after_phrases(padded, letters)
    found += [(_LMMS_START, 0, stripped[0])] if stripped[:1] in tuple(letters) and not stripped[1:2].isalpha() else []
    found += [(_LMMS_END, 0, stripped[-1])] if stripped[-1:] in tuple(letters) and not stripped[-2:-1].isalpha() else []
    found = found or [(_LMMS_ANYWHERE, padded.rfind(letter), letter) for letter in letters if letter in padded]
    return max(found, key=lambda one: one[:2])[2] if found else None  # of equal ones the first, as a stable sort keeps


def _after_phrases(padded: str, letters: str) -> list[tuple[int, int, str]]:
    """Return (priority, place, letter) of the first place of each letter after each phrase in the text."""
    lowered = padded.lower()
    starts = ((lowered.find(phrase), len(phrase)) for phrase in _LMMS_PHRASES)
    places = [(letter, padded.find(letter, at + size)) for at, size in starts if at >= 0 for letter in letters]
    return [(_LMMS_PHRASE, at, letter) for letter, at in places if at >= 0]


def lmms_abcd(row: Answered, text: str) -> str | None:
    """Read a letter from A to D as lmms-eval's Video-MME task does, see `lmms_letter`."""
    return lmms_letter(row, text, "ABCD")


def perception_letter(_: Answered, text: str) -> str | None:
    """Read the first capital letter from A to D that is a word of its own. Source: lmms-eval, Perception Test."""
    match = _PERCEPTION.search(answer_part(text))
    return match.group(1) if match else None


def bracketed_letter(row: Answered, text: str) -> str | None:
    """Read the first `(X)`, else the first `X` that is a word of its own, X being the letter of an option.

    Where there is none the published code of R4D-Bench draws a letter at random; here the row counts as wrong.
    """
    plain, letters = answer_part(text), letters_of(row)
    match = re.search(rf"\(([{letters}])\)", plain) or re.search(rf"\b([{letters}])\b", plain)
    return match.group(1) if match else None


def mvbench_word(_: Answered, text: str) -> str | None:
    """Read the first word, in lower case, words being separated by spaces. Source: MVBench's own code."""
    plain = answer_part(text).strip()
    return plain.lower().split(" ")[0] if plain else None


def mvbench_scores(row: Answered, value: str | None) -> dict[str, float]:
    """Return whether the first word is a part of the option `(x)`, without its full stops, or contains it.

    MVBench's own code counts an empty response, or full stops alone, as right, because nothing is a part of
    everything; here it is wrong.
    Source: MVBench, `check_ans`; VLMEvalKit then asks a language model about the rest, which count as wrong here.
    """
    letter = true_letter(row).lower()
    if value is None or not letter:
        return {"correct": 0.0}
    option, bare = f"({letter})", value.replace(".", "")
    return {"correct": float((bool(bare) and bare in option) or option in value)}


def lmms_mvbench_letter(_: Answered, text: str) -> str | None:
    """Read the letter of a line `X. …`, else the first letter from A to E, in either case, that is a word.

    Punctuation is removed or made a space before. "a man" therefore reads A. Source: lmms-eval, MVBench.
    """
    plain = answer_part(text)
    line = _OPTION_LINE.match(plain.strip())
    if line:
        return line.group(1).upper()
    plain = plain.replace("\n", " ").replace("\t", " ").strip()
    is_joined = bool(_COMMA_IN_NUMBER.search(plain))
    cleaned = plain
    for mark in _PUNCTUATION:
        is_removed = is_joined or f"{mark} " in plain or f" {mark}" in plain
        cleaned = cleaned.replace(mark, "" if is_removed else " ")
    match = _WORD_LETTER.search(_FULL_STOP.sub("", cleaned, count=_MAX_FULL_STOPS))
    return match.group(1).upper() if match else None


def letter_scores(row: Answered, value: str | None) -> dict[str, float]:
    """Return whether the letter is the true one."""
    return {"correct": float(value is not None and value == true_letter(row))}
