"""Rows of annotation files and what can be wrong with them; the checks that the formats share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, Field, StringConstraints, ValidationError
from pydantic_core import PydanticCustomError

from rlsys.data.annotations.times import plain_rate, plain_seconds
from rlsys.types import Json

Medium = Literal["video", "frames", "clip", "image", "list"]
"""A video file, a folder of frame images, either of them, a still image, or a list of frame images."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is wrong with a row: field, value and rule in words.

    is_fixed: `AnnotationRow.truth` is already without it.  is_contradiction: the row holds two statements that cannot
    both be right, and guessing is not safe; the file is refused.  is_missing: the video is not there.
    is_counted: an evaluation of all published rows takes the row in spite of it; see `AnnotationRow.counted`.
    """

    field: str
    text: str
    is_fixed: bool = False
    is_counted: bool = False
    is_contradiction: bool = False
    is_missing: bool = False


@dataclass(frozen=True, kw_only=True)
class Counted:
    """The task of a row and its truth as the file states it, spans past the clip included."""

    task: str
    truth: Json


@dataclass(frozen=True, kw_only=True)
class AnnotationRow:
    """One query of an annotation file.

    label: its place in the file.  video: video, frame folder or image as the file names it.  task: "" when the
    row has problems that leave it open.  needs_size: the truth's boxes are pixels of an image whose size the file
    does not give; see `rlsys.data.annotations.vtts.with_size`.  window_s: the part of a
    longer file that the row is about; the truth's times count from its start.  fps: images per second of a frame
    folder or a list.  duration_s: length that the row gives for what it is about.  labels: see `PromptItem`.
    frames: the images of a list, which are one video; `video` names the first.
    images, videos: further images and videos, shown in this order after the first medium.  thought: see `PromptItem`.
    counted: what an evaluation of all published rows takes for `task` and `truth`, where that differs.
    """

    label: str
    video: str
    medium: Medium = "video"
    task: str = ""
    question: str = ""
    options: tuple[str, ...] = ()
    truth: Json = None
    needs_size: bool = False
    window_s: tuple[float, float] | None = None
    fps: float | None = None
    duration_s: float | None = None
    labels: Mapping[str, str | float] = field(default_factory=dict)
    frames: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()
    thought: str = ""
    counted: Counted | None = None
    problems: tuple[Problem, ...] = ()

    def as_published(self) -> AnnotationRow:
        """Return the row as an evaluation of all published rows takes it, with the problems that stand against it."""
        kept = tuple(problem for problem in self.problems if not (problem.is_counted or problem.is_fixed))
        if self.counted is None:
            return replace(self, problems=kept)
        return replace(self, task=self.counted.task, truth=self.counted.truth, problems=kept)


@dataclass(frozen=True, kw_only=True)
class BadLine:
    """A line of a JSONL file that is not JSON, and why."""

    problem: str


def _number(value: Json) -> Json:
    if isinstance(value, bool):  # 1.0 and 0.0 to pydantic
        raise PydanticCustomError("float_type", "Input should be a valid number")
    return plain_seconds(value)


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_number)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Entry(BaseModel):
    """The fields of one entry of an annotation file, which the format's own class turns into a row.

    VIDEO: the field that names the video.
    """

    VIDEO: ClassVar[str] = "video"

    @abstractmethod
    def row(self, label: str) -> AnnotationRow:
        """Return the row of this entry. label: its place in the file."""

    @abstractmethod
    def identity(self) -> Hashable:
        """Return what no two entries of a file may have in common."""

    @abstractmethod
    def repetition(self) -> Problem:
        """Return the problem of an entry whose identity an earlier entry has."""


def read_entries(kind: type[Entry], entries: Iterable[tuple[str, Json]]) -> Iterator[AnnotationRow]:
    """Yield the row of each (label, entry), with its problems: fields that are missing or broken, or a repetition."""
    repeats = Repeats()
    for label, entry in entries:
        try:
            checked = kind.model_validate(entry)
        except ValidationError as error:
            yield broken_row(label, entry, error, kind.VIDEO)
            continue
        row = checked.row(label)
        if repeats.add(checked.identity()):
            repetition = replace(checked.repetition(), is_counted=True)
            row = replace(row, problems=(*row.problems, repetition))
        yield row


class Repeats:
    """The identities of the rows that were read, by which a repetition is noticed."""

    def __init__(self) -> None:
        self._seen: set[Hashable] = set()

    def add(self, identity: Hashable) -> bool:
        """Add an identity and return whether it was there before."""
        if identity in self._seen:
            return True
        self._seen.add(identity)
        return False


def _part_names(side: str) -> tuple[str, ...]:
    """Return the names that data sets give the start or the end of a part of a video, in seconds."""
    sides = ("start", "begin") if side == "start" else ("end", "stop")
    bases = [f"{what}{one}" for what in ("video_", "clip_", "segment_", "") for one in sides]
    return tuple(f"{base}{unit}" for unit in ("", "_s", "_sec", "_seconds", "_time") for base in bases)


class PartFields(BaseModel):
    """Fields of a row that is about a part of a longer file, or about a folder of frames."""

    video_start: Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(_number)] | None = Field(
        default=None, validation_alias=AliasChoices(*_part_names("start"))
    )
    video_end: Seconds | None = Field(default=None, validation_alias=AliasChoices(*_part_names("end")))
    fps: Annotated[Seconds, BeforeValidator(plain_rate)] | None = Field(
        default=None, validation_alias=AliasChoices("fps", "sample_fps", "frame_rate")
    )

    @property
    def window_s(self) -> tuple[float, float] | None:
        """The part in seconds of the file, None for all of it or where the row contradicts itself."""
        if self.video_end is None or self.video_end <= (self.video_start or 0.0):
            return None
        return self.video_start or 0.0, self.video_end

    def part_problems(self) -> tuple[Problem, ...]:
        """Return what is wrong with the part that the row names."""
        if self.video_end is None and self.video_start:
            return (Problem(field="video_end", text=f"video_start is {self.video_start:g} and there is no end"),)
        if self.video_end is not None and self.window_s is None:
            text = f"the part from {self.video_start:g} to {self.video_end:g} s does not end after it starts"
            return (Problem(field="video_end", text=text),)
        return ()


def read_span(value: Json, duration_s: float, field: str) -> tuple[list[float] | None, Problem | None]:
    """Return [start, end] in seconds inside the clip, or None if it cannot be fixed, and what was wrong with it.

    duration_s: infinite when it is not known.
    """
    if not (isinstance(value, list) and len(value) == 2 and all(map(is_number, value))):
        return None, Problem(field=field, text=f"{short(value)} is not [start, end] in seconds")
    start_s, end_s = float(value[0]), float(value[1])
    if end_s <= start_s:
        return None, Problem(field=field, text=f"{value} does not end after it starts")
    if start_s >= duration_s or end_s <= 0:
        what = f"{value} is outside the clip of {duration_s:g} s"
        if 0 < end_s / 1000 <= duration_s < end_s / 50:
            what += "; divided by 1,000 it is inside: it seems to be in milliseconds, convert the file to seconds"
        return None, Problem(field=field, text=what, is_counted=True)
    if start_s < 0 or end_s > duration_s:
        span = [max(start_s, 0.0), min(end_s, duration_s)]
        what = "starts before the clip" if end_s <= duration_s else f"goes past the clip of {duration_s:g} s"
        return span, Problem(field=field, text=f"{value} {what}", is_fixed=True)
    return [start_s, end_s], None


def stated_span(value: Json) -> list[float] | None:
    """Return [start, end] as a file states it, past the clip or not; None if it does not end after it starts.

    A start before the clip is 0, because no answer is earlier.
    """
    if not (isinstance(value, list) and len(value) == 2 and all(map(is_number, value)) and value[0] < value[1]):
        return None
    return [max(float(value[0]), 0.0), float(value[1])] if value[1] > 0 else None


def read_glue(
    answer: str | None, values: list[Json], duration_s: float, field: str
) -> tuple[list[list[float]], Counted | None, list[Problem]]:
    """Read the periods of a row of grounded QA: those inside the clip, the truth as published, and what is wrong.

    answer: the right letter, such as "(C)".  duration_s: infinite when it is not known.
    A row without any period counts as one of multiple choice, because the official metric takes the periods of such
    a question for unknown; a period that does not end after it starts counts for nothing beside others.
    """
    if not values:
        missing = Problem(field=field, text="there is no period", is_counted=True)
        return [], Counted(task="multiple_choice", truth=answer), [missing]
    read = [read_span(value, duration_s, field) for value in values]
    spans = [span for span, _ in read if span]
    stated = [span for span in map(stated_span, values) if span]
    problems = [replace(problem, is_counted=bool(stated)) for _, problem in read if problem]
    truth = {"answer": answer, "glue": stated}
    return spans, Counted(task="grounded_qa", truth=truth) if problems and stated else None, problems


def is_number(value: Json) -> bool:
    # the bound comes first: isfinite() of an integer with hundreds of digits raises OverflowError
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12 and math.isfinite(value)


def is_unit_box(box: Json) -> bool:
    """Return whether a box is [x0, y0, x1, y1] in fractions of width and height, with an area."""
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
        return False
    return bool(0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1)


def listed(tree: Json) -> Iterator[tuple[str, Json]]:
    """Yield (label, entry) of a file that is one JSON list."""
    if not isinstance(tree, list):
        raise TypeError(f"a list of rows is expected, this is a {type(tree).__name__}")
    return ((str(index), entry) for index, entry in enumerate(tree))


def broken_row(label: str, entry: Json, error: ValidationError, field: str = "video") -> AnnotationRow:
    """Return the row of an entry that lacks the fields of its format."""
    if isinstance(entry, BadLine):
        return AnnotationRow(label=label, video="", problems=(Problem(field="(row)", text=entry.problem),))
    name = str(entry.get(field, "")) if isinstance(entry, dict) else ""
    problems = (
        Problem(field=".".join(map(str, e["loc"])) or "(row)", text=f"{e['msg']} (value {short(e['input'])})")
        for e in error.errors()
    )
    return AnnotationRow(label=label, video=name, medium="clip", problems=tuple(problems))


def short(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
