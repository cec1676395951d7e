"""Read annotation files as PromptItems, and report every dirty row by its place in the file."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rlsys.config.run import ConfigError, DataConfig
from rlsys.data.annotations.media import (
    find_medium,
    image_spec,
    is_inside,
    media_spec,
    picture_size,
    places,
    rate_problems,
    video_spec,
)
from rlsys.data.annotations.other_task import as_task
from rlsys.data.annotations.reading import printable, read_rows, repeated_text
from rlsys.data.annotations.rows import AnnotationRow, Medium, Problem
from rlsys.data.annotations.vtts import with_size
from rlsys.data.video.errors import AnnotationError
from rlsys.tasks.table import task_named
from rlsys.types import Json, PromptItem

__all__ = [
    "AnnotationError",
    "Annotations",
    "DirtyRow",
    "UnanswerableRow",
    "load_annotations",
    "video_spec",
]

SHOWN = 10
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DirtyRow:
    """A row that is not as it should be.

    row: its place in the file.  field, problem: what is wrong, several joined by "; ".
    action: "clipped" when the row is kept with its spans cut to the clip, "kept" when it is kept as published,
    "dropped" when it is skipped, "refused" when it contradicts itself, which refuses the file.
    video: as the row names it.  is_missing: whether the video is not in the folder of videos.
    """

    row: str
    field: str
    problem: str
    action: Literal["dropped", "clipped", "kept", "refused"]
    video: str = ""
    is_missing: bool = False

    def __str__(self) -> str:
        return f"{self.row}: {self.field}: {self.problem}"


@dataclass(frozen=True, kw_only=True, eq=False)
class UnanswerableRow:
    """A published row that no model can be asked, or whose answer nothing can be compared with; it counts as wrong.

    prompt_id, task, question, options, labels: as in `PromptItem`; task is "" where the row leaves it open.
    truth: as published, None where it cannot be read.  reason: what is wrong, in words.
    place: number of rows before it in the file.
    """

    prompt_id: str
    task: str
    question: str
    options: tuple[str, ...]
    truth: Json
    labels: Mapping[str, str | float]
    reason: str
    place: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Annotations:
    """The rows of an annotation file.

    items: the usable rows, in the file's order.  num_videos, num_queries: of the whole file.
    unanswerable: of a file read with keep="published": all rows that are not among `items`; otherwise ().
    """

    items: tuple[PromptItem, ...]
    dirty: tuple[DirtyRow, ...]
    num_videos: int
    num_queries: int
    unanswerable: tuple[UnanswerableRow, ...] = ()


def load_annotations(
    path: Path,
    *,
    videos: Path,
    data: DataConfig,
    keep: Literal["clean", "published"] = "clean",
    name: str | None = None,
    split: str | None = None,
    task: str | None = None,
    rows_per_video: int = 0,
) -> Annotations:
    """Return the rows of `path` in `data.format` as items whose media lie in `videos`.

    name: of the source, which begins the prompt ids; None takes the file's stem.  split: of the rows to keep, None
    keeps all.  task: to train the rows as, see `rlsys.data.annotations.other_task`; None keeps theirs.
    rows_per_video: largest number of clean rows of a video, the first ones; 0 keeps all.
    keep="clean": dirty rows are dropped, clipped or an error as `data.on_dirty_row` says; the result may be empty.
    keep="published": for figures that can be compared with others', every row of the file is either an item or
    unanswerable, whatever `data.on_dirty_row` says. Repetitions and rows whose truth runs past the clip are items
    with their truth as the file states it; a missing or unsafe medium, a question that cannot be asked and a truth
    that cannot be read, contradictions among them, make a row unanswerable. A row of grounded QA without a period
    is one of multiple choice.
    Raises AnnotationError for a file or folder that cannot be read; with keep="clean" also for rows that contradict
    themselves or their task, whatever `data.on_dirty_row` says, and under "stop" for the first dirty row. Raises
    ConfigError for a `split` that no row has and for a `task` that a row cannot be trained as.
    """
    path, name = Path(path), name or Path(path).stem
    rows, repeated = read_rows(path, data.format, data.columns)
    if repeated:
        _log.warning("%s: %s", path, repeated_text(repeated))
    if keep == "clean":
        _refuse_contradictions(path, rows)
    rows = rows if split is None else _of_split(path, rows, split)
    rows = rows if task is None else as_task(path, rows, task)
    root = folder_of(Path(videos))
    if keep == "published":
        return _as_published(name, rows, root, data)
    items: list[PromptItem] = []
    dirty: list[DirtyRow] = []
    for found in rows:
        row, medium = completed(found, root, data.links_outside)
        if row.problems:
            dirty.append(dirty_row(row, may_clip=data.on_dirty_row == "clip"))
            if data.on_dirty_row == "stop":
                raise AnnotationError(
                    f"{path}: row {dirty[-1]}; fix the file, or set data.on_dirty_row to drop or clip."
                )
        if medium is not None and (not row.problems or dirty[-1].action == "clipped"):
            items.append(_item(name, row, medium, data))
    return Annotations(
        items=tuple(_first_of_each(items, rows_per_video) if rows_per_video else items),
        dirty=tuple(dirty),
        num_videos=len({row.video for row in rows}),
        num_queries=len(rows),
    )


def _first_of_each(items: Sequence[PromptItem], rows_per_video: int) -> Iterator[PromptItem]:
    counts: Counter[str | float] = Counter()
    for item in items:
        counts[item.labels["video"]] += 1
        if counts[item.labels["video"]] <= rows_per_video:
            yield item


def _as_published(name: str, rows: Sequence[AnnotationRow], root: Path, data: DataConfig) -> Annotations:
    """Return all rows: those that can be asked and scored as items, with the truth of the file, and the others."""
    items: list[PromptItem] = []
    dirty: list[DirtyRow] = []
    unanswerable: list[UnanswerableRow] = []
    for place, found in enumerate(rows):
        row, medium = completed(found.as_published(), root, data.links_outside)
        is_usable = medium is not None and all(problem.is_fixed for problem in row.problems)
        if row.problems or found.problems:
            every = replace(row, problems=tuple(dict.fromkeys((*found.problems, *row.problems))))
            dirty.append(replace(dirty_row(every, may_clip=False), action="kept" if is_usable else "dropped"))
        if medium is not None and is_usable:
            items.append(_item(name, row, medium, data))
        else:
            unanswerable.append(_unanswerable(name, row, place))
    return Annotations(
        items=tuple(items),
        dirty=tuple(dirty),
        num_videos=len({row.video for row in rows}),
        num_queries=len(rows),
        unanswerable=tuple(unanswerable),
    )


def missing_videos(dirty: Sequence[DirtyRow]) -> list[dict[str, str | int]]:
    """Return a table of the missing videos: each with the number of rows that name it, their places, and the reason."""
    by_video: dict[str, list[DirtyRow]] = {}
    for row in dirty:
        if row.is_missing:
            by_video.setdefault(row.video, []).append(row)
    return [
        {
            "video": video,
            "num_rows": len(rows),
            "rows": ", ".join(row.row for row in rows[:SHOWN]) + (", …" if len(rows) > SHOWN else ""),
            "reason": rows[0].problem,
        }
        for video, rows in by_video.items()
    ]


def folder_of(videos: Path) -> Path:
    """Return the folder of videos. Raises AnnotationError if there is none."""
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
    lines.append(
        "These rows contradict themselves or their task, and guessing what they mean is not safe; fix the file."
    )
    raise AnnotationError(printable("\n".join(lines)))


def completed(row: AnnotationRow, root: Path | None, links_outside: bool) -> tuple[AnnotationRow, Path | None]:
    """Return the row with everything that its medium shows and all its problems, and where the medium is."""
    if root is None or not row.video:
        return row if row.needs_size else _checked(row), None
    medium = find_medium(row, root)
    if medium is None:
        text = f"{row.video!r} is not in {root}; looked for {_some(places(row))}"
        return replace(row, problems=(*row.problems, Problem(field="video", text=text, is_missing=True))), None
    if not links_outside and not is_inside(medium, root):
        text = f"{row.video!r} leads out of {root}, to {medium.resolve()}; set data.links_outside=true to allow it"
        return replace(row, problems=(*row.problems, Problem(field="video", text=text))), None
    if row.frames or medium.is_dir():
        row = replace(row, problems=(*row.problems, *rate_problems(row, medium)))
    if row.needs_size:
        row = _sized(row, medium)
    if row.images or row.videos or row.frames:
        row = _with_further_media(row, root, links_outside)
    return _checked(row), medium


def _with_further_media(row: AnnotationRow, root: Path, links_outside: bool) -> AnnotationRow:
    """Return the row with the paths of its list's images and of further images and videos, and what is wrong."""
    found: dict[str, tuple[str, ...]] = {}
    problems = list(row.problems)
    kinds: tuple[tuple[str, tuple[str, ...], Medium], ...]
    kinds = (("image_list", row.frames, "list"), ("images", row.images, "image"), ("videos", row.videos, "clip"))
    for field, names, medium in kinds:
        paths: list[str] = []
        for name in names:
            one = replace(row, video=name, medium=medium)
            path = find_medium(one, root)
            if path is None:
                text = f"{name!r} is not in {root}; looked for {_some(places(one))}"
                problems.append(Problem(field=field, text=text, is_missing=True))
            elif not links_outside and not is_inside(path, root):
                text = f"{name!r} leads out of {root}; set data.links_outside=true to allow it"
                problems.append(Problem(field=field, text=text))
            else:
                paths.append(str(path.absolute()))
        found[field] = tuple(paths)
    listed, images, videos = found["image_list"], found["images"], found["videos"]
    return replace(row, frames=listed, images=images, videos=videos, problems=tuple(problems))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _sized(row: AnnotationRow, medium: Path) -> AnnotationRow:
    size = picture_size(medium)
    if size is None:
        text = f"boxes in pixels need the size of the picture, which the header of {medium} does not show; give both"
        return replace(row, problems=(*row.problems, Problem(field="width, height", text=text)))
    return with_size(row, size)


def _checked(row: AnnotationRow) -> AnnotationRow:
    """Return the row, with one more problem if its task's scorers could not read its truth."""
    if not all(problem.is_fixed for problem in row.problems):
        return row
    try:
        task_named(row.task).read_truth(row.truth)
    except ValueError as error:
        return replace(row, problems=(*row.problems, Problem(field="truth", text=str(error))))
    return row


def dirty_row(row: AnnotationRow, *, may_clip: bool) -> DirtyRow:
    """Return the report of a row with problems. may_clip: whether rows that are fixed are kept."""
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
        video=row.video,
        is_missing=any(problem.is_missing for problem in problems),
    )


def _of_split(path: Path, rows: Sequence[AnnotationRow], split: str) -> list[AnnotationRow]:
    kept = [row for row in rows if row.labels.get("split") == split]
    if not kept:
        known = sorted({str(row.labels["split"]) for row in rows if "split" in row.labels})
        has = f"its rows are of {', '.join(known)}" if known else "its rows have no field `split`"
        raise ConfigError(f"{path}: no row of split {split!r}; {has}. Correct `split`, or remove it to keep all rows.")
    return kept


def _item(name: str, row: AnnotationRow, medium: Path, data: DataConfig) -> PromptItem:
    return PromptItem(
        prompt_id=f"{name}:{row.label}",
        task=row.task,
        question=row.question,
        options=row.options,
        media=(
            media_spec(row, medium.absolute(), data),
            *(image_spec(path, data) for path in row.images),
            *(media_spec(replace(row, duration_s=None, frames=()), Path(path), data) for path in row.videos),
        ),
        truth=row.truth,
        labels=_labels(row),
        think=data.think,
        style=data.prompt_style,
        source=name,
        thought=row.thought,
    )


def _unanswerable(name: str, row: AnnotationRow, place: int) -> UnanswerableRow:
    return UnanswerableRow(
        prompt_id=f"{name}:{row.label}",
        task=row.task,
        question=row.question,
        options=row.options,
        truth=row.truth if _is_readable(row) else None,
        labels=_labels(row),
        reason="; ".join(f"{problem.field}: {problem.text}" for problem in row.problems),
        place=place,
    )


def _is_readable(row: AnnotationRow) -> bool:
    try:
        task_named(row.task).read_truth(row.truth)
    except ValueError:
        return False
    return True


def _labels(row: AnnotationRow) -> dict[str, str | float]:
    duration = {} if row.duration_s is None else {"duration_s": row.duration_s}
    return {"video": row.video, **duration, **row.labels}
