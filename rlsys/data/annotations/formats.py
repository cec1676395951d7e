"""The shapes of annotation files, one reader each: parsed JSON in, rows with their problems out."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from rlsys.data.annotations.rows import (
    AnnotationRow,
    Counted,
    Entry,
    PartFields,
    Problem,
    Repeats,
    Seconds,
    Text,
    broken_row,
    is_unit_box,
    listed,
    read_entries,
    read_glue,
    read_span,
    short,
    stated_span,
)
from rlsys.data.annotations.vtts import CAPTION_QUESTION, VttsEntry
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


def read_charades(tree: Json) -> Iterator[AnnotationRow]:
    """Yield a row per sentence of `{video: {duration, timestamps: [[s, e]…], sentences: […]}}`."""
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
    repeats = Repeats()
    for index, (value, sentence) in enumerate(zip(entry.timestamps, entry.sentences, strict=True)):
        truth, problem = read_span(value, entry.duration, "timestamps")
        problems = [problem] if problem else []
        if not isinstance(sentence, str) or not sentence.strip():
            problems.append(Problem(field="sentences", text=f"{sentence!r} is not a sentence"))
            sentence = ""
        if repeats.add((repr(value), " ".join(sentence.lower().split()))):
            text = f"{sentence!r} with {value} occurs twice"
            problems.append(Problem(field="sentences", text=text, is_counted=True))
        stated = stated_span(value)
        yield AnnotationRow(
            label=f"{video}/{index}",
            video=video,
            task="temporal_grounding",
            question=sentence.strip(),
            truth=truth,
            duration_s=entry.duration,
            counted=Counted(task="temporal_grounding", truth=stated) if stated and stated != truth else None,
            problems=tuple(problems),
        )


class _NextGqaEntry(Entry):
    """An entry `{id?, video, question, options, answer, glue: [[s, e]…], duration, type?}`."""

    id: Any = None
    video: Text
    question: Text
    options: list[Text] = Field(min_length=2)
    answer: Text
    glue: list[Any]
    duration: Seconds
    type: Any = None

    def row(self, label: str) -> AnnotationRow:
        """Return a row of grounded QA."""
        spans, counted, problems = read_glue(self.answer, self.glue, self.duration, "glue")
        qid = {"qid": self.id.rpartition("_")[2]} if isinstance(self.id, str) else {}
        kind = {"question_type": self.type} if isinstance(self.type, str) else {}
        return AnnotationRow(
            label=label,
            video=self.video,
            task="grounded_qa",
            question=self.question,
            options=tuple(self.options),
            truth={"answer": self.answer, "glue": spans},
            duration_s=self.duration,
            labels={**qid, **kind},
            counted=counted,
            problems=(*self._option_problems(), *problems),
        )

    def identity(self) -> Hashable:
        """Return the video and the question with its options."""
        return (self.video, self.question, *self.options)

    def repetition(self) -> Problem:
        """Return the problem of a question that was asked before."""
        return Problem(field="question", text=f"{self.question!r} with the same options occurs twice")

    def _option_problems(self) -> Iterator[Problem]:
        letters = []
        for option in self.options:
            match = re.match(r"\([A-Z]\)", option)
            if match is None:
                yield Problem(field="options", text=f"{option!r} does not begin with a letter such as (A)")
            else:
                letters.append(match.group())
        if len(set(letters)) < len(letters):
            yield Problem(field="options", text=f"letters {' '.join(letters)} repeat")
        if self.answer not in letters:
            yield Problem(field="answer", text=f"{self.answer!r} is not among the options {' '.join(letters)}")


class _Got10kEntry(Entry):
    """An entry `{path, object, gt: 8 boxes}`, boxes [x0, y0, x1, y1] in fractions of width and height."""

    VIDEO = "path"

    path: Text
    object: Text
    gt: list[Any]

    def row(self, label: str) -> AnnotationRow:
        """Return a row of tracking."""
        problems = [
            Problem(field="gt", text=f"box {index} is {box}, not [x0, y0, x1, y1] with 0 <= x0 < x1 <= 1, likewise y")
            for index, box in enumerate(self.gt)
            if not is_unit_box(box)
        ]
        if len(self.gt) != NUM_TRACKED_FRAMES:
            problems.append(Problem(field="gt", text=f"{len(self.gt)} boxes, {NUM_TRACKED_FRAMES} are expected"))
        return AnnotationRow(
            label=label,
            video=self.path,
            medium="frames",
            task="tracking",
            question=self.object,
            truth=self.gt,
            problems=tuple(problems),
        )

    def identity(self) -> Hashable:
        """Return the folder of frames and the object."""
        return (self.path, self.object)

    def repetition(self) -> Problem:
        """Return the problem of an object that was tracked before."""
        return Problem(field="object", text=f"{self.object!r} of {self.path} occurs twice")


class _VidtabEntry(Entry):
    """An entry `{video, instruction, answer}`, whose instruction names the classes as `['low quality', …]`."""

    video: Text
    instruction: Text
    answer: Text

    def row(self, label: str) -> AnnotationRow:
        """Return a row of video quality."""
        problems = []
        classes = [name.casefold() for name in re.findall(r"'([^']{1,200})'", self.instruction)]
        if classes and self.answer.casefold() not in classes:
            text = f"{short(self.answer)} is not among the classes that the instruction names: {', '.join(classes)}"
            problems.append(Problem(field="answer", text=text))
        return AnnotationRow(
            label=label,
            video=self.video,
            task="video_quality",
            question=self.instruction,
            truth=self.answer,
            problems=tuple(problems),
        )

    def identity(self) -> Hashable:
        """Return the video and the instruction."""
        return (self.video, self.instruction)

    def repetition(self) -> Problem:
        """Return the problem of an instruction that was given before."""
        return Problem(field="video", text=f"{self.video!r} with the same instruction occurs twice")


class _CaptionEntry(PartFields, Entry):
    """An entry `{video, caption, events?, question?}`; events are the caption's, for evaluation."""

    video: Text
    caption: Text
    events: list[Text] | None = Field(default=None, min_length=1)
    question: Text = CAPTION_QUESTION
    duration: Seconds | None = None

    def row(self, label: str) -> AnnotationRow:
        """Return a row of captioning."""
        events = {"events": self.events} if self.events else {}
        return AnnotationRow(
            label=label,
            video=self.video,
            medium="clip",
            task="captioning",
            question=self.question,
            truth={"caption": self.caption, **events},
            window_s=self.window_s,
            fps=self.fps,
            duration_s=self.duration,
            problems=self.part_problems(),
        )

    def identity(self) -> Hashable:
        """Return the video and the question."""
        return (self.video, self.question)

    def repetition(self) -> Problem:
        """Return the problem of a question that was asked before."""
        return Problem(field="video", text=f"{self.video!r} with the same question occurs twice")


def _list_of(kind: type[Entry]) -> Callable[[Json], Iterator[AnnotationRow]]:
    return lambda tree: read_entries(kind, listed(tree))


FORMATS: Mapping[str, Format] = {
    "charades_sta": Format(task="temporal_grounding", read=read_charades),
    "nextgqa": Format(task="grounded_qa", read=_list_of(_NextGqaEntry)),
    "got10k": Format(task="tracking", read=_list_of(_Got10kEntry)),
    "vidtab": Format(task="video_quality", read=_list_of(_VidtabEntry)),
    "captions": Format(task="captioning", read=partial(read_entries, _CaptionEntry), is_lines=True),
    "vtts": Format(task=None, read=partial(read_entries, VttsEntry), is_lines=True),
}
