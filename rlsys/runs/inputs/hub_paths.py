"""The config of a run with everything that it names of the hub replaced by what is in the local cache."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rlsys import hub
from rlsys.config.run import ModelConfig, RunConfig
from rlsys.errors import CheckpointError
from rlsys.runs.records.run_file import read_run_file

log = logging.getLogger(__name__)


def with_local_files(
    config: RunConfig,
    resume: Path | None = None,
    *,
    only_cached: bool = False,
    is_needed: Callable[[str], bool] = lambda field: True,
) -> RunConfig:
    """Return the config with folders and files of this machine for the model and the data that it names of the hub.

    resume: folder of the run that continues; what the config names without a revision has the commit that the run
    started with. only_cached: download nothing.  is_needed: whether the file of a config key is used; others stay as
    they are. Raises HubError for what is not to be had.
    """
    found = {field: what for field, what in _references(config, "") if is_needed(field)}
    if not found:
        return config
    pins = _pins(resume) if resume else {}
    places: dict[str, Path] = {}
    for field, what in found.items():
        places[field] = hub.fetch(what, pins, field=field, only_cached=only_cached)
        log.info("%s=%s is %s", field, what, places[field])
    replaced: RunConfig = _replaced(config, "", places)
    return replaced


def _references(part: BaseModel, prefix: str) -> Iterator[tuple[str, hub.Reference]]:
    """Yield each config key that names something of the hub, with what it names."""
    for name, value in part:
        if isinstance(value, Path):
            is_model = isinstance(part, ModelConfig) and not part.make_tiny
            if (what := hub.reference(value, is_model=is_model)) is not None:
                yield f"{prefix}{name}", what
        elif isinstance(value, BaseModel):
            yield from _references(value, f"{prefix}{name}.")
        elif isinstance(value, tuple):
            for index, entry in enumerate(value):
                if isinstance(entry, BaseModel):
                    yield from _references(entry, f"{prefix}{name}.{index}.")


def _replaced(part: Any, prefix: str, places: dict[str, Path]) -> Any:
    """Return a section, or a list of them, with the paths of `places`."""
    changes: dict[str, Any] = {}
    for name, value in part:
        key = f"{prefix}{name}"
        if key in places:
            changes[name] = places[key]
        elif isinstance(value, BaseModel) and any(place.startswith(f"{key}.") for place in places):
            changes[name] = _replaced(value, f"{key}.", places)
        elif isinstance(value, tuple) and any(place.startswith(f"{key}.") for place in places):
            changes[name] = tuple(_replaced(entry, f"{key}.{index}.", places) for index, entry in enumerate(value))
    return part.model_copy(update=changes)


def _pins(run_folder: Path) -> dict[str, str]:
    """Return the commit of each repository that a run started with."""
    try:
        before = read_run_file(run_folder).config
    except CheckpointError:
        return {}  # a checkpoint, or a run that has not begun
    paths = _paths(before)
    snapshots = [snapshot for path in paths if (snapshot := hub.snapshot_of(path)) is not None]
    return {snapshot.repo: snapshot.revision for snapshot in snapshots if snapshot.revision}


def _paths(part: BaseModel) -> Iterator[Path]:
    for _, value in part:
        if isinstance(value, Path):
            yield value
        elif isinstance(value, BaseModel):
            yield from _paths(value)
        elif isinstance(value, tuple):
            for entry in value:
                if isinstance(entry, BaseModel):
                    yield from _paths(entry)
