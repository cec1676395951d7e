"""Annotation files -> PromptItems, with every dirty row reported by its place in the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlsys.config import DataConfig
from rlsys.data.errors import AnnotationError
from rlsys.data.formats import FORMATS, GOT10K_FPS, GOT10K_FRAMES, Format, Problem, Row
from rlsys.types import PromptItem, VideoSpec

__all__ = ["AnnotationError", "Annotations", "DirtyRow", "check", "load", "video_spec"]


@dataclass(frozen=True, kw_only=True)
class DirtyRow:
    """A row that is not as it should be.

    row: its place in the file.  field, problem: what is wrong, several joined by "; ".
    action: "clipped" when the row is kept with its spans cut to the clip, "dropped" when it is left out.
    """

    row: str
    field: str
    problem: str
    action: Literal["dropped", "clipped"]

    def __str__(self) -> str:
        return f"{self.row}: {self.field}: {self.problem}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Annotations:
    """items: the usable rows, in the file's order.  num_videos, num_queries: of the whole file."""

    items: tuple[PromptItem, ...]
    dirty: tuple[DirtyRow, ...]
    num_videos: int
    num_queries: int


def load(path: Path, *, videos: Path, data: DataConfig) -> Annotations:
    """The rows of `path` in `data.format` as items whose media lie in `videos`.

    Dirty rows are dropped, clipped or an error as `data.on_dirty_row` says; the result may be empty.
    Raises AnnotationError for a file or folder that cannot be read, and under "stop" for the first dirty row.
    """
    path, format = Path(path), FORMATS[data.format]
    rows = _read(path, data.format)
    root = _folder(Path(videos))
    items: list[PromptItem] = []
    dirty: list[DirtyRow] = []
    for row in rows:
        media, problems = _find(row, format, root)
        if problems:
            dirty.append(_report(row, problems, may_clip=data.on_dirty_row == "clip"))
            if data.on_dirty_row == "stop":
                raise AnnotationError(
                    f"{path}: row {dirty[-1]}; mend the file, or set data.on_dirty_row to drop or clip."
                )
        if media is not None and (not problems or dirty[-1].action == "clipped"):
            items.append(_item(path, row, format, media, data))
    return Annotations(
        items=tuple(items), dirty=tuple(dirty), num_videos=len({row.video for row in rows}), num_queries=len(rows)
    )


def check(path: Path, format: str, videos: Path | None) -> Iterator[str]:
    """Lines of a report: counts of videos and queries, then every dirty row.

    Without `videos` the files are not looked for. Raises AnnotationError for a file that cannot be read.
    """
    path = Path(path)
    rows = _read(path, format)
    root = None if videos is None else _folder(Path(videos))
    found = ((row, _find(row, FORMATS[format], root)[1]) for row in rows)
    dirty = [_report(row, problems, may_clip=True) for row, problems in found if problems]
    clipped = sum(row.action == "clipped" for row in dirty)
    yield f"{path}: {len({row.video for row in rows})} videos, {len(rows)} queries, {len(dirty)} dirty rows"
    if format == "got10k":
        yield f"each sequence is shown by {GOT10K_FRAMES} evenly spaced frames, first and last included, one per box"
    if dirty:
        yield f"data.on_dirty_row=drop leaves out {len(dirty)}; clip mends {clipped}, leaves out {len(dirty) - clipped}"
    for row in dirty:
        yield f"{row} [{'clip mends it' if row.action == 'clipped' else 'dropped'}]"


def video_spec(uri: str, data: DataConfig) -> VideoSpec:
    """The frames of a video that the config's rates and budgets ask for."""
    return VideoSpec(
        uri=uri,
        fps=data.fps,
        min_frames=data.min_frames,
        max_frames=data.max_frames,
        min_pixels=data.min_pixels,
        max_pixels=data.max_pixels,
        total_pixels=data.total_pixels,
    )


def frame_folder_spec(uri: str, data: DataConfig) -> VideoSpec:
    """Eight evenly spaced frames of a GOT-10k sequence, one for each box of its row.

    The authors' own code picks seven frames for eight boxes.
    """
    return VideoSpec(
        uri=uri,
        fps=GOT10K_FPS,
        min_frames=GOT10K_FRAMES,
        max_frames=GOT10K_FRAMES,
        min_pixels=data.min_pixels,
        max_pixels=data.max_pixels,
        total_pixels=data.total_pixels,
    )


def _read(path: Path, format: str) -> list[Row]:
    if format not in FORMATS:
        raise AnnotationError(f"format {format!r} is not known; the formats are {', '.join(FORMATS)}.")
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read ({error.strerror}); check data.annotations.") from error
    except ValueError as error:  # JSON's and UTF-8's errors
        raise AnnotationError(f"{path}: not JSON: {error}; download it again, or check data.annotations.") from error
    try:
        return list(FORMATS[format].read(tree))
    except TypeError as error:
        raise AnnotationError(f"{path}: not in the shape of {format}: {error}; check data.format.") from error


def _folder(videos: Path) -> Path:
    if not videos.is_dir():
        raise AnnotationError(f"{videos}: no such folder of videos; check data.videos.")
    return videos


def _find(row: Row, format: Format, root: Path | None) -> tuple[Path | None, tuple[Problem, ...]]:
    """Where the row's video is, and all problems of the row, a missing video among them."""
    if root is None or not row.video:
        return None, row.problems
    candidates = format.candidates(row.video)
    for candidate in candidates:
        path = root / candidate
        if path.is_dir() if format.has_frame_folders else path.exists() and not path.is_dir():
            return path, row.problems
    text = f"{row.video!r} is not in {root}; looked for {', '.join(candidates)}"
    return None, (*row.problems, Problem(field="video", text=text))


def _report(row: Row, problems: tuple[Problem, ...], *, may_clip: bool) -> DirtyRow:
    return DirtyRow(
        row=row.label,
        field=", ".join(dict.fromkeys(problem.field for problem in problems)),
        problem="; ".join(problem.text for problem in problems),
        action="clipped" if may_clip and all(problem.mended for problem in problems) else "dropped",
    )


def _item(path: Path, row: Row, format: Format, media: Path, data: DataConfig) -> PromptItem:
    spec = frame_folder_spec if format.has_frame_folders else video_spec
    return PromptItem(
        prompt_id=f"{path.stem}:{row.label}",
        task=format.task,
        question=row.question,
        options=row.options,
        media=(spec(str(media.absolute()), data),),  # workers may have another working directory
        truth=row.truth,
    )
