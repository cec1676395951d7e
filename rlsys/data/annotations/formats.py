"""The shapes of annotation files, one reader each: parsed JSON in, rows with their problems out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from rlsys.data.annotations.rows import (
    AnnotationRow,
    PartFields,
    Problem,
    Seconds,
    Text,
    broken_row,
    is_unit_box,
    listed,
    read_span,
    short,
)
from rlsys.data.annotations.vtts import CAPTION_QUESTION, read_vtts
from rlsys.tasks.truths import NUM_TRACKED_FRAMES
from rlsys.types import Json


@dataclass(frozen=True, kw_only=True)
class Format:
    """read: raises TypeError when the file as a whole has another shape.

    task: of every row; None when each row has its own.
    is_lines: one JSON object per line; `read` is then given a list of (line number, object or BadLine).
    """

    task: str | None
    read: Callable[[Json], Iterator[AnnotationRow]]
    is_lines: bool = False


class _CharadesVideo(BaseModel):
    duration: Seconds
    timestamps: list[Any]
    sentences: list[Any]


class _NextGqaRow(BaseModel):
    video: Text
    question: Text
    options: list[Text] = Field(min_length=2)
    answer: Text
    glue: list[Any] = Field(min_length=1)
    duration: Seconds


class _Got10kRow(BaseModel):
    path: Text
    object: Text
    gt: list[Any]


class _VidtabRow(BaseModel):
    video: Text
    instruction: Text
    answer: Text


class _CaptionRow(PartFields):
    video: Text
    caption: Text
    events: list[Text] | None = Field(default=None, min_length=1)
    question: Text = CAPTION_QUESTION
    duration: Seconds | None = None


def read_charades(tree: Json) -> Iterator[AnnotationRow]:
    """`{video: {duration, timestamps: [[s, e]…], sentences: […]}}`: one row per sentence."""
    if not isinstance(tree, dict):
        raise TypeError(f"an object of videos is expected, this is a {type(tree).__name__}")
    for video, entry in tree.items():
        try:
            checked = _CharadesVideo.model_validate(entry)
        except ValidationError as error:
            yield AnnotationRow(label=video, video=video, problems=broken_row(video, entry, error).problems)
            continue
        if len(checked.timestamps) != len(checked.sentences):
            text = f"{len(checked.timestamps)} time spans for {len(checked.sentences)} sentences; pair them"
            yield AnnotationRow(label=video, video=video, problems=(Problem(field="timestamps", text=text),))
            continue
        yield from _charades_rows(video, checked)


def _charades_rows(video: str, entry: _CharadesVideo) -> Iterator[AnnotationRow]:
    seen: set[tuple[str, str]] = set()
    for index, (value, sentence) in enumerate(zip(entry.timestamps, entry.sentences, strict=True)):
        truth, problem = read_span(value, entry.duration, "timestamps")
        problems = [problem] if problem else []
        if not isinstance(sentence, str) or not sentence.strip():
            problems.append(Problem(field="sentences", text=f"{sentence!r} is not a sentence"))
            sentence = ""
        key = (repr(value), " ".join(sentence.lower().split()))
        if key in seen:
            problems.append(Problem(field="sentences", text=f"{sentence!r} with {value} occurs twice"))
        seen.add(key)
        yield AnnotationRow(
            label=f"{video}/{index}",
            video=video,
            task="temporal_grounding",
            question=sentence.strip(),
            truth=truth,
            problems=tuple(problems),
        )


def read_nextgqa(tree: Json) -> Iterator[AnnotationRow]:
    """List of `{video, question, options, answer, glue: [[s, e]…], duration}`."""
    seen: set[tuple[str, ...]] = set()
    for label, entry in listed(tree):
        try:
            row = _NextGqaRow.model_validate(entry)
        except ValidationError as error:
            yield broken_row(label, entry, error)
            continue
        problems = list(_option_problems(row))
        spans = []
        for value in row.glue:
            span, problem = read_span(value, row.duration, "glue")
            spans += [span] if span else []
            problems += [problem] if problem else []
        key = (row.video, row.question, *row.options)
        if key in seen:
            problems.append(Problem(field="question", text=f"{row.question!r} with the same options occurs twice"))
        seen.add(key)
        yield AnnotationRow(
            label=label,
            video=row.video,
            task="grounded_qa",
            question=row.question,
            options=tuple(row.options),
            truth={"answer": row.answer, "glue": spans},
            problems=tuple(problems),
        )


def _option_problems(row: _NextGqaRow) -> Iterator[Problem]:
    letters = []
    for option in row.options:
        match = re.match(r"\([A-Z]\)", option)
        if match is None:
            yield Problem(field="options", text=f"{option!r} does not begin with a letter such as (A)")
        else:
            letters.append(match.group())
    if len(set(letters)) < len(letters):
        yield Problem(field="options", text=f"letters {' '.join(letters)} repeat")
    if row.answer not in letters:
        yield Problem(field="answer", text=f"{row.answer!r} is not among the options {' '.join(letters)}")


def read_got10k(tree: Json) -> Iterator[AnnotationRow]:
    """List of `{path, object, gt: 8 boxes}`, boxes [x0, y0, x1, y1] normalised to 0..1."""
    seen: set[tuple[str, str]] = set()
    for label, entry in listed(tree):
        try:
            row = _Got10kRow.model_validate(entry)
        except ValidationError as error:
            yield broken_row(label, entry, error, "path")
            continue
        problems = [
            Problem(field="gt", text=f"box {index} is {box}, not [x0, y0, x1, y1] with 0 <= x0 < x1 <= 1, likewise y")
            for index, box in enumerate(row.gt)
            if not is_unit_box(box)
        ]
        if len(row.gt) != NUM_TRACKED_FRAMES:
            problems.append(Problem(field="gt", text=f"{len(row.gt)} boxes, {NUM_TRACKED_FRAMES} are expected"))
        if (row.path, row.object) in seen:
            problems.append(Problem(field="object", text=f"{row.object!r} of {row.path} occurs twice"))
        seen.add((row.path, row.object))
        yield AnnotationRow(
            label=label,
            video=row.path,
            medium="frames",
            task="tracking",
            question=row.object,
            truth=row.gt,
            problems=tuple(problems),
        )


def read_vidtab(tree: Json) -> Iterator[AnnotationRow]:
    """List of `{video, instruction, answer}`: the instruction names the classes as `['low quality', …]`."""
    seen: set[tuple[str, str]] = set()
    for label, entry in listed(tree):
        try:
            row = _VidtabRow.model_validate(entry)
        except ValidationError as error:
            yield broken_row(label, entry, error)
            continue
        problems = []
        classes = [name.casefold() for name in re.findall(r"'([^']{1,200})'", row.instruction)]
        if classes and row.answer.casefold() not in classes:
            text = f"{short(row.answer)} is not among the classes that the instruction names: {', '.join(classes)}"
            problems.append(Problem(field="answer", text=text))
        if (row.video, row.instruction) in seen:
            problems.append(Problem(field="video", text=f"{row.video!r} with the same instruction occurs twice"))
        seen.add((row.video, row.instruction))
        yield AnnotationRow(
            label=label,
            video=row.video,
            task="video_quality",
            question=row.instruction,
            truth=row.answer,
            problems=tuple(problems),
        )


def read_captions(lines: Json) -> Iterator[AnnotationRow]:
    """Lines of `{video, caption, events?, question?}`; events are the caption's, for evaluation."""
    seen: set[tuple[str, str]] = set()
    for label, entry in lines:
        try:
            row = _CaptionRow.model_validate(entry)
        except ValidationError as error:
            yield broken_row(label, entry, error)
            continue
        problems = []
        if (row.video, row.question) in seen:
            problems.append(Problem(field="video", text=f"{row.video!r} with the same question occurs twice"))
        seen.add((row.video, row.question))
        problems += row.part_problems()
        events = {"events": row.events} if row.events else {}
        yield AnnotationRow(
            label=label,
            video=row.video,
            medium="clip",
            task="captioning",
            question=row.question,
            truth={"caption": row.caption, **events},
            window_s=row.window_s,
            fps=row.fps,
            duration_s=row.duration,
            problems=tuple(problems),
        )


FORMATS: Mapping[str, Format] = {
    "charades_sta": Format(task="temporal_grounding", read=read_charades),
    "nextgqa": Format(task="grounded_qa", read=read_nextgqa),
    "got10k": Format(task="tracking", read=read_got10k),
    "vidtab": Format(task="video_quality", read=read_vidtab),
    "captions": Format(task="captioning", read=read_captions, is_lines=True),
    "vtts": Format(task=None, read=read_vtts, is_lines=True),
}
