"""The page of `rlsys data preview`: rows of an annotation file with their frames, before any model has answered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlsys.data.annotations.annotations import Annotations, UnanswerableRow
from rlsys.evaluation.answered import unasked
from rlsys.evaluation.answering.modes import evenly_spaced
from rlsys.evaluation.pages.page import Section, Table, write_page
from rlsys.evaluation.pages.rows import page_row
from rlsys.evaluation.pages.thumbnails import thumbnails
from rlsys.types import PromptItem


def write_preview(
    path: Path, title: str, found: Annotations, *, num: int, workers: int, timeout_s: float
) -> tuple[Path, int]:
    """Write the page and return its path and the number of rows that it shows, at most `num`.

    found: a file read with keep="published".  workers, timeout_s: of decoding.
    Rows are evenly spaced over the file, those that no model can be asked behind the others, without frames.
    """
    rows: list[PromptItem | UnanswerableRow] = [*found.items, *found.unanswerable]
    shown = [rows[index] for index in evenly_spaced(len(rows), num)]
    asked = [row for row in shown if isinstance(row, PromptItem)]
    pictures = thumbnails([row.media for row in asked], workers=workers, timeout_s=timeout_s)
    frames = {row.prompt_id: one for row, one in zip(asked, pictures, strict=True)}
    pages = [
        page_row(unasked(row), group=row.task or "unreadable", frames=frames.get(row.prompt_id, [])) for row in shown
    ]
    write_page(path, title, [_section(title, found, len(shown))], pages)
    return path, len(shown)


def _section(title: str, found: Annotations, num_shown: int) -> Section:
    kinds: dict[str, int] = {}
    for row in found.dirty:
        kinds[f"{row.field} ({row.action})"] = kinds.get(f"{row.field} ({row.action})", 0) + 1
    facts = [
        ("videos", str(found.num_videos)),
        ("rows", str(found.num_queries)),
        ("shown", str(num_shown)),
        ("dirty", str(len(found.dirty))),
        ("cannot be asked", str(len(found.unanswerable))),
    ]
    dirty: Sequence[tuple[str, int]] = sorted(kinds.items(), key=lambda one: -one[1])
    tables = [Table(title="Dirty rows", columns=["field", "rows"], rows=dirty)] if dirty else []
    return Section(title=title, facts=facts, tables=tables)
