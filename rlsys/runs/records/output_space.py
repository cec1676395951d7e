"""Whether a run's folder can be written to, and whether its disk has room for a checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from rlsys.config.run import RunConfig
from rlsys.files import free_files, why_not_writable
from rlsys.models.sizes import read_model_sizes

BYTES_OF_ADAMW = 12
"""Bytes per trained parameter in a checkpoint: the float32 weight and both moments."""
RECORD_BYTES = 32 << 20
"""Bytes left for what else a run writes from its first step: the MLflow store, rollouts, logs."""

NUM_FILES = 100
"""Files of a checkpoint of a few ranks, and of the record of a short run."""


def checkpoint_bytes(config: RunConfig) -> int:
    """Return the estimated bytes of a checkpoint: the learner's state, and the model as a folder."""
    sizes = read_model_sizes(config.model.path)
    number = 2 if config.model.dtype == "bfloat16" else 4
    return sizes.trained(config.learner) * (BYTES_OF_ADAMW + number) + sizes.parameters * number


def output_problems(config: RunConfig) -> Iterator[str]:
    """Yield why the run could not write to `output_dir`. Raises UserError for a model whose size cannot be read."""
    folder = Path(config.output_dir)
    if why := why_not_writable(folder):
        yield f"output_dir={folder}: {why}; choose a folder that can be written to and has room."
        return
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    needed, free = checkpoint_bytes(config) + RECORD_BYTES, shutil.disk_usage(place).free
    if free < needed:
        yield (
            f"output_dir={folder}: its disk has {free >> 20} MiB free, but a checkpoint and the run's record take "
            f"about {needed >> 20} MiB; free space there, or choose a folder on another disk."
        )
    if (files := free_files(place)) < NUM_FILES:
        yield (
            f"output_dir={folder}: its disk can hold only {files:.0f} more files (df -i), but a checkpoint and the "
            f"run's record are about {NUM_FILES}; remove files there, or choose a folder on another disk."
        )
