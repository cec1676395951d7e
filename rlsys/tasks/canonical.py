"""The true answer to a row, written as its task asks for it: what supervision without reasoning imitates."""

from __future__ import annotations

import math

import numpy as np

from rlsys.tasks.answers import Answer, Boxes, Caption, Choice, Number, Phrase, TimeSpans
from rlsys.tasks.geometry import Box
from rlsys.tasks.table import task_named
from rlsys.tasks.truths import box_frame
from rlsys.types import Json, PromptItem

LIST_BLOCK = "glue"
"""The block that holds a list of periods; elsewhere a period is written `a to b`."""
NORMALISED_DECIMALS = 2


def canonical_response(item: PromptItem) -> str:
    """The blocks of the item's task with its truth in them, no <think>: well-formed and right by the task's scorers.

    Seconds and normalised boxes have two decimals and pixels none, as the prompts ask, so a finer truth is rounded.
    Raises ValueError for a truth that the task cannot read.
    """
    truth = task_named(item.task).read_truth(item.truth)
    blocks = (f"<{name}>{_written(name, answer, item.truth)}</{name}>" for name, answer in truth.items())
    return " ".join(blocks)


def _written(block: str, answer: Answer, truth: Json) -> str:
    match answer:
        case TimeSpans(spans=spans) if block == LIST_BLOCK:
            return "[" + ", ".join(f"({start:.2f}, {end:.2f})" for start, end in spans) + "]"
        case TimeSpans(spans=((start, end),)):
            return f"{start:.2f} to {end:.2f}"
        case Boxes(boxes=(box,)):
            return _box(box, in_pixels=box_frame(truth) is not None)
        case Boxes(boxes=boxes):
            return "[" + ", ".join(_box(box, in_pixels=False) for box in boxes) + "]"
        case Choice(letter=letter):
            return f"({letter})"
        case Phrase(text=text) | Caption(text=text):
            return text
        case Number(value=value):
            # neither an exponent nor digits beyond those of the truth: the reader takes plain decimals
            return np.format_float_positional(value, trim="-")
    raise ValueError(f"block {block!r}: no way is known to write {answer!r}.")


def _box(box: Box, *, in_pixels: bool) -> str:
    """Rounded outwards where rounding would leave nothing of it."""
    scale = 1 if in_pixels else 10**NORMALISED_DECIMALS
    low, high = ([round(value * scale) for value in corner] for corner in (box[:2], box[2:]))
    for axis in range(2):
        if low[axis] >= high[axis]:
            low[axis], high[axis] = math.floor(box[axis] * scale), math.ceil(box[axis + 2] * scale)
    numbers = [value / scale for value in (*low, *high)]
    decimals = 0 if in_pixels else NORMALISED_DECIMALS
    return "[" + ", ".join(f"{value:.{decimals}f}" for value in numbers) + "]"
