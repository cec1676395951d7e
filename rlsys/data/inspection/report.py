"""The report of `rlsys data check`: what is wrong with the rows of a file, and with the files that they name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from rlsys.config.data import DataConfig
from rlsys.data.annotations.annotations import completed, dirty_row, folder_of, missing_videos
from rlsys.data.annotations.formats import FORMATS
from rlsys.data.annotations.media import folder_fps
from rlsys.data.annotations.reading import printable, read_rows, repeated_text
from rlsys.data.annotations.rows import AnnotationRow, Problem
from rlsys.data.annotations.sets.published import RepeatedKeys
from rlsys.data.inspection.facts import FileFacts, facts_of
from rlsys.data.video.errors import ClipError
from rlsys.tasks.truth_fit import TOLERANCE_S, fit_truth, past_the_file
from rlsys.tasks.truths import NUM_TRACKED_FRAMES

SHOWN = 10
SHAPE_TOLERANCE = 0.02
"""Share by which the aspect ratio that a row gives may differ from its file's."""


Track = Callable[[Sequence[Path]], Iterable[Path]]
"""Passes files through and shows how many are done."""


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """The rows of an annotation file, with the problems that its files show.

    media: where the medium of each row is, None where it is not found or not looked for.  files: what each of them is
    like, or why it cannot be opened.  repeated: keys that occur more than once in the annotation file.
    """

    rows: list[AnnotationRow]
    media: list[Path | None]
    files: Mapping[Path, FileFacts | ClipError]
    repeated: RepeatedKeys


def inspect(
    path: Path, videos: Path | None, data: DataConfig, *, workers: int = 1, track: Track = lambda files: files
) -> Inspected:
    """Return the rows of a file in `data.format`.

    Without `videos` the files are not looked for; with it, every file is opened, `workers` of them at once, and its
    length and size are compared with the durations, periods and boxes of its rows.
    Raises AnnotationError for a file that cannot be read.
    """
    root = None if videos is None else folder_of(Path(videos))
    found, repeated = read_rows(Path(path), data.format, data.columns)
    complete = [completed(row, root, data.links_outside) for row in found]
    files = _opened([medium for row, medium in complete if medium is not None and _is_compared(row)], workers, track)
    return Inspected(
        rows=[_measured(row, medium, files, data.fps) for row, medium in complete],
        media=[medium for _, medium in complete],
        files=files,
        repeated=repeated,
    )


def report_lines(
    path: Path, data: DataConfig, inspected: Inspected, undecodable: Iterable[ClipError] = ()
) -> Iterator[str]:
    """Yield the lines of a report: counts of videos, queries and tasks, then every dirty row.

    undecodable: why clips cannot be decoded, if that was tried.
    """
    rows, files = inspected.rows, inspected.files
    dirty = [dirty_row(row, may_clip=True) for row in rows if row.problems]
    clipped = sum(row.action == "clipped" for row in dirty)
    refused = sum(row.action == "refused" for row in dirty)
    yield f"{path}: {len({row.video for row in rows})} videos, {len(rows)} queries, {len(dirty)} dirty rows"
    if inspected.repeated:
        yield printable(repeated_text(inspected.repeated))
    failed = {error.uri: error for error in undecodable}
    failed |= {str(path): facts for path, facts in files.items() if isinstance(facts, ClipError)}
    for error in failed.values():
        yield printable(f"cannot be decoded (data.on_bad_clip): {error}")
    yield from _duration_lines(inspected)
    if FORMATS[data.format].task is None:
        tasks = sorted({row.task for row in rows if row.task})
        yield "tasks: " + (", ".join(f"{sum(row.task == task for row in rows)} {task}" for task in tasks) or "none")
    if any(row.task == "tracking" for row in rows):
        yield (
            f"each tracked sequence is shown by {_tracked_counts(rows)} evenly spaced frames, one per box; "
            "of a folder of frames the first and the last are among them"
        )
    if missing := missing_videos(dirty):
        yield f"{len(missing)} missing videos:"
        for one in missing:
            yield printable(f"  {one['video']}: {one['num_rows']} rows ({one['rows']})")
    if dirty:
        yield (
            f"data.on_dirty_row=drop skips {len(dirty) - refused}; clip fixes {clipped}, skips "
            f"{len(dirty) - clipped - refused}" + (f"; {refused} contradictions refuse the file" if refused else "")
        )
    for row in dirty:
        yield printable(f"{row} [{'clip fixes it' if row.action == 'clipped' else row.action}]")


def _tracked_counts(rows: Sequence[AnnotationRow]) -> str:
    counts = {len(row.truth) for row in rows if row.task == "tracking" and isinstance(row.truth, list)}
    return " or ".join(map(str, sorted(counts))) or str(NUM_TRACKED_FRAMES)


def _is_compared(row: AnnotationRow) -> bool:
    return all(one.is_fixed for one in row.problems)


def _opened(media: Sequence[Path], workers: int, track: Track) -> dict[Path, FileFacts | ClipError]:
    """Return what each file or folder is like, or why it cannot be opened."""
    unique = list(dict.fromkeys(media))
    with ThreadPoolExecutor(workers) as pool:
        futures = {path: pool.submit(facts_of, path) for path in unique}
        return {path: _result(futures[path]) for path in track(unique)}


def _result(future: Future[FileFacts]) -> FileFacts | ClipError:
    try:
        return future.result()
    except ClipError as error:
        return error


def _duration_lines(inspected: Inspected) -> Iterator[str]:
    """Yield how many videos have another length than their rows give, and the first of them."""
    others: dict[str, str] = {}
    for row, medium in zip(inspected.rows, inspected.media, strict=True):
        facts = inspected.files.get(medium) if medium is not None else None
        if not isinstance(facts, FileFacts) or facts.length_s is None or row.duration_s is None or row.window_s:
            continue
        if abs(facts.length_s - row.duration_s) > TOLERANCE_S:
            others.setdefault(row.video, f"  {row.video}: {row.duration_s:g} s annotated, {facts.length_s:.2f} s long")
    if others:
        yield f"{len(others)} videos last more than {TOLERANCE_S:g} s longer or shorter than annotated:"
        yield from map(printable, list(others.values())[:SHOWN])
        if len(others) > SHOWN:
            yield "  …"


def _measured(
    row: AnnotationRow, medium: Path | None, files: Mapping[Path, FileFacts | ClipError], fps: float
) -> AnnotationRow:
    """Return the row, with a further problem for each part of its truth that its file contradicts.

    fps: of images where nothing else says it.
    """
    facts = files.get(medium) if medium is not None else None
    if medium is None or not isinstance(facts, FileFacts) or not _is_compared(row):
        return row  # `data.on_bad_clip` is about files that cannot be opened
    count = len(row.frames) or facts.num_images
    length_s = count / (folder_fps(row, medium) or fps) if count else facts.length_s
    sized = _sized_otherwise(row, facts)
    problems = [*([] if length_s is None else _late(row, length_s)), *([] if sized is None else [sized])]
    return replace(row, problems=(*row.problems, *problems))


def _late(row: AnnotationRow, length_s: float) -> Iterator[Problem]:
    """Yield the problems of a part and of periods that lie outside a file, or images, of this length."""
    start_s, end_s = row.window_s or (0.0, length_s)
    if min(end_s, length_s) <= start_s:
        text = f"the part from {start_s:g} to {end_s:g} s starts after the end of the file at {length_s:.2f} s"
        yield Problem(field="video_start", text=text)
        return
    if text := past_the_file((start_s, end_s), length_s):
        yield Problem(field="video_end", text=text, is_fixed=True)
    fit = fit_truth(row.task, row.truth, min(end_s, length_s) - start_s)
    if fit.problem:
        yield Problem(field="truth", text=fit.problem, is_fixed=fit.truth is not None)


def _sized_otherwise(row: AnnotationRow, facts: FileFacts) -> Problem | None:
    """Return the problem of boxes in pixels of a picture of another shape, and of boxes for more frames than there are.

    A picture of the same shape in another size is none: boxes are compared as fractions.
    """
    if isinstance(row.truth, Mapping) and facts.size is not None and row.truth.get("width"):
        width, height = row.truth["width"], row.truth["height"]
        shown = facts.size[0] / facts.size[1]
        # a file that is turned by a quarter has the sides the other way round
        if min(abs(width / height / one - 1) for one in (shown, 1 / shown)) > SHAPE_TOLERANCE:
            sides = f"{facts.size[0]:g} x {facts.size[1]:g}"
            text = f"the boxes are pixels of {width:g} x {height:g}, the file shows {sides} pixels"
            return Problem(field="width, height", text=text)
    count = row.labels.get("num_frames")
    if facts.num_images is not None and isinstance(count, float) and facts.num_images != count:
        return Problem(field="truth", text=f"{count:g} boxes for the folder's {facts.num_images} images")
    return None
