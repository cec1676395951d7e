"""The shapes of annotation files, one reader each: parsed JSON in, rows with their problems out."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, Field, StringConstraints, ValidationError

from rlsys.types import Json

GOT10K_FPS = 10.0  # frames a second of GOT-10k's sequences
GOT10K_FRAMES = 8  # boxes a row has


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is wrong with a row: field, value and rule in words; mended says that `Row.truth` is without it."""

    field: str
    text: str
    mended: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """One query of an annotation file. label: its place in the file.  video: as the file names it."""

    label: str
    video: str
    question: str = ""
    options: tuple[str, ...] = ()
    truth: Json = None
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Format:
    """task: of every row.  read: raises TypeError when the file as a whole has another shape.

    candidates: paths, relative to the folder of videos, where a video of this name may be.
    """

    task: str
    read: Callable[[Json], Iterator[Row]]
    candidates: Callable[[str], tuple[str, ...]]
    has_frame_folders: bool = False


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


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


def read_charades(tree: Json) -> Iterator[Row]:
    """`{video: {duration, timestamps: [[s, e]…], sentences: […]}}`: one row per sentence."""
    if not isinstance(tree, dict):
        raise TypeError(f"an object of videos is expected, this is a {type(tree).__name__}")
    for video, entry in tree.items():
        try:
            checked = _CharadesVideo.model_validate(entry)
        except ValidationError as error:
            yield Row(label=video, video=video, problems=_structure(error))
            continue
        if len(checked.timestamps) != len(checked.sentences):
            text = f"{len(checked.timestamps)} time spans for {len(checked.sentences)} sentences; pair them"
            yield Row(label=video, video=video, problems=(Problem(field="timestamps", text=text),))
            continue
        yield from _charades_rows(video, checked)


def _charades_rows(video: str, entry: _CharadesVideo) -> Iterator[Row]:
    seen: set[tuple[str, str]] = set()
    for index, (value, sentence) in enumerate(zip(entry.timestamps, entry.sentences, strict=True)):
        truth, problem = read_span(value, entry.duration, "timestamps")
        problems = [problem] if problem else []
        if not isinstance(sentence, str) or not sentence.strip():
            problems.append(Problem(field="sentences", text=f"{sentence!r} is not a sentence"))
            sentence = ""
        key = (repr(value), " ".join(sentence.lower().split()))
        if key in seen:
            problems.append(Problem(field="sentences", text=f"{sentence!r} with {value} is there twice"))
        seen.add(key)
        yield Row(
            label=f"{video}/{index}", video=video, question=sentence.strip(), truth=truth, problems=tuple(problems)
        )


def read_nextgqa(tree: Json) -> Iterator[Row]:
    """List of `{video, question, options, answer, glue: [[s, e]…], duration}`."""
    seen: set[tuple[str, ...]] = set()
    for label, entry in _listed(tree):
        try:
            row = _NextGqaRow.model_validate(entry)
        except ValidationError as error:
            yield Row(label=label, video=_name(entry, "video"), problems=_structure(error))
            continue
        problems = list(_option_problems(row))
        spans = []
        for value in row.glue:
            span, problem = read_span(value, row.duration, "glue")
            spans += [span] if span else []
            problems += [problem] if problem else []
        key = (row.video, row.question, *row.options)
        if key in seen:
            problems.append(Problem(field="question", text=f"{row.question!r} with the same options is there twice"))
        seen.add(key)
        yield Row(
            label=label,
            video=row.video,
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


def read_got10k(tree: Json) -> Iterator[Row]:
    """List of `{path, object, gt: 8 boxes}`, boxes [x0, y0, x1, y1] normalised to 0..1."""
    seen: set[tuple[str, str]] = set()
    for label, entry in _listed(tree):
        try:
            row = _Got10kRow.model_validate(entry)
        except ValidationError as error:
            yield Row(label=label, video=_name(entry, "path"), problems=_structure(error))
            continue
        problems = [
            Problem(field="gt", text=f"box {index} is {box}, not [x0, y0, x1, y1] with 0 <= x0 < x1 <= 1, likewise y")
            for index, box in enumerate(row.gt)
            if not _is_box(box)
        ]
        if len(row.gt) != GOT10K_FRAMES:
            problems.append(Problem(field="gt", text=f"{len(row.gt)} boxes, {GOT10K_FRAMES} are expected"))
        if (row.path, row.object) in seen:
            problems.append(Problem(field="object", text=f"{row.object!r} of {row.path} is there twice"))
        seen.add((row.path, row.object))
        yield Row(label=label, video=row.path, question=row.object, truth=row.gt, problems=tuple(problems))


def read_span(value: Json, duration_s: float, field: str) -> tuple[list[float] | None, Problem | None]:
    """[start, end] in seconds inside the clip, and what was wrong with it; None when it cannot be mended."""
    if not (isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))):
        return None, Problem(field=field, text=f"{value!r} is not [start, end] in seconds")
    start_s, end_s = float(value[0]), float(value[1])
    if end_s <= start_s:
        return None, Problem(field=field, text=f"{value} does not end after it starts")
    if start_s >= duration_s or end_s <= 0:
        return None, Problem(field=field, text=f"{value} is outside the clip of {duration_s:g} s")
    if start_s < 0 or end_s > duration_s:
        span = [max(start_s, 0.0), min(end_s, duration_s)]
        return span, Problem(field=field, text=f"{value} goes past the clip of {duration_s:g} s", mended=True)
    return [start_s, end_s], None


def _is_number(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_box(box: Json) -> bool:
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        return False
    return 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1


def _listed(tree: Json) -> Iterator[tuple[str, Json]]:
    if not isinstance(tree, list):
        raise TypeError(f"a list of rows is expected, this is a {type(tree).__name__}")
    return ((str(index), entry) for index, entry in enumerate(tree))


def _name(entry: Json, field: str) -> str:
    return str(entry.get(field, "")) if isinstance(entry, dict) else ""


def _structure(error: ValidationError) -> tuple[Problem, ...]:
    return tuple(
        Problem(field=".".join(map(str, e["loc"])) or "(row)", text=f"{e['msg']} (value {_short(e['input'])})")
        for e in error.errors()
    )


def _short(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


_SUFFIXES = ("", ".mp4", ".mkv", ".webm", ".avi", ".mov")


def _video_files(name: str) -> tuple[str, ...]:
    """Charades-STA names videos without a suffix, NExT-GQA by a path that a flat folder does not have."""
    flat = name.rsplit("/", 1)[-1]
    return tuple(dict.fromkeys(f"{base}{suffix}" for base in (name, flat) for suffix in _SUFFIXES))


def _frame_folders(name: str) -> tuple[str, ...]:
    """GOT-10k rows carry the absolute path of the authors' machine: `…/val/GOT-10k_Val_000010`."""
    parts = name.strip("/").split("/")
    return ("/".join(parts[-1:]), "/".join(parts[-2:]), "/".join(parts))


FORMATS: Mapping[str, Format] = {
    "charades_sta": Format(task="temporal_grounding", read=read_charades, candidates=_video_files),
    "nextgqa": Format(task="grounded_qa", read=read_nextgqa, candidates=_video_files),
    "got10k": Format(task="tracking", read=read_got10k, candidates=_frame_folders, has_frame_folders=True),
}
