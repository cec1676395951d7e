"""The report of `rlsys data check`: what is wrong with the rows of a file, and with the files that they name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rlsys.data.annotations.annotations import completed, dirty_row, folder_of, missing_videos
from rlsys.data.annotations.formats import FORMATS
from rlsys.data.annotations.reading import printable, read_rows, repeated_text
from rlsys.data.annotations.rows import AnnotationRow, Problem
from rlsys.data.video.errors import ClipError
from rlsys.tasks.truth_fit import fit_truth
from rlsys.tasks.truths import NUM_TRACKED_FRAMES


def report_lines(path: Path, format: str, videos: Path | None, *, links_outside: bool = False) -> Iterator[str]:
    """Yield the lines of a report: counts of videos, queries and tasks, then every dirty row.

    Without `videos` the files are not looked for; with it, the length of every video is read and compared with the
    times of its rows. Raises AnnotationError for a file that cannot be read.
    """
    path = Path(path)
    root = None if videos is None else folder_of(Path(videos))
    found, repeated = read_rows(path, format)
    lengths: dict[Path, float | ClipError] = {}
    rows = [_measured(*completed(row, root, links_outside), lengths) for row in found]
    dirty = [dirty_row(row, may_clip=True) for row in rows if row.problems]
    clipped = sum(row.action == "clipped" for row in dirty)
    refused = sum(row.action == "refused" for row in dirty)
    yield f"{path}: {len({row.video for row in rows})} videos, {len(rows)} queries, {len(dirty)} dirty rows"
    if repeated:
        yield printable(repeated_text(repeated))
    for error in (found for found in lengths.values() if isinstance(found, ClipError)):
        yield printable(f"cannot be decoded (data.on_bad_clip): {error}")
    if FORMATS[format].task is None:
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


def _measured(row: AnnotationRow, medium: Path | None, lengths: dict[Path, float | ClipError]) -> AnnotationRow:
    """Return the row, with one more problem if its truth lies outside its video file. lengths: of files seen so far."""
    from rlsys.data.video.decode import length_of

    if medium is None or medium.is_dir() or row.medium == "image" or not all(one.is_fixed for one in row.problems):
        return row
    if medium not in lengths:
        try:
            lengths[medium] = length_of(medium)
        except ClipError as error:
            lengths[medium] = error
    length_s = lengths[medium]
    if isinstance(length_s, ClipError):
        return row  # `data.on_bad_clip` is about these
    start_s, end_s = row.window_s or (0.0, length_s)
    if min(end_s, length_s) <= start_s:
        text = f"the part from {start_s:g} to {end_s:g} s starts after the end of the file at {length_s:.2f} s"
        return replace(row, problems=(*row.problems, Problem(field="video_start", text=text)))
    fit = fit_truth(row.task, row.truth, min(end_s, length_s) - start_s)
    if not fit.problem:
        return row
    problem = Problem(field="truth", text=fit.problem, is_fixed=fit.truth is not None)
    return replace(row, problems=(*row.problems, problem))
