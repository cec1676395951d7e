"""The one place that turns a config into running parts.

The packages of the parts (`actors`, `learner`, `reward_servers`, `cluster`) are imported
inside functions, so that importing `rlsys` never loads Ray, torch or vLLM.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rlsys.config import ConfigError, DataConfig, RunConfig
from rlsys.data.annotations import load as load_annotations
from rlsys.experience import Experience
from rlsys.models.prompts import PromptBuilder
from rlsys.types import PromptItem, WeightVersion

if TYPE_CHECKING:
    from actors.pool import RolloutPool
    from learner.group import LearnerGroup
    from rlsys.data.clips import ClipStore

log = logging.getLogger(__name__)


def load_items(data: DataConfig, annotations: Path, videos: Path) -> tuple[PromptItem, ...]:
    """The usable rows of an annotation file. Raises ConfigError when none is left."""
    loaded = load_annotations(annotations, videos=videos, data=data)
    if loaded.dirty:
        log.warning("%s: %d dirty rows; `rlsys data check` lists them", annotations, len(loaded.dirty))
    if not loaded.items:
        raise ConfigError(f"{annotations}: no usable row; `rlsys data check --format {data.format}` says why.")
    return loaded.items


def training_items(config: RunConfig) -> tuple[PromptItem, ...]:
    """The rows to train on."""
    if config.data.annotations is None or config.data.videos is None:
        raise ConfigError(
            "data.annotations and data.videos say what to train on and are not set; give both, "
            "for example data.annotations=FILE.json data.videos=FOLDER."
        )
    return load_items(config.data, config.data.annotations, config.data.videos)


def held_out_items(config: RunConfig) -> tuple[PromptItem, ...]:
    """The rows to evaluate on; () when the config names none."""
    if config.evaluation.annotations is None:
        return ()
    videos = config.evaluation.videos or config.data.videos
    if videos is None:
        raise ConfigError("evaluation.annotations is set, but neither evaluation.videos nor data.videos is.")
    items = load_items(config.data, config.evaluation.annotations, videos)
    return items[: config.evaluation.num_prompts or None]


class Stack:
    """A cluster with learner ranks, rollout actors and reward servers, up and idle. A context manager."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._resources = ExitStack()
        self.prompts: PromptBuilder
        self.clips: ClipStore
        self.pool: RolloutPool
        self.learner: LearnerGroup
        self.experience: Experience
        self.reward_url: str
