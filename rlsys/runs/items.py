"""Load the rows that a run trains on and is evaluated on."""

from __future__ import annotations

import logging
from pathlib import Path

from rlsys.config.run import ConfigError, DataConfig, RunConfig
from rlsys.data.annotations.annotations import load_annotations
from rlsys.types import PromptItem

log = logging.getLogger(__name__)

SHOWN = 10


def load_items(data: DataConfig, annotations: Path, videos: Path) -> tuple[PromptItem, ...]:
    """Return the usable rows of an annotation file. Raises ConfigError if there is none."""
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
    return loaded.items


def training_items(config: RunConfig) -> tuple[PromptItem, ...]:
    """Return the rows to train on. Raises ConfigError if the config names none."""
    if config.data.annotations is None or config.data.videos is None:
        raise ConfigError(
            "data.annotations or data.videos is not set, so there is nothing to train on; set both, "
            "for example data.annotations=FILE.json data.videos=FOLDER."
        )
    return load_items(config.data, config.data.annotations, config.data.videos)


def held_out_items(config: RunConfig) -> tuple[PromptItem, ...]:
    """Return the rows to evaluate on, () if the config names none."""
    if config.evaluation.annotations is None:
        return ()
    videos = config.evaluation.videos or config.data.videos
    if videos is None:
        raise ConfigError(
            "evaluation.annotations is set, but neither evaluation.videos nor data.videos is; set one of the two."
        )
    items = load_items(config.data, config.evaluation.annotations, videos)
    return items[: config.evaluation.num_prompts or None]
