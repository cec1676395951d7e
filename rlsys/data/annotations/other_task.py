"""Rows trained as another task than their own, of which they have all the annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rlsys.config.run import ConfigError
from rlsys.data.annotations.rows import AnnotationRow, Counted
from rlsys.tasks.table import TASKS, task_name
from rlsys.types import Json

_SIZE = ("width", "height")
PARTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "grounded_qa": {"multiple_choice": ("answer",)},
    "spatial_qa": {"multiple_choice": ("answer",)},
    "spatiotemporal_qa": {
        "multiple_choice": ("answer",),
        "grounded_qa": ("answer", "glue"),
        "spatial_qa": ("answer", "box", *_SIZE),
    },
    "spatiotemporal_grounding": {"temporal_grounding": ("period",), "spatial_grounding": ("box", *_SIZE)},
}
"""Task of a row -> tasks that it can be trained as -> the fields of its truth that remain."""
_BARE = frozenset({"multiple_choice", "temporal_grounding"})
"""Tasks whose truth is the value of the one field that remains."""


def as_task(path: Path, rows: Sequence[AnnotationRow], task: str) -> list[AnnotationRow]:
    """Return the rows as rows of `task`, without the annotations that it does not score.

    Raises ConfigError for an unknown task, and for rows that are not annotated with all that it scores.
    """
    wanted = task_name(task)
    if wanted not in TASKS:
        raise ConfigError(f"{path}: task={task!r} is not known; the tasks are {', '.join(TASKS)}.")
    if unfit := [row for row in rows if row.task not in ("", wanted) and wanted not in PARTS.get(row.task, {})]:
        possible = ", ".join(PARTS.get(unfit[0].task, {})) or "nothing else"
        raise ConfigError(
            f"{path}: {len(unfit)} rows cannot be trained as task={wanted}, row {unfit[0].label} for one: it is of "
            f"{unfit[0].task}, which can be trained as {possible}; correct `task`, or remove it."
        )
    return [_as(row, wanted) for row in rows]


def _as(row: AnnotationRow, wanted: str) -> AnnotationRow:
    if row.task in ("", wanted):
        return row
    kept = PARTS[row.task][wanted]
    if row.counted is not None:
        stated = _as(replace(row, counted=None, task=row.counted.task, truth=row.counted.truth), wanted)
        return replace(_as(replace(row, counted=None), wanted), counted=Counted(task=stated.task, truth=stated.truth))
    if row.truth is None:  # it has problems, and is dropped
        return replace(row, task=wanted)
    truth: Json = {name: row.truth[name] for name in kept if name in row.truth}
    return replace(
        row,
        task=wanted,
        truth=truth[kept[0]] if wanted in _BARE else truth,
        needs_size=row.needs_size and "box" in kept,
    )
