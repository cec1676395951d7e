"""Synthetic video clips: coloured shapes that appear and disappear, with exact time spans.

They are small enough for a model of a million parameters to learn on two cores, yet real files: they are
encoded, decoded and annotated (in the format of Charades-STA) like any other data set.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from rlsys.types import PromptItem

COLOURS = {"red": (220, 40, 40), "green": (40, 190, 60), "blue": (50, 80, 230), "yellow": (235, 215, 50)}  # RGB
SHAPES = ("square", "circle", "triangle")
TIME_STEP_S = 0.5  # spans begin and end on this grid, which two frames a second resolve exactly
SHORTEST_S, LONGEST_S = 1.0, 3.0  # how long an object is visible
NOISE = 8  # largest deviation, in grey levels
SUBPIXEL_BITS = 4
_SUBJECT = re.compile(r"\b(" + "|".join(COLOURS) + r") (" + "|".join(SHAPES) + r")\b")


@dataclass(frozen=True, kw_only=True)
class SyntheticSet:
    """A synthetic data set. annotations: a file in the format of Charades-STA.  videos: the folder of `<id>.mp4`."""

    annotations: Path
    videos: Path


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An object of a clip. span_s: when it is visible. Positions and radius are fractions of the frame's side."""

    colour: str
    shape: str
    span_s: tuple[float, float]
    radius: float
    start: tuple[float, float]
    end: tuple[float, float]

    @property
    def question(self) -> str:
        """The question whose answer is the time span of the object."""
        return f"When does the {self.colour} {self.shape} appear?"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The description of a clip before rendering."""

    duration_s: float
    fps: int
    grey: int
    objects: tuple[Shown, ...]


def draw_dataset(
    folder: Path,
    *,
    num_clips: int,
    seed: int,
    durations_s: Sequence[float] = (4.0, 5.0, 6.0),
    source_fps: Sequence[int] = (4, 6, 8, 10),
    size_px: int = 56,
    num_objects: int = 2,
    visible_s: tuple[float, float] = (SHORTEST_S, LONGEST_S),
) -> SyntheticSet:
    """Render and encode `num_clips` clips into `folder`; every object of a clip is a query.

    The same arguments give the same files, byte for byte; clip i depends on (seed, i) alone, so a larger
    set begins with the smaller one. visible_s: bounds on how long an object is visible. Durations must be
    multiples of 0.5 s and frame rates even, so that every boundary falls on a frame. Raises ValueError for others.
    """
    _check(num_clips, durations_s, source_fps, num_objects)
    videos = folder / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    rows = {}
    for index in range(num_clips):
        rng = np.random.default_rng((seed, index))
        scene = compose(rng, durations_s, source_fps, num_objects, visible_s)
        name = f"{index:05d}"
        encode(videos / f"{name}.mp4", render(scene, size_px, rng), scene.fps)
        rows[name] = {
            "duration": scene.duration_s,
            "timestamps": [list(shown.span_s) for shown in scene.objects],
            "sentences": [shown.question for shown in scene.objects],
        }
    annotations = folder / "annotations.json"
    annotations.write_text(json.dumps(rows, indent=1))
    return SyntheticSet(annotations=annotations, videos=videos)


def _check(num_clips: int, durations_s: Sequence[float], source_fps: Sequence[int], num_objects: int) -> None:
    if num_clips < 1:
        raise ValueError(f"num_clips={num_clips}: use 1 or more.")
    if bad := [d for d in durations_s if d < LONGEST_S or d % TIME_STEP_S]:
        raise ValueError(f"durations_s={bad}: use multiples of {TIME_STEP_S} s of at least {LONGEST_S} s.")
    if bad := [f for f in source_fps if f < 2 or f % 2]:
        raise ValueError(f"source_fps={bad}: use even numbers, so that boundaries fall on frames.")
    if not 1 <= num_objects <= len(SHAPES):
        raise ValueError(
            f"num_objects={num_objects}: use 1 to {len(SHAPES)}, because the objects differ in colour and shape."
        )


def compose(
    rng: np.random.Generator,
    durations_s: Sequence[float],
    source_fps: Sequence[int],
    num_objects: int,
    visible_s: tuple[float, float] = (SHORTEST_S, LONGEST_S),
) -> Scene:
    """Return a random scene: objects of different colours and shapes, side by side, each visible for a short time."""
    duration_s = float(rng.choice(np.asarray(durations_s)))
    colours = rng.choice(list(COLOURS), num_objects, replace=False)
    shapes = rng.choice(SHAPES, num_objects, replace=False)
    columns = (rng.permutation(num_objects) + 0.5) / num_objects
    objects = tuple(
        _place(rng, str(colour), str(shape), duration_s, float(column), visible_s)
        for colour, shape, column in zip(colours, shapes, columns, strict=True)
    )
    return Scene(
        duration_s=duration_s,
        fps=int(rng.choice(np.asarray(source_fps))),
        grey=int(rng.integers(96, 145)),
        objects=objects,
    )


def _place(
    rng: np.random.Generator,
    colour: str,
    shape: str,
    duration_s: float,
    column: float,
    visible_s: tuple[float, float],
) -> Shown:
    shortest_s, longest_s = visible_s
    steps = int(rng.integers(round(shortest_s / TIME_STEP_S), round(longest_s / TIME_STEP_S), endpoint=True))
    first = int(rng.integers(0, round(duration_s / TIME_STEP_S) - steps, endpoint=True))
    radius = float(rng.uniform(0.18, 0.24))
    start = np.array([column + rng.uniform(-0.06, 0.06), rng.uniform(radius, 1 - radius)])
    angle, distance = rng.uniform(0, 2 * math.pi), rng.uniform(0.04, 0.12)
    end = start + distance * np.array([math.cos(angle), math.sin(angle)])
    inside = np.clip([start, end], radius, 1 - radius)
    return Shown(
        colour=colour,
        shape=shape,
        span_s=(first * TIME_STEP_S, (first + steps) * TIME_STEP_S),
        radius=radius,
        start=(float(inside[0, 0]), float(inside[0, 1])),
        end=(float(inside[1, 0]), float(inside[1, 1])),
    )


def render(scene: Scene, size_px: int, rng: np.random.Generator) -> np.ndarray:
    """Return the scene's frames, u8 [T, H, W, 3] RGB, T = duration x fps.

    An object is on the frames with start <= time < end.
    """
    noise = rng.integers(-NOISE, NOISE + 1, (size_px, size_px, 1))
    background = np.repeat((scene.grey + noise).astype(np.uint8), 3, axis=2)
    frames = np.repeat(background[None], round(scene.duration_s * scene.fps), axis=0)
    for index, frame in enumerate(frames):
        for shown in scene.objects:
            if shown.span_s[0] <= index / scene.fps < shown.span_s[1]:
                _draw(frame, shown, index / scene.fps)
    return frames


def _draw(frame: np.ndarray, shown: Shown, time_s: float) -> None:
    size, (start_s, end_s) = frame.shape[0], shown.span_s
    share = (time_s - start_s) / (end_s - start_s)
    centre = np.array(shown.start) * (1 - share) + np.array(shown.end) * share
    colour = COLOURS[shown.colour]
    if shown.shape == "circle":
        at = tuple(int(value) for value in _subpixels(centre, size))
        radius = round(shown.radius * size * (1 << SUBPIXEL_BITS))
        cv2.circle(frame, at, radius, colour, -1, cv2.LINE_AA, SUBPIXEL_BITS)
        return
    corners = _subpixels(centre + shown.radius * CORNERS[shown.shape], size)
    cv2.fillPoly(frame, [corners], colour, cv2.LINE_AA, SUBPIXEL_BITS)


CORNERS = {
    "square": 0.88 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]),
    "triangle": np.array([[0, -1], [1, 0.9], [-1, 0.9]]),
}
"""Outlines in units of the radius, [corner, (x, y)], y downwards."""


def _subpixels(points: np.ndarray, size: int) -> np.ndarray:
    return np.round(points * size * (1 << SUBPIXEL_BITS)).astype(np.int32)


def encode(path: Path, frames: np.ndarray, fps: float, codec: str = "mp4v") -> None:
    """Write u8 [T, H, W, 3] RGB frames as a video file. Raises OSError if the disk does not take it."""
    height, width = frames.shape[1:3]
    path.open("ab").close()  # says why it cannot, which opencv does not
    if shutil.disk_usage(path.parent).free < frames.nbytes:  # opencv writes part of a file then, and says nothing
        path.unlink()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), fps, (width, height))
    if not writer.isOpened():
        raise OSError(errno.EINVAL, f"opencv cannot write {codec} video there", str(path))
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()


def demonstration_text(item: PromptItem, rng: np.random.Generator, malformed_frac: float) -> str:
    """Return the correct answer to a query of this data set, as a model should write it.

    A share `malformed_frac` of the answers is deliberately malformed, half without the think block and half
    without the answer tags, so that the format reward has something to teach.
    Raises ValueError for an item that is not from this data set.
    """
    subject = _SUBJECT.search(item.question)
    if subject is None or item.task != "temporal_grounding":
        raise ValueError(
            f"{item.prompt_id}: {item.question!r} does not ask for a synthetic object, so it has no known answer."
        )
    start_s, end_s = item.truth
    think, answer = f"<think>{subject.group()}</think>", f"{start_s:.1f} to {end_s:.1f}"
    if rng.random() >= malformed_frac:
        return f"{think}<answer>{answer}</answer>"
    return f"<answer>{answer}</answer>" if rng.random() < 0.5 else think + answer
