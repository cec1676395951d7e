"""Load the rows that a run trains on and is evaluated on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlsys.config.run import ConfigError, DataConfig, RunConfig
from rlsys.data.annotations.annotations import Annotations, DirtyRow, load_annotations, missing_videos
from rlsys.types import PromptItem

log = logging.getLogger(__name__)

SHOWN = 10
MAX_TABLE_ROWS = 10_000
"""Rows of a table in MLflow, whose page shows it whole; `rlsys data check` lists all."""

Table = list[dict[str, str | int]]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of a run: to train on, to evaluate on, and those of either file that are dirty, by file."""

    training: tuple[PromptItem, ...]
    held_out: tuple[PromptItem, ...]
    dirty: Mapping[Path, Sequence[DirtyRow]]

    def tables(self) -> dict[str, Table]:
        """Return the tables that MLflow gets of dirty rows and of missing videos; {} if all rows are clean."""
        dirty: Table = [
            {
                "file": str(file),
                "row": row.row,
                "video": row.video,
                "field": row.field,
                "problem": row.problem,
                "action": row.action,
            }
            for file, rows in self.dirty.items()
            for row in rows
        ]
        missing: Table = [
            {"file": str(file), **one} for file, rows in self.dirty.items() for one in missing_videos(rows)
        ]
        tables = {"dirty_rows": dirty, "missing_videos": missing}
        return {name: table[:MAX_TABLE_ROWS] for name, table in tables.items() if table}


def read_rows(config: RunConfig) -> Rows:
    """Return all rows of a run. Raises ConfigError as `training_items` and `held_out_items` do."""
    dirty: dict[Path, Sequence[DirtyRow]] = {}

    def load(data: DataConfig, annotations: Path, videos: Path) -> tuple[PromptItem, ...]:
        loaded = _load(data, annotations, videos)
        dirty[annotations] = loaded.dirty
        return loaded.items

    return Rows(training=training_items(config, load), held_out=held_out_items(config, load), dirty=dirty)


def load_items(data: DataConfig, annotations: Path, videos: Path) -> tuple[PromptItem, ...]:
    """Return the usable rows of an annotation file. Raises ConfigError if there is none."""
    return _load(data, annotations, videos).items


def _load(data: DataConfig, annotations: Path, videos: Path) -> Annotations:
    loaded = load_annotations(annotations, videos=videos, data=data)
    skipped = [row for row in loaded.dirty if row.action == "dropped"]
    if loaded.dirty:
        log.warning("%s: %d dirty rows; `rlsys data check` lists them", annotations, len(loaded.dirty))
    if loaded.items and len(skipped) > data.max_dirty_share * loaded.num_queries:
        lines = [f"  {row}" for row in skipped[:SHOWN]] + ["  …"] * (len(skipped) > SHOWN)
        raise ConfigError(
            f"{annotations}: {len(skipped)} of {loaded.num_queries} rows cannot be used, more than "
            f"data.max_dirty_share={data.max_dirty_share:g} allows:\n" + "\n".join(lines) + "\n`rlsys data check "
            f"--format {data.format}` lists all; fix data.videos or the file, or raise data.max_dirty_share."
        )
    if not loaded.items:
        raise ConfigError(f"{annotations}: no usable row; `rlsys data check --format {data.format}` lists the reasons.")
    return loaded


Load = Callable[[DataConfig, Path, Path], tuple[PromptItem, ...]]


def training_items(config: RunConfig, load: Load = load_items) -> tuple[PromptItem, ...]:
    """Return the rows to train on. Raises ConfigError if the config names none."""
    if config.data.annotations is None or config.data.videos is None:
        raise ConfigError(
            "data.annotations or data.videos is not set, so there is nothing to train on; set both, "
            "for example data.annotations=FILE.json data.videos=FOLDER."
        )
    return load(config.data, config.data.annotations, config.data.videos)


def held_out_items(config: RunConfig, load: Load = load_items) -> tuple[PromptItem, ...]:
    """Return the rows to evaluate on, () if the config names none."""
    if config.evaluation.annotations is None:
        return ()
    videos = config.evaluation.videos or config.data.videos
    if videos is None:
        raise ConfigError(
            "evaluation.annotations is set, but neither evaluation.videos nor data.videos is; set one of the two."
        )
    items = load(config.data, config.evaluation.annotations, videos)
    return items[: config.evaluation.num_prompts or None]
