"""Write true answers in the format that the prompt requests, as targets of supervised training."""

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
    """Return the item's true answer as its task's blocks; the task's scorers accept it as correct.

    If the prompt requests reasoning and the item has some, it stands before them in <think>.
    As the prompts request, seconds and normalised boxes have two decimals and pixels none; a finer truth is rounded.
    Raises ValueError for a truth that the task cannot read.
    """
    truth = task_named(item.task).read_truth(item.truth)
    blocks = (f"<{name}>{_written(name, answer, item.truth)}</{name}>" for name, answer in truth.items())
    thought = f"<think>{item.thought}</think>" if item.think and item.thought else ""
    return thought + " ".join(blocks)


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
            # neither an exponent nor more digits than the truth has: the reader accepts plain decimals only
            return np.format_float_positional(value, trim="-")
    raise ValueError(f"block {block!r}: an answer {answer!r} has no written form; add one to `_written`.")


def _box(box: Box, *, in_pixels: bool) -> str:
    """Return a rounded box as text; a box that would become empty is rounded outwards."""
    scale = 1 if in_pixels else 10**NORMALISED_DECIMALS
    low, high = ([round(value * scale) for value in corner] for corner in (box[:2], box[2:]))
    for axis in range(2):
        if low[axis] >= high[axis]:
            low[axis], high[axis] = math.floor(box[axis] * scale), math.ceil(box[axis + 2] * scale)
    numbers = [value / scale for value in (*low, *high)]
    decimals = 0 if in_pixels else NORMALISED_DECIMALS
    return "[" + ", ".join(f"{value:.{decimals}f}" for value in numbers) + "]"
