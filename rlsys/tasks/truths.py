"""Annotations as the true answers that responses are compared with.

Each reader takes a JSON value and returns the true answer per block of the response, or raises
ValueError saying what is wrong: a broken annotation is never a wrong answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import replace

from rlsys.tasks.answers import Answer, Boxes, Caption, Choice, Number, Phrase, TimeSpans, read_choice, read_phrase
from rlsys.tasks.geometry import Box, TimeSpan
from rlsys.types import Json

NUM_TRACKED_FRAMES = 8
"""Boxes of a tracking row in VideoChat-R1; rows of other data sets may have another number."""
MAX_TRACKED_FRAMES = 64
"""Most boxes of a tracking row."""
MAX_NUMBER = 1e9
"""Numbers and pixels in a truth stay below it: `rlsys.tasks.answers` reads nine digits before the point."""

_SIZE = frozenset({"width", "height"})


def period(truth: Json) -> Mapping[str, Answer]:
    """`[start, end]` in seconds."""
    return {"answer": TimeSpans(spans=(_span(truth),))}


def tracked_boxes(truth: Json) -> Mapping[str, Answer]:
    """An even number of `[x0, y0, x1, y1]`, in 0..1 of width and height; as many frames are shown."""
    return {"answer": Boxes(boxes=_tracked(truth))}


def one_box(truth: Json) -> Mapping[str, Answer]:
    """`{"box": [x0, y0, x1, y1], "width": W, "height": H}` in pixels, or `{"box": …}` in 0..1 of width and height."""
    _check_keys(truth, {"box"}, optional=_SIZE)
    return {"answer": _one_box(truth)}


def choice(truth: Json) -> Mapping[str, Answer]:
    """The letter of the right option: `"(C)"`."""
    return {"answer": _choice(truth)}


def choice_and_periods(truth: Json) -> Mapping[str, Answer]:
    """`{"answer": "(C)", "glue": [[start, end], …]}`."""
    _check_keys(truth, {"answer", "glue"})
    return {"answer": _choice(truth["answer"]), "glue": _spans(truth["glue"])}


def choice_and_box(truth: Json) -> Mapping[str, Answer]:
    """`{"answer": "(C)", "box": …}`, the box as in `one_box`."""
    _check_keys(truth, {"answer", "box"}, optional=_SIZE)
    return {"answer": _choice(truth["answer"]), "box": _one_box(truth)}


def choice_periods_and_box(truth: Json) -> Mapping[str, Answer]:
    """`{"answer": "(C)", "glue": [[start, end], …], "box": …}`, the box as in `one_box`."""
    _check_keys(truth, {"answer", "glue", "box"}, optional=_SIZE)
    return {"answer": _choice(truth["answer"]), "glue": _spans(truth["glue"]), "box": _one_box(truth)}


def period_and_box(truth: Json) -> Mapping[str, Answer]:
    """`{"period": [start, end], "box": …}`, the box as in `one_box`."""
    _check_keys(truth, {"period", "box"}, optional=_SIZE)
    return {"answer": TimeSpans(spans=(_span(truth["period"]),)), "box": _one_box(truth)}


def phrase(truth: Json) -> Mapping[str, Answer]:
    """The name of the right class: `"low quality"`."""
    return {"answer": _phrase(truth)}


def number(truth: Json) -> Mapping[str, Answer]:
    """A finite number."""
    if not _is_number(truth) or abs(truth) >= MAX_NUMBER:
        raise ValueError(f"truth {_shown(truth)}: write a finite number, below {MAX_NUMBER:g} in size.")
    return {"answer": Number(value=float(truth))}


def caption(truth: Json) -> Mapping[str, Answer]:
    """`{"caption": "…"}`, and for evaluation `"events": ["…", …]`, the caption's events one by one."""
    _check_keys(truth, {"caption"}, optional={"events"})
    if not _is_text(truth["caption"]):
        raise ValueError(f"truth caption {_shown(truth['caption'])}: write a description in words.")
    events = truth.get("events")
    if events is not None and not (isinstance(events, list | tuple) and events and all(map(_is_text, events))):
        raise ValueError(f"truth events {_shown(events)}: write at least one event in words, or omit them.")
    listed = None if events is None else tuple(event.strip() for event in events)
    return {"answer": Caption(text=truth["caption"].strip(), events=listed)}


def first_box(truth: Json) -> str:
    """The box of a tracking row's first frame, as its prompt shows it; ValueError when the row is broken."""
    return "[" + ", ".join(f"{value:g}" for value in _tracked(truth)[0]) + "]"


def box_frame(truth: Json) -> tuple[float, float] | None:
    """(width, height) in pixels that a truth's box is counted in, or None where it is normalised to 0..1."""
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
    """Whether a clip can be shown by as many frames as there are boxes; the model takes them in pairs."""
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
    """frame: (width, height) in pixels, or None for corners in 0..1."""
    width, height = frame or (1.0, 1.0)
    x0, y0, x1, y1 = _numbers(value, 4, "[x0, y0, x1, y1]")
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        rule = f"0 <= x0 < x1 <= {width:g} and 0 <= y0 < y1 <= {height:g}"
        remedy = "fix it" if frame else "divide pixels by size"
        raise ValueError(f"box {_shown(value)}: it needs {rule}; {remedy}.")
    return x0, y0, x1, y1


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
