"""Readers and scores of VSI-Bench, which mixes letters and numbers."""

from __future__ import annotations

import re

import numpy as np

from rlsys.evaluation.answered import Answered
from rlsys.evaluation.protocols.texts import answer_part, label, numbers, true_letter
from rlsys.evaluation.protocols.weighted import Metrics, Weighted, mean_of
from rlsys.types import Json

TOLERANCES = 1 - np.linspace(0.5, 0.95, 10)
"""Relative errors that count, from 0.5 to 0.05."""
_MAX_NUMBER_CHARS = 400
_DIRECTION = "object_rel_direction"

_UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_WORDS = (
    {word: float(value) for value, word in enumerate(_UNITS)}
    | {word: 10.0 * tens for tens, word in enumerate(_TENS, start=2)}
    | {"hundred": 100.0, "thousand": 1000.0}
)
_DIGITS = re.compile(r"-?(?<!\d)\d+(?:\.\d+)?")
_LATIN = re.compile(r"[a-z]+")


def mean_relative_accuracy(value: float, truth: float) -> float:
    """Return the share of `TOLERANCES` that |value - truth| / truth does not exceed.

    With a truth of 0 only 0 itself counts. Source: the code of VSI-Bench, which counts an error equal to a tolerance;
    the paper's equation 1 does not.
    """
    if truth == 0:
        return float(value == 0)
    return float((abs(value - truth) / truth <= TOLERANCES).mean())


def _first_word(text: str) -> str:
    return text.split(" ")[0].rstrip(".").strip()


def _is_numeric(row: Answered) -> bool:
    return row.task == "numeric_qa"


def vsi_value(row: Answered, text: str) -> Json:
    """Read the first word, without full stops at its end, in upper case or as a number. Source: VSI-Bench's code."""
    word = _first_word(answer_part(text))
    if not _is_numeric(row):
        return word.upper() or None
    try:
        return float(word) if len(word) <= _MAX_NUMBER_CHARS else None
    except ValueError:
        return None


def lmms_vsi_value(row: Answered, text: str) -> Json:
    """Read letters as `vsi_value`, and of a number question the first number, in digits or in English words.

    Source: lmms-eval, VSI-Bench, August 2026.
    """
    if not _is_numeric(row):
        return vsi_value(row, text)
    plain = answer_part(text).strip().lower()
    digits = _DIGITS.search(plain)
    words = list(_LATIN.finditer(plain))
    first = next((index for index, word in enumerate(words) if word.group() in _WORDS), None)
    if digits and (first is None or digits.start() < words[first].start()):
        return float(digits.group()) if len(digits.group()) <= _MAX_NUMBER_CHARS else None
    return None if first is None else _spelled([word.group() for word in words[first:]])


def _spelled(words: list[str]) -> float:
    """Return the number that the words begin with; "and" may stand between them."""
    total = current = 0.0
    for word in words:
        if word == "and":
            continue
        if word not in _WORDS:
            break
        if word == "hundred":
            current = max(current, 1.0) * 100
        elif word == "thousand":
            total, current = total + max(current, 1.0) * 1000, 0.0
        else:
            current += _WORDS[word]
    return total + current


def vsi_scores(row: Answered, value: Json) -> dict[str, float]:
    """Return the accuracy of a row: of a number the mean relative accuracy, of a letter whether it is the true one."""
    if not _is_numeric(row):
        return {"correct": float(value is not None and value == true_letter(row))}
    truth = numbers([row.truth], 1)
    return {"correct": 0.0 if value is None or truth is None else mean_relative_accuracy(value, truth[0])}


def vsi_metrics(weighted: Weighted) -> Metrics:
    """Return the accuracy of each of the eight tasks and their mean; the three levels of direction are averaged first.

    Tasks without rows are left out of the mean. Source: VSI-Bench.
    """
    kinds = weighted.groups(lambda row: label(row, "question_type", "category"))
    levels = {name: weighted.mean("correct", where=where) for name, where in kinds.items()}
    directions = [levels.pop(name) for name in list(levels) if name.startswith(_DIRECTION)]
    tasks = levels | ({_DIRECTION: mean_of(directions)} if directions else {})
    micro = weighted.mean("correct")
    return {
        "overall": mean_of(list(tasks.values())) if tasks else micro,
        "micro": micro,
        **{f"accuracy/{name}": values for name, values in sorted(tasks.items())},
    }
