"""The formats of annotation files with their readers: files in, rows with their problems out."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from rlsys.data.annotations.options import Option, read_options, right_letter
from rlsys.data.annotations.rows import (
    AnnotationRow,
    Entry,
    PartFields,
    Problem,
    Seconds,
    Text,
    is_unit_box,
    listed,
    read_entries,
    read_glue,
    short,
)
from rlsys.data.annotations.sets import choices, dream1k, got10k, grounding
from rlsys.data.annotations.sets.published import charades_lines, nextgqa_table, vidtab_lines
from rlsys.data.annotations.sets.records import Record, as_list
from rlsys.data.annotations.sets.tables import Columns
from rlsys.data.annotations.times import listed_periods
from rlsys.data.annotations.vtts import CAPTION_QUESTION, VttsEntry
from rlsys.tasks.truths import NUM_TRACKED_FRAMES
from rlsys.types import Json


@dataclass(frozen=True, kw_only=True)
class Format:
    """How the files of a format are read; readers raise TypeError when a file as a whole has another shape.

    task: of every row; None when each row has its own.
    read: of parsed JSON.  is_lines: one JSON object per line; `read` is then given (line number, object or BadLine)
    pairs.  read_records: of tables; of JSON files only without `read`.
    read_files: by suffix of the file, "" for a folder; these come first.
    """

    task: str | None
    read: Callable[[Json], Iterator[AnnotationRow]] | None = None
    is_lines: bool = False
    read_records: Callable[[Iterable[Record], Columns], Iterator[AnnotationRow]] | None = None
    read_files: Mapping[str, Callable[[Path], Iterator[AnnotationRow]]] = field(default_factory=dict)


class _NextGqaEntry(Entry):
    """An entry `{id?, video, question, options, answer, glue: [[s, e]…], duration, type?}`."""

    id: Any = None
    video: Text
    question: Text
    options: Any
    answer: Text | int
    glue: list[Any]
    duration: Seconds
    type: Any = None

    @field_validator("glue", mode="before")
    @classmethod
    def _as_periods(cls, value: Json) -> Json:
        return listed_periods(as_list(value))

    def row(self, label: str) -> AnnotationRow:
        """Return a row of grounded QA."""
        options, problem = read_options(as_list(self.options))
        letter, wrong = (None, None) if problem else _letter_of(self.answer, options)
        answer = f"({letter})" if letter else None
        spans, counted, problems = read_glue(answer, self.glue, self.duration, "glue")
        qid = {"qid": self.id.rpartition("_")[2]} if isinstance(self.id, str) else {}
        kind = {"question_type": self.type} if isinstance(self.type, str) else {}
        return AnnotationRow(
            label=label,
            video=self.video,
            task="grounded_qa",
            question=self.question,
            options=tuple(map(str, options)),
            truth={"answer": answer, "glue": spans},
            duration_s=self.duration,
            labels={**qid, **kind},
            counted=counted,
            problems=(*(replace(one, is_contradiction=False) for one in (problem, wrong) if one), *problems),
        )

    def identity(self) -> Hashable:
        """Return the video and the question with its options."""
        return (self.video, self.question, repr(self.options))

    def repetition(self) -> Problem:
        """Return the problem of a question that was asked before."""
        return Problem(field="question", text=f"{self.question!r} with the same options occurs twice")


def _letter_of(answer: str | int, options: Sequence[Option]) -> tuple[str | None, Problem | None]:
    """Return the letter of the right option; a number is its index from 0, as in NExT-QA's tables."""
    letter, problem = right_letter(answer, options)
    if problem is not None and isinstance(answer, int) and 0 <= answer < len(options):
        return options[answer].letter, None
    return letter, problem


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
    def rows(tree: Json) -> Iterator[AnnotationRow]:
        entries = list(listed(tree))
        objects = [entry for _, entry in entries if isinstance(entry, dict)]
        needed = [name for name, field in kind.model_fields.items() if field.is_required()]
        missing = [name for name in needed if not any(name in entry for entry in objects)]
        if objects and 2 * len(missing) > len(needed):
            raise TypeError(f"no row of it has {', '.join(missing)}")
        return read_entries(kind, entries)

    return rows


FORMATS: Mapping[str, Format] = {
    "charades_sta": Format(
        task="temporal_grounding",
        read=grounding.read_videos,
        read_records=grounding.ROWS.rows,
        read_files={".txt": charades_lines},
    ),
    "activitynet": Format(task="temporal_grounding", read=grounding.read_videos, read_records=grounding.ROWS.rows),
    "timelens": Format(task="temporal_grounding", read=grounding.read_videos, read_records=grounding.ROWS.rows),
    "nextgqa": Format(task="grounded_qa", read=_list_of(_NextGqaEntry), read_files={".csv": nextgqa_table}),
    "got10k": Format(
        task="tracking",
        read=_list_of(_Got10kEntry),
        read_files={"": got10k.read_sequences, ".txt": got10k.read_sequences},
    ),
    "vidtab": Format(task="video_quality", read=_list_of(_VidtabEntry), read_files={".txt": vidtab_lines}),
    "captions": Format(task="captioning", read=partial(read_entries, _CaptionEntry), is_lines=True),
    "vtts": Format(task=None, read=partial(read_entries, VttsEntry), is_lines=True),
    "dream1k": Format(task="captioning", read_records=dream1k.ROWS.rows),
    **{name: Format(task=None, read_records=table.rows) for name, table in choices.TABLES.items()},
}
