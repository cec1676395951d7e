"""How a run starts: the options of its command, what they find, and what a continued run may have changed."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlsys.config.run import ConfigError, RunConfig
from rlsys.errors import UserError
from rlsys.hub import snapshot_of
from rlsys.loop.state import RunState
from rlsys.runs.inputs.identity import BASE_MODEL, Identity, changed_settings, identity, require_same
from rlsys.runs.records.run_file import RUN_FILE, RunFile, read_run_file
from rlsys.types import PromptItem
from rlsys.urls import masked_tree

log = logging.getLogger(__name__)

PARENT_TAG = "rlsys.parent_run_id"
PARENT_CHECKPOINT_TAG = "rlsys.parent_checkpoint"
CHANGES_TAG = "rlsys.allowed_changes"
SETTINGS_TAG = "rlsys.changed_settings"
RUN_NAME_TAG = "mlflow.runName"
"""MLflow's own tag, which renames a run when it is set."""
MODEL_TAG = "rlsys.base_model"
MAX_TAG_CHARACTERS = 4000  # MLflow refuses longer tags than 8,000


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """The options with which a command starts or continues a run; without any it is a new run from its model.

    resume: the run's own folder or a checkpoint in it.  fork: a checkpoint of another run, or that run's folder.
    allow_changes: continue although what makes the run the run that it is has changed; it is recorded then.
    """

    resume: Path | None = None
    fork: Path | None = None
    allow_changes: bool = False


FRESH = StartOptions()


@dataclass(frozen=True, kw_only=True)
class ResumePoint:
    """The point from which a process starts or continues a run.

    checkpoint: None if there is none, so that the run starts from its model.
    is_new: whether the run has not started before, so that any rollouts in its folder belong to another run.
    parent_run_id: MLflow run of the checkpoint that a new run is forked from.
    """

    state: RunState
    checkpoint: Path | None
    is_new: bool = False
    parent_run_id: str = ""


@dataclass(frozen=True, kw_only=True)
class Start:
    """What is recorded of a start, in `run.json` and as tags, tables and inputs of the MLflow run.

    num_rows: of each source, by its name.
    """

    command: str
    identity: Mapping[str, str]
    tags: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    num_rows: Mapping[str, int] = field(default_factory=dict)
    parent_checkpoint: str = ""

    def run_file(self, config: RunConfig, mlflow_run_id: str) -> RunFile:
        return RunFile(
            mlflow_run_id=mlflow_run_id,
            config=config,
            command=self.command,
            identity=self.identity,
            parent_checkpoint=self.parent_checkpoint,
        )


def describe_start(
    config: RunConfig,
    point: ResumePoint,
    items: Sequence[PromptItem],
    *,
    command: str,
    allow_changes: bool,
    more_identity: Identity | None = None,
) -> Start:
    """Compare a continued run with its latest start and return what is recorded of this one.

    items: the rows that are trained on. Settings that may change take effect and are reported. Raises ConfigError if
    the base model, the data, the seed, the group size, the rounds or what is trained differ, unless `allow_changes`,
    and CheckpointError if the learner could not load the checkpoint as configured.
    more_identity: what else must not change.
    """
    now = {**identity(config, items), **(more_identity or {})}
    tags: dict[str, str] = {}
    parent = ""
    if (snapshot := snapshot_of(config.model.path)) is not None:
        tags[MODEL_TAG] = str(snapshot)
    if point.is_new and point.checkpoint:
        parent = tags[PARENT_CHECKPOINT_TAG] = str(point.checkpoint.resolve())
        tags[PARENT_TAG] = point.parent_run_id
        if other := _other_base(config, point.checkpoint, now, allow_changes=allow_changes):
            tags[CHANGES_TAG] = other
    if not point.is_new and (config.output_dir / RUN_FILE).exists():
        before = read_run_file(config.output_dir)
        parent = before.parent_checkpoint
        if allowed := require_same(before.identity, now, allow_changes=allow_changes):
            log.warning("allowed changes of the resumed run: %s", "; ".join(allowed))
            tags[CHANGES_TAG] = "\n".join(allowed)[:MAX_TAG_CHARACTERS]
        old, new = (masked_tree(one.model_dump(mode="json")) for one in (before.config, config))
        if changed := list(changed_settings(old, new)):
            log.info("settings that differ from the run's latest start: %s", "; ".join(changed))
            tags[SETTINGS_TAG] = "\n".join(changed)[:MAX_TAG_CHARACTERS]
        if before.config.tracking.run_name != config.tracking.run_name:
            tags[RUN_NAME_TAG] = config.tracking.run_name or config.output_dir.resolve().name
    elif not point.is_new and point.checkpoint:
        log.warning(
            "%s is missing: whether the base model, the data or other settings have changed cannot be told",
            config.output_dir / RUN_FILE,
        )
    if point.checkpoint:
        _require_fit(config, point.checkpoint)
    num_rows = Counter(item.source for item in items)
    return Start(command=command, identity=now, tags=tags, num_rows=num_rows, parent_checkpoint=parent)


def _other_base(config: RunConfig, checkpoint: Path, now: Identity, *, allow_changes: bool) -> str:
    """Return how the base model differs from that of a forked checkpoint without the weights that were not trained.

    "" if it does not, or if all weights are in the checkpoint. Raises ConfigError for another one, unless
    `allow_changes`: adapters and heads that were trained on one model are noise on another.
    """
    learner, parent = config.learner, checkpoint.resolve().parent.parent
    if not learner.untrained_parts or not (parent / RUN_FILE).exists():
        return ""
    try:
        before = read_run_file(parent).identity.get(BASE_MODEL, now[BASE_MODEL])
    except UserError as error:
        log.warning("cannot tell whether %s was trained on the same base model: %s", checkpoint, error)
        return ""
    if before == now[BASE_MODEL]:
        return ""
    changed = f"{BASE_MODEL}: was {before}, is {now[BASE_MODEL]}"
    if not allow_changes:
        raise ConfigError(
            f"--from {checkpoint}: it holds only the weights that were trained, and the others come from another model "
            f"now, {changed}; set model.path to the model of {parent}, or add --allow-changes, which is recorded in "
            "MLflow."
        )
    return changed


def _require_fit(config: RunConfig, checkpoint: Path) -> None:
    """Raise CheckpointError if the learner could not load the checkpoint, which it finds out once all has started."""
    from learner.checkpoint_layout import LAYOUT_FILE, layout_of, must_reshard, read_layout

    folder = checkpoint / "deepspeed"
    if (folder / LAYOUT_FILE).exists():
        wanted = layout_of(config.model, config.learner, config.learner.num_ranks)
        must_reshard(read_layout(folder), wanted, folder)
