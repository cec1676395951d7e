"""Annotation files -> PromptItems, with every dirty row reported by its place in the file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rlsys.config.run import DataConfig
from rlsys.data.annotations.formats import FORMATS
from rlsys.data.annotations.media import find_medium, media_spec, picture_size, places, video_spec
from rlsys.data.annotations.rows import AnnotationRow, BadLine, Problem
from rlsys.data.annotations.vtts import with_size
from rlsys.data.video.errors import AnnotationError
from rlsys.tasks.table import task_named
from rlsys.tasks.truths import NUM_TRACKED_FRAMES
from rlsys.types import Json, PromptItem

__all__ = ["AnnotationError", "Annotations", "DirtyRow", "load_annotations", "report_lines", "video_spec"]

SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class DirtyRow:
    """A row that is not as it should be.

    row: its place in the file.  field, problem: what is wrong, several joined by "; ".
    action: "clipped" when the row is kept with its spans cut to the clip, "dropped" when it is left out,
    "refused" when it contradicts itself, which refuses the file.
    """

    row: str
    field: str
    problem: str
    action: Literal["dropped", "clipped", "refused"]

    def __str__(self) -> str:
        return f"{self.row}: {self.field}: {self.problem}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Annotations:
    """items: the usable rows, in the file's order.  num_videos, num_queries: of the whole file."""

    items: tuple[PromptItem, ...]
    dirty: tuple[DirtyRow, ...]
    num_videos: int
    num_queries: int


def load_annotations(path: Path, *, videos: Path, data: DataConfig) -> Annotations:
    """The rows of `path` in `data.format` as items whose media lie in `videos`.

    Dirty rows are dropped, clipped or an error as `data.on_dirty_row` says; the result may be empty.
    Raises AnnotationError for a file or folder that cannot be read, for rows that contradict themselves or their
    task, whatever `data.on_dirty_row` says, and under "stop" for the first dirty row.
    """
    path = Path(path)
    rows = _read(path, data.format)
    _refuse_contradictions(path, rows)
    root = _folder(Path(videos))
    items: list[PromptItem] = []
    dirty: list[DirtyRow] = []
    for found in rows:
        row, medium = _complete(found, root)
        if row.problems:
            dirty.append(_report(row, may_clip=data.on_dirty_row == "clip"))
            if data.on_dirty_row == "stop":
                raise AnnotationError(
                    f"{path}: row {dirty[-1]}; mend the file, or set data.on_dirty_row to drop or clip."
                )
        if medium is not None and (not row.problems or dirty[-1].action == "clipped"):
            items.append(_item(path, row, medium, data))
    return Annotations(
        items=tuple(items), dirty=tuple(dirty), num_videos=len({row.video for row in rows}), num_queries=len(rows)
    )


def report_lines(path: Path, format: str, videos: Path | None) -> Iterator[str]:
    """Lines of a report: counts of videos, queries and tasks, then every dirty row.

    Without `videos` the files are not looked for. Raises AnnotationError for a file that cannot be read.
    """
    path = Path(path)
    root = None if videos is None else _folder(Path(videos))
    rows = [_complete(row, root)[0] for row in _read(path, format)]
    dirty = [_report(row, may_clip=True) for row in rows if row.problems]
    clipped = sum(row.action == "clipped" for row in dirty)
    refused = sum(row.action == "refused" for row in dirty)
    yield f"{path}: {len({row.video for row in rows})} videos, {len(rows)} queries, {len(dirty)} dirty rows"
    if FORMATS[format].task is None:
        tasks = sorted({row.task for row in rows if row.task})
        yield "tasks: " + (", ".join(f"{sum(row.task == task for row in rows)} {task}" for task in tasks) or "none")
    if any(row.task == "tracking" for row in rows):
        yield (
            f"each tracked sequence is shown by {NUM_TRACKED_FRAMES} evenly spaced frames, one per box; "
            "of a folder of frames the first and the last are among them"
        )
    if dirty:
        yield (
            f"data.on_dirty_row=drop leaves out {len(dirty) - refused}; clip mends {clipped}, leaves out "
            f"{len(dirty) - clipped - refused}" + (f"; {refused} contradictions refuse the file" if refused else "")
        )
    for row in dirty:
        yield f"{row} [{'clip mends it' if row.action == 'clipped' else row.action}]"


def _read(path: Path, format: str) -> list[AnnotationRow]:
    if format not in FORMATS:
        raise AnnotationError(f"format {format!r} is not known; the formats are {', '.join(FORMATS)}.")
    shape = FORMATS[format]
    try:
        text = path.read_text(encoding="utf-8")
        tree = _lines(text) if shape.is_lines else json.loads(text)
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read ({error.strerror}); check data.annotations.") from error
    except (ValueError, RecursionError) as error:  # JSON's and UTF-8's errors
        raise AnnotationError(f"{path}: not JSON: {error}; download it again, or check data.annotations.") from error
    try:
        return list(shape.read(tree))
    except TypeError as error:
        raise AnnotationError(f"{path}: not in the shape of {format}: {error}; check data.format.") from error


def _lines(text: str) -> list[tuple[str, Json]]:
    """(line number from 1, what it holds) of the lines that are not blank. Raises ValueError when none is JSON."""
    # not splitlines(): a JSON string may hold U+2028, which that takes for the end of a line
    entries = [(str(number), _line(line)) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if entries and all(isinstance(entry, BadLine) for _, entry in entries):
        raise ValueError(f"one object per line is expected, and no line is one; line {entries[0][0]}: {entries[0][1]}")
    return entries


def _line(line: str) -> Json:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return BadLine(problem=f"not JSON: {error}")


def _folder(videos: Path) -> Path:
    if not videos.is_dir():
        raise AnnotationError(f"{videos}: no such folder of videos; check data.videos.")
    return videos


def _refuse_contradictions(path: Path, rows: Sequence[AnnotationRow]) -> None:
    found = [(row.label, problem) for row in rows for problem in row.problems if problem.is_contradiction]
    if not found:
        return
    lines = [f"{path}: row {label}: {problem.field}: {problem.text}" for label, problem in found[:SHOWN]]
    if len(found) > SHOWN:
        lines.append(f"… and {len(found) - SHOWN} more")
    lines.append("These rows contradict themselves or their task, and nobody can guess what they mean; mend the file.")
    raise AnnotationError("\n".join(lines))


def _complete(row: AnnotationRow, root: Path | None) -> tuple[AnnotationRow, Path | None]:
    """The row with everything that its medium tells, all its problems, and where the medium is."""
    if root is None or not row.video:
        return row if row.needs_size else _checked(row), None
    medium = find_medium(row, root)
    if medium is None:
        text = f"{row.video!r} is not in {root}; looked for {', '.join(places(row))}"
        return replace(row, problems=(*row.problems, Problem(field="video", text=text))), None
    if row.needs_size:
        row = _sized(row, medium)
    return _checked(row), medium


def _sized(row: AnnotationRow, medium: Path) -> AnnotationRow:
    size = picture_size(medium)
    if size is None:
        text = f"boxes in pixels need the size of the picture, which the header of {medium} does not tell; give both"
        return replace(row, problems=(*row.problems, Problem(field="width, height", text=text)))
    return with_size(row, size)


def _checked(row: AnnotationRow) -> AnnotationRow:
    """`row` with a problem more when its task's scorers could not read its truth."""
    if not all(problem.is_fixed for problem in row.problems):
        return row
    try:
        task_named(row.task).read_truth(row.truth)
    except ValueError as error:
        return replace(row, problems=(*row.problems, Problem(field="truth", text=str(error))))
    return row


def _report(row: AnnotationRow, *, may_clip: bool) -> DirtyRow:
    problems = row.problems
    action: Literal["dropped", "clipped", "refused"] = "dropped"
    if any(problem.is_contradiction for problem in problems):
        action = "refused"
    elif may_clip and all(problem.is_fixed for problem in problems):
        action = "clipped"
    return DirtyRow(
        row=row.label,
        field=", ".join(dict.fromkeys(problem.field for problem in problems)),
        problem="; ".join(problem.text for problem in problems),
        action=action,
    )


def _item(path: Path, row: AnnotationRow, medium: Path, data: DataConfig) -> PromptItem:
    return PromptItem(
        prompt_id=f"{path.stem}:{row.label}",
        task=row.task,
        question=row.question,
        options=row.options,
        media=(media_spec(row, medium.absolute(), data),),  # workers may have another working directory
        truth=row.truth,
    )
