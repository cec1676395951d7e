"""Parse annotations into the true answers that responses are compared with.

Each reader takes a JSON value and returns the true answer by block of the response. It raises ValueError for a broken
annotation, which must never count as a wrong answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import replace

from rlsys.tasks.answers import (
    MAX_NUMBER,
    Answer,
    Boxes,
    Caption,
    Choice,
    Number,
    Phrase,
    TimeSpans,
    as_box,
    read_choice,
    read_phrase,
)
from rlsys.tasks.geometry import Box, TimeSpan
from rlsys.types import Json

NUM_TRACKED_FRAMES = 8
"""Number of boxes of a tracking row in VideoChat-R1; rows of other data sets may have another number."""
MAX_TRACKED_FRAMES = 64
"""Largest number of boxes of a tracking row."""

_SIZE = frozenset({"width", "height"})


def period(truth: Json) -> Mapping[str, Answer]:
    """Read `[start, end]` in seconds."""
    return {"answer": TimeSpans(spans=(_span(truth),))}


def tracked_boxes(truth: Json) -> Mapping[str, Answer]:
    """Read an even number of `[x0, y0, x1, y1]`, one for each frame shown, as fractions of width and height."""
    return {"answer": Boxes(boxes=_tracked(truth))}


def one_box(truth: Json) -> Mapping[str, Answer]:
    """Read `{"box": [x0, y0, x1, y1], "width": W, "height": H}` in pixels, or `{"box": …}` as fractions of them."""
    _check_keys(truth, {"box"}, optional=_SIZE)
    return {"answer": _one_box(truth)}


def choice(truth: Json) -> Mapping[str, Answer]:
    """Read the letter of the right option, such as `"(C)"`."""
    return {"answer": _choice(truth)}


def choice_and_periods(truth: Json) -> Mapping[str, Answer]:
    """Read `{"answer": "(C)", "glue": [[start, end], …]}`."""
    _check_keys(truth, {"answer", "glue"})
    return {"answer": _choice(truth["answer"]), "glue": _spans(truth["glue"])}


def choice_and_box(truth: Json) -> Mapping[str, Answer]:
    """Read `{"answer": "(C)", "box": …}`, with a box as in `one_box`."""
    _check_keys(truth, {"answer", "box"}, optional=_SIZE)
    return {"answer": _choice(truth["answer"]), "box": _one_box(truth)}


def choice_periods_and_box(truth: Json) -> Mapping[str, Answer]:
    """Read `{"answer": "(C)", "glue": [[start, end], …], "box": …}`, with a box as in `one_box`."""
    _check_keys(truth, {"answer", "glue", "box"}, optional=_SIZE)
    return {"answer": _choice(truth["answer"]), "glue": _spans(truth["glue"]), "box": _one_box(truth)}


def period_and_box(truth: Json) -> Mapping[str, Answer]:
    """Read `{"period": [start, end], "box": …}`, with a box as in `one_box`."""
    _check_keys(truth, {"period", "box"}, optional=_SIZE)
    return {"answer": TimeSpans(spans=(_span(truth["period"]),)), "box": _one_box(truth)}


def phrase(truth: Json) -> Mapping[str, Answer]:
    """Read the name of the right class, such as `"low quality"`."""
    return {"answer": _phrase(truth)}


def number(truth: Json) -> Mapping[str, Answer]:
    """Read a finite number, below `MAX_NUMBER` in size."""
    if not _is_number(truth) or abs(truth) >= MAX_NUMBER:
        raise ValueError(f"truth {_shown(truth)}: write a finite number, below {MAX_NUMBER:g} in size.")
    return {"answer": Number(value=float(truth))}


def caption(truth: Json) -> Mapping[str, Answer]:
    """Read `{"caption": "…"}`, optionally with `"events": ["…", …]`, the events that the caption describes."""
    _check_keys(truth, {"caption"}, optional={"events"})
    if not _is_text(truth["caption"]):
        raise ValueError(f"truth caption {_shown(truth['caption'])}: write a description in words.")
    events = truth.get("events")
    if events is not None and not (isinstance(events, list | tuple) and events and all(map(_is_text, events))):
        raise ValueError(f"truth events {_shown(events)}: write at least one event in words, or omit them.")
    listed = None if events is None else tuple(event.strip() for event in events)
    return {"answer": Caption(text=truth["caption"].strip(), events=listed)}


def first_box(truth: Json) -> str:
    """Return the box of a tracking row's first frame as its prompt shows it. Raises ValueError for a broken row."""
    return "[" + ", ".join(f"{value:g}" for value in _tracked(truth)[0]) + "]"


def box_frame(truth: Json) -> tuple[float, float] | None:
    """Return the (width, height) in pixels of the frame of a truth's box; None if the box is normalised to 0..1."""
    if not isinstance(truth, Mapping):
        raise ValueError(f'truth {_shown(truth)}: write {{"box": [x0, y0, x1, y1], …}}.')
    given = _SIZE & set(truth)
    if not given:
        return None
    width: Json = truth.get("width")
    height: Json = truth.get("height")
    if not all(_is_number(side) and 0 < side < MAX_NUMBER for side in (width, height)):
        raise ValueError(f"truth width {_shown(width)}, height {_shown(height)}: give both, in pixels, or neither.")
    return float(width), float(height)


def is_tracked_count(num_boxes: int) -> bool:
    """Return whether a clip can be shown with as many frames as there are boxes; the model merges frames in pairs."""
    return num_boxes % 2 == 0 and 2 <= num_boxes <= MAX_TRACKED_FRAMES


def _check_keys(truth: Json, required: Set[str], optional: Set[str] = frozenset()) -> None:
    found = set(truth) if isinstance(truth, Mapping) else set()
    if not required <= found or not found <= required | optional:
        wanted = ", ".join(sorted(required)) + (f" (and {', '.join(sorted(optional))} if known)" if optional else "")
        raise ValueError(f"truth {_shown(truth)}: write an object with {wanted} and nothing else.")


def _choice(value: Json) -> Choice:
    letter = read_choice(value) if isinstance(value, str) else None
    if letter is None:
        raise ValueError(f'truth answer {_shown(value)}: write the option\'s letter, for example "(C)".')
    return letter


def _phrase(value: Json) -> Phrase:
    read = read_phrase(value) if isinstance(value, str) else None
    if read is None:
        raise ValueError(f'truth {_shown(value)}: write the class in words, for example "low quality".')
    return replace(read, written=value.strip().lower())


def _spans(value: Json) -> TimeSpans:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"truth glue {_shown(value)}: write at least one [start, end] in seconds.")
    return TimeSpans(spans=tuple(_span(span) for span in value))


def _tracked(truth: Json) -> tuple[Box, ...]:
    if not isinstance(truth, list | tuple) or not is_tracked_count(len(truth)):
        rule = f"write an even number of boxes [x0, y0, x1, y1], at most {MAX_TRACKED_FRAMES}"
        raise ValueError(f"truth {_shown(truth)}: {rule}; frames are shown in pairs.")
    return tuple(_box(box, None) for box in truth)


def _one_box(truth: Mapping[str, Json]) -> Boxes:
    return Boxes(boxes=(_box(truth["box"], box_frame(truth)),))


def _span(value: Json) -> TimeSpan:
    start, end = _numbers(value, 2, "[start, end] in seconds")
    if not 0 <= start < end:
        raise ValueError(f"time span {_shown(value)}: it must start at 0 or later and end after its start.")
    return start, end


def _box(value: Json, frame: tuple[float, float] | None) -> Box:
    """Read a box inside a frame of (width, height) pixels; None means corners in 0..1."""
    width, height = frame or (1.0, 1.0)
    x0, y0, x1, y1 = box = as_box(_numbers(value, 4, "[x0, y0, x1, y1]"))
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        rule = f"0 <= x0 < x1 <= {width:g} and 0 <= y0 < y1 <= {height:g}"
        remedy = "fix it" if frame else "divide pixels by size"
        raise ValueError(f"box {_shown(value)}: it needs {rule}; {remedy}.")
    return box


def _numbers(value: Json, count: int, form: str) -> list[float]:
    if not isinstance(value, list | tuple) or len(value) != count or not all(_is_number(member) for member in value):
        raise ValueError(f"truth {_shown(value)}: write {form}, {count} finite numbers.")
    return [float(member) for member in value]


def _is_number(value: Json) -> bool:
    # the bound comes first: float() of an integer with hundreds of digits raises OverflowError
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12 and math.isfinite(value)


def _is_text(value: Json) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _shown(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}…"
