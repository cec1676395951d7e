"""The files that describe a run in its folder: `run.json`, written before the first step, and the first evaluation."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlsys.config.run import RunConfig, parse
from rlsys.errors import CheckpointError
from rlsys.files import read_json, write_whole
from rlsys.urls import masked_tree

RUN_FILE = "run.json"
SUMMARY_FILE = "summary.json"
BEFORE_FILE = "held_out_before.json"

HeldOut = Mapping[str, Mapping[str, float]]
"""Metrics by decoding, see `rlsys.evaluation.runner.evaluate`."""


@dataclass(frozen=True, kw_only=True)
class Before:
    """The initial evaluation of a run.

    mlflow_run_id: of the run.  step: of the evaluated weights.
    conditions: see `rlsys.runs.inputs.identity.evaluation_identity`.
    """

    mlflow_run_id: str
    step: int
    conditions: Mapping[str, str]
    held_out: HeldOut


@dataclass(frozen=True, kw_only=True)
class RunFile:
    """The content of `run.json`.

    mlflow_run_id: the MLflow run that `--resume` continues if there is no checkpoint.  config: of the latest start.
    command: "train" or "sft".  identity: see `rlsys.runs.inputs.identity`.
    parent_checkpoint: of another run, from which this one started with `--from`; "" if it started from its model.
    """

    mlflow_run_id: str
    config: RunConfig
    command: str = ""
    identity: Mapping[str, str] = field(default_factory=dict)
    parent_checkpoint: str = ""


def write_run_file(run: RunFile) -> None:
    """Write `run.json` atomically into the run's folder, with the secrets in URLs masked."""
    tree = {
        "mlflow_run_id": run.mlflow_run_id,
        "command": run.command,
        "identity": dict(run.identity),
        "parent_checkpoint": run.parent_checkpoint,
        "config": masked_tree(run.config.model_dump(mode="json")),
    }
    write_json(Path(run.config.output_dir) / RUN_FILE, tree)


def write_json(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a JSON file atomically, creating its folder."""
    write_whole(path, json.dumps(tree, indent=2) + "\n")


def read_run_file(folder: Path) -> RunFile:
    """Read `run.json`. Raises CheckpointError if the folder is not a run's, ConfigError if its config is invalid."""
    file = Path(folder) / RUN_FILE
    try:
        tree = read_json(file)
        mlflow_run_id, config = tree["mlflow_run_id"], dict(tree["config"])
        if not isinstance(mlflow_run_id, str):
            raise TypeError(f"mlflow_run_id is {mlflow_run_id!r}")
        command, parent = (str(tree.get(name, "")) for name in ("command", "parent_checkpoint"))
        identity = dict(tree.get("identity", {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file}: cannot be read as the description of a run: {error!r}; give the output_dir of a run."
        ) from error
    return RunFile(
        mlflow_run_id=mlflow_run_id,
        config=parse(config, source=str(file)),
        command=command,
        identity=identity,
        parent_checkpoint=parent,
    )


def forget_summary(config: RunConfig) -> None:
    """Remove the summary before the run continues, because a summary marks a run as complete."""
    (config.output_dir / SUMMARY_FILE).unlink(missing_ok=True)


def write_before(folder: Path, before: Before) -> None:
    """Save the evaluation of the weights that the run started with."""
    write_json(Path(folder) / BEFORE_FILE, asdict(before))


def read_before(folder: Path) -> Before | None:
    """Return the saved initial evaluation, None if there is none that can be read."""
    try:
        tree = read_json(Path(folder) / BEFORE_FILE)
        return Before(
            mlflow_run_id=str(tree["mlflow_run_id"]),
            step=int(tree["step"]),
            conditions=dict(tree["conditions"]),
            held_out={str(name): dict(metrics) for name, metrics in dict(tree["held_out"]).items()},
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None


def name_on_cluster(config: RunConfig) -> str:
    """Return the name of a run's reward servers on a cluster that outlives the run, the same for every start.

    Servers that a killed driver left behind are therefore replaced by the next start, and stop with it. Everything
    else that a driver starts on a cluster is ended by Ray together with the driver.
    """
    whose = f"{socket.gethostname()}:{Path(config.output_dir).resolve()}"
    return f"rewards-{hashlib.sha256(whose.encode()).hexdigest()[:12]}"
