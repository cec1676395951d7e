"""Synthetic clips with five questions each, one per task, annotated in one file whose rows name their task.

In every clip one object moves throughout in one half of the frame while another appears for some time in the
other half, so that questions can ask when (temporal grounding), where (tracking), which (multiple choice),
which and when (grounded QA) and what (captioning).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from rlsys.demo.synthetic import (
    COLOURS,
    CORNERS,
    LONGEST_S,
    SHAPES,
    SHORTEST_S,
    TIME_STEP_S,
    Scene,
    Shown,
    SyntheticSet,
    encode,
    render,
)
from rlsys.demo.synthetic import demonstration_text as grounding_demonstration
from rlsys.types import Json, PromptItem

DURATION_S = 4.0  # two frames a second show it by the eight frames that a tracking row has boxes for
NUM_TRACKED_FRAMES = 8
SMALLEST_RADIUS, LARGEST_RADIUS = 0.17, 0.22
SHORTEST_PATH = 0.25  # of the moving object, as a share of the frame's side
BOX_DECIMALS = 2  # a hundredth of a small frame is half a pixel
LETTERS = "ABCD"
BOX_STEP = 0.05  # demonstrations round box corners to it, so that each is one token of the tiny model
_SUBJECT = re.compile(r"\b(" + "|".join(COLOURS) + r") (" + "|".join(SHAPES) + r")\b")

MixedRow = dict[str, Json]


def draw_mixture(
    folder: Path, *, num_clips: int, seed: int, source_fps: Sequence[int] = (4, 6, 8, 10), size_px: int = 56
) -> SyntheticSet:
    """Render and encode `num_clips` clips of four seconds into `folder`, with five rows each.

    The same arguments give the same files, byte for byte; clip i depends on (seed, i) alone. Rows are JSON
    lines of the format `vtts`, in the order of `ROWS`. Raises ValueError for no clips or an odd frame rate.
    """
    if num_clips < 1:
        raise ValueError(f"num_clips={num_clips}: use 1 or more.")
    if bad := [fps for fps in source_fps if fps < 2 or fps % 2]:
        raise ValueError(f"source_fps={bad}: use even numbers, so that boundaries fall on frames.")
    videos = folder / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    rows: list[MixedRow] = []
    for index in range(num_clips):
        rng = np.random.default_rng((seed, index))
        scene = compose_pair(rng, source_fps)
        name = f"{index:05d}.mp4"
        encode(videos / name, render(scene, size_px, rng), scene.fps)
        mover, guest = scene.objects
        rows += [{"video": name, "duration": DURATION_S, **make(mover, guest, rng)} for make in ROWS.values()]
    annotations = folder / "annotations.jsonl"
    annotations.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SyntheticSet(annotations=annotations, videos=videos)


def compose_pair(rng: np.random.Generator, source_fps: Sequence[int]) -> Scene:
    """Return a scene of two objects of different colours and shapes: one moves throughout, one appears for a while."""
    colours = [str(colour) for colour in rng.choice(list(COLOURS), 2, replace=False)]
    shapes = [str(shape) for shape in rng.choice(SHAPES, 2, replace=False)]
    axis, near_side = int(rng.integers(2)), bool(rng.integers(2))
    return Scene(
        duration_s=DURATION_S,
        fps=int(rng.choice(np.asarray(source_fps))),
        grey=int(rng.integers(96, 145)),
        objects=(
            _moving(rng, colours[0], shapes[0], axis, near_side),
            _appearing(rng, colours[1], shapes[1], axis, not near_side),
        ),
    )


def _moving(rng: np.random.Generator, colour: str, shape: str, axis: int, near_side: bool) -> Shown:
    """Return an object that moves along `axis`, in the near (left or upper) or the far half of the other axis."""
    radius = float(rng.uniform(SMALLEST_RADIUS, LARGEST_RADIUS))
    length = float(rng.uniform(SHORTEST_PATH, 1 - 2 * radius))
    first = float(rng.uniform(radius, 1 - radius - length))
    along = (first, first + length) if rng.random() < 0.5 else (first + length, first)
    across = _across(rng, radius, near_side)
    start, end = ((value, across) if axis == 0 else (across, value) for value in along)
    return Shown(colour=colour, shape=shape, span_s=(0.0, DURATION_S), radius=radius, start=start, end=end)


def _appearing(rng: np.random.Generator, colour: str, shape: str, axis: int, near_side: bool) -> Shown:
    steps = int(rng.integers(round(SHORTEST_S / TIME_STEP_S), round(LONGEST_S / TIME_STEP_S), endpoint=True))
    first = int(rng.integers(0, round(DURATION_S / TIME_STEP_S) - steps, endpoint=True))
    radius = float(rng.uniform(SMALLEST_RADIUS, LARGEST_RADIUS))
    along, across = float(rng.uniform(radius, 1 - radius)), _across(rng, radius, near_side)
    place = (along, across) if axis == 0 else (across, along)
    span_s = (first * TIME_STEP_S, (first + steps) * TIME_STEP_S)
    return Shown(colour=colour, shape=shape, span_s=span_s, radius=radius, start=place, end=place)


def _across(rng: np.random.Generator, radius: float, near_side: bool) -> float:
    place = float(rng.uniform(radius, 0.5 - radius))
    return place if near_side else 1 - place


def tracked_boxes(shown: Shown) -> list[list[float]]:
    """Return the boxes [x0, y0, x1, y1] of an object on eight evenly spaced frames, to a hundredth of the frame."""
    low, high = _extent(shown)
    shares = np.arange(NUM_TRACKED_FRAMES)[:, None] / NUM_TRACKED_FRAMES
    centres = np.array(shown.start) * (1 - shares) + np.array(shown.end) * shares
    boxes = np.concatenate([centres + low, centres + high], axis=1)
    return np.round(np.clip(boxes, 0, 1), BOX_DECIMALS).tolist()


def _extent(shown: Shown) -> tuple[np.ndarray, np.ndarray]:
    corners = CORNERS.get(shown.shape, np.array([[-1, -1], [1, 1]]))  # a circle reaches its radius on all sides
    return shown.radius * corners.min(axis=0), shown.radius * corners.max(axis=0)


def _when(mover: Shown, guest: Shown, rng: np.random.Generator) -> MixedRow:
    return {"question": guest.question, "clue": list(guest.span_s)}


def _where(mover: Shown, guest: Shown, rng: np.random.Generator) -> MixedRow:
    return {"question": f"Where is the {mover.colour} {mover.shape}?", "clue": tracked_boxes(mover)}


def _which(mover: Shown, guest: Shown, rng: np.random.Generator) -> MixedRow:
    subject, verb = ((mover, "moves"), (guest, "appears"))[int(rng.integers(2))]
    return {"question": f"Which colour {verb}?", **choice_of_colour(subject.colour)}


def _which_and_when(mover: Shown, guest: Shown, rng: np.random.Generator) -> MixedRow:
    return {
        "question": "Which colour appears, and when?",
        **choice_of_colour(guest.colour),
        "clue": [list(guest.span_s)],
    }


def _what(mover: Shown, guest: Shown, rng: np.random.Generator) -> MixedRow:
    # worded so that sentence embeddings distinguish colours and verbs: with another of either, similarity <= 0.80
    events = [f"Something {mover.colour} moves.", f"Something {guest.colour} appears."]
    return {"question": "What happens?", "caption": " ".join(events), "events": events}


ROWS: Mapping[str, Callable[[Shown, Shown, np.random.Generator], MixedRow]] = {
    "temporal_grounding": _when,
    "tracking": _where,
    "multiple_choice": _which,
    "grounded_qa": _which_and_when,
    "captioning": _what,
}
"""Task -> the fields of a clip's row for it, besides video and duration."""


def choice_of_colour(colour: str) -> MixedRow:
    """Return the options and the answer of a row about a colour.

    All colours are options, in a fixed order: a model this small does not learn from shuffled ones.
    """
    colours = list(COLOURS)
    options = [f"({letter}) {colour}" for letter, colour in zip(LETTERS, colours, strict=True)]
    return {"options": options, "answer": f"({LETTERS[colours.index(colour)]})"}


def demonstration_text(item: PromptItem, rng: np.random.Generator, malformed_frac: float) -> str:
    """Return the correct answer to a row of this data set, as a model should write it; box corners to 0.05.

    A share `malformed_frac` of the answers is deliberately malformed, half without the think block and half without
    the answer tags. Raises ValueError for an item that is not from this data set.
    """
    if item.task == "temporal_grounding":
        return grounding_demonstration(item, rng, malformed_frac)
    if item.task not in _SOLUTIONS:
        raise _foreign(item)
    thought, answer, rest = _SOLUTIONS[item.task](item)
    think, tagged = f"<think>{thought}</think>", f"<answer>{answer}</answer>{rest}"
    if rng.random() >= malformed_frac:
        return think + tagged
    return tagged if rng.random() < 0.5 else think + answer + rest


def _follow(item: PromptItem) -> tuple[str, str, str]:
    rows = ",".join("[" + ",".join(_corner(value) for value in box) + "]" for box in item.truth)
    subject = _SUBJECT.search(item.question)
    if subject is None:
        raise _foreign(item)
    return subject.group(), f"[{rows}]", ""


def _corner(value: float) -> str:
    return f"{round(value / BOX_STEP) * BOX_STEP:.2f}"


def _choose(item: PromptItem) -> tuple[str, str, str]:
    return _chosen(item.truth, item), item.truth, ""


def _choose_and_locate(item: PromptItem) -> tuple[str, str, str]:
    periods = ", ".join(f"({start_s:.1f}, {end_s:.1f})" for start_s, end_s in item.truth["glue"])
    return _chosen(item.truth["answer"], item), item.truth["answer"], f"<glue>[{periods}]</glue>"


def _describe(item: PromptItem) -> tuple[str, str, str]:
    """Return a caption and a thought that names the colours of the caption, in its order."""
    caption = item.truth["caption"]
    colours = [word for word in caption.split() if word in COLOURS]
    if not colours:
        raise _foreign(item)
    return " ".join(colours), caption, ""


def _chosen(letter: str, item: PromptItem) -> str:
    values = [option.removeprefix(letter).strip() for option in item.options if option.startswith(letter)]
    if not values or values[0] not in COLOURS:
        raise _foreign(item)
    return values[0]


def _foreign(item: PromptItem) -> ValueError:
    return ValueError(
        f"{item.prompt_id}: {item.task} {item.question!r} is not a question of the synthetic data set: no known answer."
    )


_SOLUTIONS: Mapping[str, Callable[[PromptItem], tuple[str, str, str]]] = {
    "tracking": _follow,
    "multiple_choice": _choose,
    "grounded_qa": _choose_and_locate,
    "captioning": _describe,
}
"""Task -> (thought, answer, further blocks) of an item."""
