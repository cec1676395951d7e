"""Load the rows that a run trains on and is evaluated on."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from rlsys.config.data import Source, sources
from rlsys.config.run import ConfigError, DataConfig, RunConfig
from rlsys.data.annotations.annotations import Annotations, DirtyRow, load_annotations, missing_videos
from rlsys.data.annotations.media import with_patches
from rlsys.data.mixture import PromptOrder, Rates, prompt_order
from rlsys.models.model_config import patch_shape
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

    def load(source: Source) -> tuple[PromptItem, ...]:
        loaded = _load(source)
        # several sources may be of one file, each with rows of its own
        dirty[source.annotations] = tuple(dict.fromkeys((*dirty.get(source.annotations, ()), *loaded.dirty)))
        return loaded.items

    return Rows(training=training_items(config, load), held_out=held_out_items(config, load), dirty=dirty)


def load_items(data: DataConfig, annotations: Path, videos: Path) -> tuple[PromptItem, ...]:
    """Return the usable rows of an annotation file. Raises ConfigError if there is none."""
    return load_source(_plain_source(data, annotations, videos))


def load_source(source: Source) -> tuple[PromptItem, ...]:
    """Return the usable rows of a source. Raises ConfigError if there is none."""
    return _load(source).items


def _plain_source(data: DataConfig, annotations: Path, videos: Path) -> Source:
    return Source(name=annotations.stem, annotations=annotations, videos=videos, data=data)


def _load(source: Source) -> Annotations:
    annotations, data = source.annotations, source.data
    loaded = load_annotations(
        annotations,
        videos=source.videos,
        data=data,
        name=source.name,
        split=source.split,
        task=source.task,
        rows_per_video=source.rows_per_video,
    )
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


Load = Callable[[Source], tuple[PromptItem, ...]]


def training_items(config: RunConfig, load: Load = load_source) -> tuple[PromptItem, ...]:
    """Return the rows to train on, of all sources in order. Raises ConfigError if the config names none."""
    found = sources(config.data)
    if not found:
        raise ConfigError(
            "data.annotations or data.videos is not set, so there is nothing to train on; set both, "
            "for example data.annotations=FILE.json data.videos=FOLDER, or list several files in data.sources."
        )
    return with_patches([item for source in found for item in load(source)], patch_shape(config.model.path))


def held_out_items(config: RunConfig, load: Load = load_source) -> tuple[PromptItem, ...]:
    """Return the rows to evaluate on, () if the config names none."""
    if config.evaluation.annotations is None:
        return ()
    videos = config.evaluation.videos or config.data.videos
    if videos is None:
        raise ConfigError(
            "evaluation.annotations is set, but neither evaluation.videos nor data.videos is; set one of the two."
        )
    items = load(_plain_source(config.data, config.evaluation.annotations, videos))
    return with_patches(items[: config.evaluation.num_prompts or None], patch_shape(config.model.path))


def order_of(config: RunConfig, items: Sequence[PromptItem], rates: Rates | None = None) -> PromptOrder:
    """Return the order in which a run samples `items`, which are its training rows.

    rates: of the run so far, for `data.curriculum`; without them rows are shuffled whatever it says.
    """
    return prompt_order(
        items,
        sources(config.data),
        seed=config.seed,
        prompts_per_step=config.train.prompts_per_step,
        rates=rates if config.data.curriculum == "easy_first" else None,
    )


def with_num_steps(config: RunConfig, num_rows: Callable[[RunConfig], int]) -> RunConfig:
    """Return the config with `train.num_steps` for its `train.epochs`; unchanged if no epochs are set.

    num_rows: counts what the run samples from; called only if it must be known.
    """
    if config.train.epochs is None:
        return config
    num_prompts = Fraction(str(config.train.epochs)) * num_rows(config)
    num_steps = max(1, math.ceil(num_prompts / config.train.prompts_per_step))
    train = config.train.model_copy(update={"num_steps": num_steps, "epochs": None})
    log.info("train.epochs=%g: %d steps of %d prompts", config.train.epochs, num_steps, train.prompts_per_step)
    return config.model_copy(update={"train": train})
