"""Read annotation files as PromptItems, and report every dirty row by its place in the file."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rlsys.config.run import DataConfig
from rlsys.data.annotations.formats import FORMATS
from rlsys.data.annotations.media import (
    find_medium,
    is_inside,
    media_spec,
    picture_size,
    places,
    rate_problems,
    video_spec,
)
from rlsys.data.annotations.published import PUBLISHED, RepeatedKeys, parse_json
from rlsys.data.annotations.rows import AnnotationRow, BadLine, Problem, short
from rlsys.data.annotations.vtts import with_size
from rlsys.data.video.errors import AnnotationError, ClipError
from rlsys.tasks.table import task_named
from rlsys.tasks.truth_fit import fit_truth
from rlsys.tasks.truths import NUM_TRACKED_FRAMES
from rlsys.types import Json, PromptItem

__all__ = ["AnnotationError", "Annotations", "DirtyRow", "load_annotations", "report_lines", "video_spec"]

SHOWN = 10
_PLACEHOLDERS = re.compile(r"\A(?:\s*<(?:video|image)>)+|(?:<(?:video|image)>\s*)+\Z")
_CONTROL = re.compile(r"<\|[^<>|\s]{1,40}\|>|</?(?:video|image|s|pad|bos|eos|unk|start_of_turn|end_of_turn)>")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DirtyRow:
    """A row that is not as it should be.

    row: its place in the file.  field, problem: what is wrong, several joined by "; ".
    action: "clipped" when the row is kept with its spans cut to the clip, "dropped" when it is skipped,
    "refused" when it contradicts itself, which refuses the file.  video: as the row names it.  is_missing: whether the
    video is not in the folder of videos.
    """

    row: str
    field: str
    problem: str
    action: Literal["dropped", "clipped", "refused"]
    video: str = ""
    is_missing: bool = False

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
    """Return the rows of `path` in `data.format` as items whose media lie in `videos`.

    Dirty rows are dropped, clipped or an error as `data.on_dirty_row` says; the result may be empty.
    Raises AnnotationError for a file or folder that cannot be read, for rows that contradict themselves or their
    task, whatever `data.on_dirty_row` says, and under "stop" for the first dirty row.
    """
    path = Path(path)
    rows, repeated = _read(path, data.format)
    if repeated:
        _log.warning("%s: %s", path, _repeated_text(repeated))
    _refuse_contradictions(path, rows)
    root = _folder(Path(videos))
    items: list[PromptItem] = []
    dirty: list[DirtyRow] = []
    for found in rows:
        row, medium = _complete(found, root, data.links_outside)
        if row.problems:
            dirty.append(_report(row, may_clip=data.on_dirty_row == "clip"))
            if data.on_dirty_row == "stop":
                raise AnnotationError(
                    f"{path}: row {dirty[-1]}; fix the file, or set data.on_dirty_row to drop or clip."
                )
        if medium is not None and (not row.problems or dirty[-1].action == "clipped"):
            items.append(_item(path, row, medium, data))
    return Annotations(
        items=tuple(items), dirty=tuple(dirty), num_videos=len({row.video for row in rows}), num_queries=len(rows)
    )


def report_lines(path: Path, format: str, videos: Path | None, *, links_outside: bool = False) -> Iterator[str]:
    """Yield the lines of a report: counts of videos, queries and tasks, then every dirty row.

    Without `videos` the files are not looked for; with it, the length of every video is read and compared with the
    times of its rows. Raises AnnotationError for a file that cannot be read.
    """
    path = Path(path)
    root = None if videos is None else _folder(Path(videos))
    found, repeated = _read(path, format)
    lengths: dict[Path, float | ClipError] = {}
    rows = [_measured(*_complete(row, root, links_outside), lengths) for row in found]
    dirty = [_report(row, may_clip=True) for row in rows if row.problems]
    clipped = sum(row.action == "clipped" for row in dirty)
    refused = sum(row.action == "refused" for row in dirty)
    yield f"{path}: {len({row.video for row in rows})} videos, {len(rows)} queries, {len(dirty)} dirty rows"
    if repeated:
        yield _printable(_repeated_text(repeated))
    for error in (found for found in lengths.values() if isinstance(found, ClipError)):
        yield _printable(f"cannot be decoded (data.on_bad_clip): {error}")
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
            yield _printable(f"  {one['video']}: {one['num_rows']} rows ({one['rows']})")
    if dirty:
        yield (
            f"data.on_dirty_row=drop skips {len(dirty) - refused}; clip fixes {clipped}, skips "
            f"{len(dirty) - clipped - refused}" + (f"; {refused} contradictions refuse the file" if refused else "")
        )
    for row in dirty:
        yield _printable(f"{row} [{'clip fixes it' if row.action == 'clipped' else row.action}]")


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


def _tracked_counts(rows: Sequence[AnnotationRow]) -> str:
    counts = {len(row.truth) for row in rows if row.task == "tracking" and isinstance(row.truth, list)}
    return " or ".join(map(str, sorted(counts))) or str(NUM_TRACKED_FRAMES)


def _repeated_text(repeated: RepeatedKeys) -> str:
    names = ", ".join(dict.fromkeys(repeated[:SHOWN])) + (", …" if len(repeated) > SHOWN else "")
    return f"{len(repeated)} keys occur twice in one object, and their queries are joined: {names}"


def _read(path: Path, format: str) -> tuple[list[AnnotationRow], RepeatedKeys]:
    if format not in FORMATS:
        raise AnnotationError(f"format {format!r} is not known; the formats are {', '.join(FORMATS)}.")
    shape = FORMATS[format]
    published = PUBLISHED.get((format, path.suffix.lower()))
    repeated: RepeatedKeys = []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read ({error.strerror}); check data.annotations.") from error
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: not UTF-8 text ({error}); convert the file to UTF-8.") from error
    try:
        if published is not None:
            return [_plain(row) for row in published(path, text)], repeated
        tree = _lines(text, repeated) if shape.is_lines else parse_json(text, repeated)
        return [_plain(row) for row in shape.read(tree)], repeated
    except (ValueError, RecursionError) as error:
        expected = "one JSON object per line" if shape.is_lines else "a JSON file"
        raise AnnotationError(
            f"{_printable(str(path))}: not JSON, and data.format={format} reads {expected} ({error}); "
            "check data.format, or the file where the error is."
        ) from error
    except TypeError as error:
        raise AnnotationError(f"{path}: not in the shape of {format}: {error}; check data.format.") from error


def _lines(text: str, repeated: RepeatedKeys) -> list[tuple[str, Json]]:
    """Return (line number from 1, content) of the lines that are not blank. Raises ValueError if none is JSON."""
    # not splitlines(): a JSON string may hold U+2028, which that takes for the end of a line
    lines = enumerate(text.split("\n"), start=1)
    entries = [(str(number), _line(line, repeated)) for number, line in lines if line.strip()]
    bad = [entry.problem for _, entry in entries if isinstance(entry, BadLine)]
    if entries and len(bad) == len(entries):
        raise ValueError(f"one object per line is expected, and no line is one; line {entries[0][0]}: {bad[0]}")
    return entries


def _line(line: str, repeated: RepeatedKeys) -> Json:
    try:
        return parse_json(line, repeated)
    except (ValueError, RecursionError) as error:
        return BadLine(problem=f"not JSON: {error}")


def _plain(row: AnnotationRow) -> AnnotationRow:
    """Return the row without placeholders of media around its question; text that cannot be shown is a problem.

    A control token in a question would act as one in the prompt, and a lone surrogate cannot be written as UTF-8.
    """
    question = _PLACEHOLDERS.sub("", row.question).strip()
    problems = list(row.problems)
    texts = {"question": question, "options": "\n".join(row.options), "video": row.video, "(row)": row.label}
    for field, text in texts.items():
        control = _CONTROL.search(text) if field in ("question", "options") else None
        if control is not None:
            problems.append(Problem(field=field, text=f"holds the control token {control.group()}"))
        if _printable(text) != text:
            problems.append(Problem(field=field, text=f"{_printable(short(text))} is not valid Unicode"))
    if question == row.question and len(problems) == len(row.problems):
        return row
    return replace(row, question=question, problems=tuple(problems))


def _printable(text: str) -> str:
    """Return `text` with lone surrogates, which no file or terminal takes, written out."""
    return text.encode("utf-8", "backslashreplace").decode()


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
    lines.append(
        "These rows contradict themselves or their task, and guessing what they mean is not safe; fix the file."
    )
    raise AnnotationError(_printable("\n".join(lines)))


def _complete(row: AnnotationRow, root: Path | None, links_outside: bool) -> tuple[AnnotationRow, Path | None]:
    """Return the row with everything that its medium shows and all its problems, and where the medium is."""
    if root is None or not row.video:
        return row if row.needs_size else _checked(row), None
    medium = find_medium(row, root)
    if medium is None:
        text = f"{row.video!r} is not in {root}; looked for {', '.join(places(row))}"
        return replace(row, problems=(*row.problems, Problem(field="video", text=text, is_missing=True))), None
    if not links_outside and not is_inside(medium, root):
        text = f"{row.video!r} leads out of {root}, to {medium.resolve()}; set data.links_outside=true to allow it"
        return replace(row, problems=(*row.problems, Problem(field="video", text=text))), None
    if medium.is_dir():
        row = replace(row, problems=(*row.problems, *rate_problems(row, medium)))
    if row.needs_size:
        row = _sized(row, medium)
    return _checked(row), medium


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
        video=row.video,
        is_missing=any(problem.is_missing for problem in problems),
    )


def _item(path: Path, row: AnnotationRow, medium: Path, data: DataConfig) -> PromptItem:
    duration = {} if row.duration_s is None else {"duration_s": row.duration_s}
    return PromptItem(
        prompt_id=f"{path.stem}:{row.label}",
        task=row.task,
        question=row.question,
        options=row.options,
        media=(media_spec(row, medium.absolute(), data),),  # workers may have another working directory
        truth=row.truth,
        labels={"video": row.video, **duration, **row.labels},
    )
