"""What the protocols of published suites share when they read a text or a row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from string import ascii_uppercase

from rlsys.evaluation.answered import Answered
from rlsys.tasks.answers import Expected, last_block
from rlsys.tasks.lenient import MAX_CHARS
from rlsys.tasks.table import expected_answer, task_named
from rlsys.types import Json


def answer_part(text: str) -> str:
    """Return the part of a response that a suite's rule is applied to.

    It is the content of the last <answer> block, else what follows the last </think>, both without white space around
    them, else all of it. The suites' own
    prompts ask for no tags and their pipelines remove the reasoning of models that write it. A text of more than 65,536
    characters holds no answer and is "".
    """
    if len(text) > MAX_CHARS:
        return ""
    block = last_block(text, "answer")
    if block is not None:
        return block.strip()
    return text.rpartition("</think>")[2].strip() if "</think>" in text else text


def label(row: Answered, *names: str) -> str | None:
    """Return the first of the labels `names` that `row` has, as text; None if it has none of them."""
    found = (row.labels[name] for name in names if row.labels.get(name) not in (None, ""))
    return next((str(value) for value in found), None)


def true_letter(row: Answered) -> str:
    """Return the letter of the right option; "" if the truth cannot be read."""
    truth = row.truth.get("answer") if isinstance(row.truth, Mapping) else row.truth
    try:
        return task_named("multiple_choice").read_truth(truth)["answer"].letter  # type: ignore[union-attr]
    except ValueError:
        return ""


def letters_of(row: Answered) -> str:
    """Return the letters of a row's options; A to Z if it lists none."""
    return ascii_uppercase[: len(row.options) or 26]


def numbers(value: Json, count: int) -> tuple[float, ...] | None:
    """Return a list of `count` finite numbers as a tuple; None for anything else."""
    if not isinstance(value, list | tuple) or len(value) != count:
        return None
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in value):
        return None
    return tuple(map(float, value)) if all(abs(number) < 1e12 and math.isfinite(number) for number in value) else None


def expected(row: Answered) -> Expected:
    """Return what the task table's readers may know of a row, nothing if its truth cannot be read."""
    try:
        return expected_answer(row.truth, row.options, task_named(row.task).read_truth(row.truth))
    except ValueError:
        return Expected()
