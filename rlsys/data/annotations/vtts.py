"""VTTS-like rows: what a row is annotated with decides its task, and so its rewards. Source: VTTS §A.1."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any, Self

from pydantic import AliasChoices, Field, field_validator, model_validator

from rlsys.data.annotations.clues import Clue, Size, inside_frame, read_clue
from rlsys.data.annotations.media import IMAGE_SUFFIXES
from rlsys.data.annotations.options import Option, read_options, right_letter
from rlsys.data.annotations.rows import (
    AnnotationRow,
    Counted,
    Entry,
    PartFields,
    Problem,
    Seconds,
    Text,
    is_number,
    short,
)
from rlsys.data.annotations.sets.records import as_list
from rlsys.data.annotations.times import plain_times
from rlsys.tasks.answers import UNKNOWN, read_choice, read_number, read_phrase
from rlsys.tasks.lenient_number import number as lenient_number
from rlsys.tasks.table import task_name
from rlsys.types import Json

CAPTION_QUESTION = "Describe what happens in the video."

ROUTES: Mapping[frozenset[str], str] = {
    frozenset({"letter"}): "multiple_choice",
    frozenset({"number"}): "numeric_qa",
    frozenset({"phrase"}): "video_quality",
    frozenset({"caption"}): "captioning",
    frozenset({"periods"}): "temporal_grounding",
    frozenset({"box"}): "spatial_grounding",
    frozenset({"boxes"}): "tracking",
    frozenset({"periods", "box"}): "spatiotemporal_grounding",
    frozenset({"letter", "periods"}): "grounded_qa",
    frozenset({"letter", "box"}): "spatial_qa",
    frozenset({"letter", "periods", "box"}): "spatiotemporal_qa",
}
"""What a row is annotated with -> its task. An answer is a "letter" when there are options."""
_NEEDS = {task: kinds for kinds, task in ROUTES.items()}
_FIELDS = {"letter": "answer", "number": "answer", "phrase": "answer", "words": "answer", "caption": "caption"}


class VttsEntry(PartFields, Entry):
    """An entry `{video or image (one, or a list of several) or image_list, question, options?, clue?, answer?,
    caption?, events?, task?, think?, duration?, width?, height?, video_start?, video_end?, fps?, split?}`.

    `image_list`, or a list of images as `video`, names the images of one video, of which `fps` a second were taken, or
    all in `duration` seconds.
    `video_start` and `video_end`, or `start` and `end`, name the part of the file that the row is about.
    Without a clue, an answer of periods or boxes is the clue of a row that asks for one.
    `task` must agree with the annotations, where it is given; a class phrase as the answer needs it
    (video_quality). A tracking clue has eight boxes, one for each of eight evenly spaced frames: first and
    last included in a folder of frames, at the starts of eight equal parts in a video file.
    `think` is reasoning that leads to the answer, which `rlsys sft` imitates; no score reads it. Keys of other names
    are left alone.
    """

    video: Text | list[Text] | None = Field(default=None, validation_alias=AliasChoices("video", "videos"))
    image: Text | list[Text] | None = Field(default=None, validation_alias=AliasChoices("image", "images"))
    image_list: list[Text] | None = Field(default=None, min_length=2)
    question: str = ""
    options: Any = None
    clue: Any = None
    answer: Any = None
    caption: Text | None = None
    events: list[Text] | None = Field(default=None, min_length=1)
    task: Text | None = None
    think: Any = None
    duration: Seconds | None = None
    width: Seconds | None = None
    height: Seconds | None = None
    split: Text | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _nothing_is_none(cls, value: Json) -> Json:
        """Read "", [] and {} as None: merged data sets write what a row does not have so."""
        return None if value in ("", [], {}) else value

    @property
    def videos(self) -> list[str]:
        """The names of the videos."""
        return self.video if isinstance(self.video, list) else [self.video] if self.video else []

    @property
    def images(self) -> list[str]:
        """The names of the images."""
        return self.image if isinstance(self.image, list) else [self.image] if self.image else []

    @field_validator("clue", mode="after")
    @classmethod
    def _written_as_text(cls, value: Json) -> Json:
        return plain_times(as_list(value))

    @model_validator(mode="after")
    def _pictures_are_a_list(self) -> Self:
        """Take a list of pictures as `video` for the frames of one, as in Qwen's messages."""
        if len(self.videos) > 1 and all(PurePath(name).suffix.lower() in IMAGE_SUFFIXES for name in self.videos):
            self.image_list = self.image_list or self.videos
            self.video = None
        return self

    @field_validator("task", mode="after")
    @classmethod
    def _one_name(cls, value: str | None) -> str | None:
        return None if value is None else task_name(value)

    @model_validator(mode="after")
    def _place_is_the_clue(self) -> Self:
        is_place = isinstance(self.answer, list) and all(is_number(one) or isinstance(one, list) for one in self.answer)
        if is_place and self.clue is None and self.options is None:
            self.clue, self.answer = self.answer, None
        return self

    @field_validator("question", mode="before")
    @classmethod
    def _no_question_is_empty(cls, value: Json) -> Json:
        return "" if value is None else value

    def row(self, label: str) -> AnnotationRow:
        """Return the row of the task that the annotations decide."""
        return _routed(label, self)

    def identity(self) -> Hashable:
        """Return all that the entry says but the length of its video and the reasoning."""
        return json.dumps(self.model_dump(exclude={"duration", "think"}), sort_keys=True, default=repr)

    def repetition(self) -> Problem:
        """Return the problem of a question that was asked before."""
        return Problem(field="question", text=f"{short(self.question)} with the same annotations occurs twice")


@dataclass(frozen=True, kw_only=True)
class _RowAnswer:
    """kind: "letter", "number", "phrase" or "words" (which nothing can score); "" for a row without an answer."""

    kind: str = ""
    value: Json = None
    options: tuple[Option, ...] = ()
    problems: tuple[Problem, ...] = ()


def with_size(row: AnnotationRow, size: Size) -> AnnotationRow:
    """Return `row` complete, its boxes being pixels of a picture of this size: `needs_size` is then False."""
    if row.task == "tracking":
        boxes, problems = inside_frame(row.truth, size)
        return replace(row, truth=_as_fractions(boxes, size), needs_size=False, problems=(*row.problems, *problems))
    boxes, problems = inside_frame([row.truth["box"]], size)
    truth = {**row.truth, "box": boxes[0] if boxes else None, "width": size[0], "height": size[1]}
    return replace(row, truth=truth, needs_size=False, problems=(*row.problems, *problems))


def _routed(label: str, row: VttsEntry) -> AnnotationRow:
    size = (row.width, row.height) if row.width and row.height else None
    duration_s = row.duration
    if row.window_s is not None:
        length_s = row.window_s[1] - row.window_s[0]
        duration_s = min(row.duration or length_s, length_s)  # it may be the whole file's
    clue = Clue() if row.clue is None else read_clue(row.clue, duration_s, size)
    answer = _read_answer(row)
    kinds = frozenset({answer.kind, *clue.kinds, "caption" if row.caption else ""} - {""})
    task, routing = _task(row, kinds)
    problems = [*_medium_problems(row, clue), *row.part_problems(), *clue.problems, *answer.problems, *routing]
    if not row.question.strip() and task != "captioning":
        problems.append(Problem(field="question", text="a question is expected"))
    if task in ("temporal_grounding", "spatiotemporal_grounding") and len(clue.periods) > 1:
        text = f"{len(clue.periods)} periods; without an answer a row takes one"
        problems.append(Problem(field="clue", text=text))
    # the answer of such a problem is the one that counts
    is_whole = all(problem.is_fixed or (problem.is_counted and problem in answer.problems) for problem in problems)
    return AnnotationRow(
        label=label,
        video=next(iter((*row.images, *row.videos, *(row.image_list or ()))), ""),
        medium="image" if row.images else "list" if row.image_list else "clip",
        task=task,
        question=row.question.strip() or CAPTION_QUESTION,
        options=tuple(option.text if answer.kind == "phrase" else str(option) for option in answer.options),
        truth=_truth(task, row, answer, clue, size) if is_whole else None,
        counted=_counted(task, row, answer, clue, size) if _is_counted(problems) else None,
        needs_size=is_whole and not clue.is_normalised and size is None,
        window_s=row.window_s,
        fps=row.fps,
        duration_s=row.duration,
        labels={"split": row.split} if row.split else {},
        frames=tuple(row.image_list or ()),
        images=tuple(row.images[1:]),
        videos=tuple(row.videos[1:]),
        thought=_thought(row.think),
        problems=tuple(problems),
    )


def _thought(value: Json) -> str:
    """Return reasoning without the tags around it; "" for a value that is none, or that has tags inside."""
    if not isinstance(value, str):
        return ""
    text = value.strip().removeprefix("<think>").removesuffix("</think>").strip()
    return "" if any(f"<{slash}{tag}>" in text for tag in ("think", "answer", "glue") for slash in ("", "/")) else text


def _is_counted(problems: Sequence[Problem]) -> bool:
    return bool(problems) and all(problem.is_fixed or problem.is_counted for problem in problems)


def _counted(task: str, row: VttsEntry, answer: _RowAnswer, clue: Clue, size: Size | None) -> Counted | None:
    """Return the task and the truth with the periods that the row states, None where they are those inside the clip."""
    if not clue.stated or clue.stated == clue.periods:
        return None
    return Counted(task=task, truth=_truth(task, row, answer, replace(clue, periods=clue.stated), size))


def _read_answer(row: VttsEntry) -> _RowAnswer:
    if row.answer is None:
        if row.options is None:
            return _RowAnswer()
        missing = Problem(field="answer", text="options without an answer", is_contradiction=True)
        return _RowAnswer(problems=(missing,))
    if row.task == "video_quality":
        return _read_phrase(row)
    if row.options is not None:
        options, problem = read_options(row.options)
        if problem is not None:
            return _RowAnswer(kind="letter", problems=(problem,))
        right, problem = right_letter(row.answer, options)
        return _RowAnswer(kind="letter", value=right, options=options, problems=(problem,) if problem else ())
    if is_number(row.answer):
        return _RowAnswer(kind="number", value=float(row.answer))
    letter = read_choice(row.answer) if isinstance(row.answer, str) else None
    if letter is not None and "letter" in _NEEDS.get(row.task or "", ()):  # the options stand in the question
        return _RowAnswer(kind="letter", value=letter.letter)
    number = read_number(row.answer) if isinstance(row.answer, str) else None
    if number is not None and number == lenient_number(row.answer, UNKNOWN):  # which "3k" and "1st" are not
        return _RowAnswer(kind="number", value=number.value)
    text = f"{short(row.answer)} is not a plain number, and there are no options: nothing can score it"
    return _RowAnswer(kind="words", problems=(Problem(field="answer", text=text),))


def _read_phrase(row: VttsEntry) -> _RowAnswer:
    """Read a class in words; options, where there are any, are the classes."""
    phrase = read_phrase(row.answer) if isinstance(row.answer, str) else None
    if phrase is None:
        wrong = Problem(field="answer", text=f"{short(row.answer)} is not a class in words", is_contradiction=True)
        return _RowAnswer(kind="phrase", problems=(wrong,))
    if row.options is None:
        return _RowAnswer(kind="phrase", value=row.answer)
    options, problem = read_options(row.options)
    names = [read_phrase(option.text) for option in options]
    if problem is None and phrase not in names:
        text = f"{short(row.answer)} is not among {short(row.options)}"
        problem = Problem(field="answer", text=text, is_contradiction=True)
    return _RowAnswer(kind="phrase", value=row.answer, options=options, problems=(problem,) if problem else ())


def _task(row: VttsEntry, kinds: frozenset[str]) -> tuple[str, tuple[Problem, ...]]:
    """Return the task of a row with these annotations, "" when there is none, and why."""
    if row.events and not row.caption:
        return "", (Problem(field="events", text="events without their caption", is_contradiction=True),)
    if row.clue is not None and not kinds & {"periods", "box", "boxes"}:
        return "", ()  # a clue that cannot be read is reported as such
    if row.task is not None:
        return row.task, _disagreement(row.task, kinds)
    if "words" in kinds:
        return "", ()  # reported with the answer
    if not kinds:
        return "", (Problem(field="(row)", text="no answer, clue or caption: there is nothing to score"),)
    if kinds not in ROUTES:
        fields = " and ".join(sorted(kinds))
        text = f"no task scores {fields} together; keep what the row is about"
        return "", (Problem(field=_field(sorted(kinds)[0]), text=text, is_contradiction=True),)
    return ROUTES[kinds], ()


def _disagreement(task: str, kinds: frozenset[str]) -> tuple[Problem, ...]:
    """Say why a row that names this task cannot be of it."""
    if task not in _NEEDS:
        text = f"{task!r} is not known; the tasks are {', '.join(_NEEDS)}"
        return (Problem(field="task", text=text, is_contradiction=True),)
    missing, extra = sorted(_NEEDS[task] - kinds), sorted(kinds - _NEEDS[task])
    if missing:
        has = f"has {', '.join(sorted(kinds)) or 'no annotation'}"
        text = f"task {task} needs {' and '.join(missing)}, and the row {has}"
        return (Problem(field=_field(missing[0]), text=text, is_contradiction=True),)
    if extra:
        text = f"task {task} does not score {' and '.join(extra)}; leave it out, or leave `task` out"
        return (Problem(field=_field(extra[0]), text=text, is_contradiction=True),)
    return ()


def _field(kind: str) -> str:
    return _FIELDS.get(kind, "clue")


_IN_WORDS = {"video": "a video", "image_list": "a list of images", "image": "an image"}


def _medium_problems(row: VttsEntry, clue: Clue) -> Iterator[Problem]:
    several = "videos" if len(row.videos) > 1 else "images" if len(row.images) > 1 else ""
    if several and clue.kinds:
        text = f"{sorted(clue.kinds)[0]} of {len(row.videos or row.images)} {several}: it does not say of which"
        yield Problem(field="clue", text=text, is_contradiction=True)
    if several and row.window_s is not None:
        yield Problem(field="video_end", text=f"a part of several {several}; name one", is_contradiction=True)
    given = {"video": row.video, "image_list": row.image_list, "image": row.image}
    if len(named := [name for name, value in given.items() if value]) > 1:
        words = " and ".join(_IN_WORDS[name] for name in named)
        yield Problem(field=named[-1], text=f"both {words} are given; keep one", is_contradiction=True)
    if not named:
        yield Problem(field="video", text="neither a video nor an image is named")
    timed = sorted(clue.kinds & {"periods", "boxes"})
    if row.image and timed:
        yield Problem(field="clue", text=f"{timed[0]} of an image, which has no time", is_contradiction=True)
    if bool(row.width) != bool(row.height):
        yield Problem(field="width" if row.height else "height", text="width and height belong together; give both")


def _truth(task: str, row: VttsEntry, answer: _RowAnswer, clue: Clue, size: Size | None) -> Json:
    """Return the truth of a row without problems, in its task's shape; `size` None leaves pixels as they are."""
    if task == "tracking":
        in_pixels = not clue.is_normalised and size is not None
        return _as_fractions(clue.boxes or [], size) if in_pixels and size else clue.boxes
    if task == "captioning":
        return {"caption": row.caption, **({"events": row.events} if row.events else {})}
    if answer.kind in ("number", "phrase"):
        return answer.value
    if task == "temporal_grounding":
        return clue.periods[0]
    letter = f"({answer.value})"
    if task == "multiple_choice":
        return letter
    truth: dict[str, Json] = {"answer": letter} if answer.value else {}
    if task == "spatiotemporal_grounding":
        truth["period"] = clue.periods[0]
    elif clue.periods:
        truth["glue"] = clue.periods
    if clue.box:
        truth["box"] = clue.box
        if not clue.is_normalised and size:
            truth |= {"width": size[0], "height": size[1]}
    return truth


def _as_fractions(boxes: list[list[float]], size: Size) -> list[list[float]]:
    width, height = size
    return [[x0 / width, y0 / height, x1 / width, y1 / height] for x0, y0, x1, y1 in boxes]
