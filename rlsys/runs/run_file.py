"""What a run's folder says of the run: `run.json`, there before the first step, and what it began with."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlsys.config.run import RunConfig, parse
from rlsys.errors import CheckpointError
from rlsys.files import write_whole
from rlsys.urls import masked_tree

RUN_FILE = "run.json"
SUMMARY_FILE = "summary.json"
BEFORE_FILE = "held_out_before.json"

HeldOut = Mapping[str, Mapping[str, float]]
"""Metrics by decoding, see `rlsys.evaluation.runner.evaluate`."""


@dataclass(frozen=True, kw_only=True)
class RunFile:
    """mlflow_run_id: the run that `--resume` goes on with where there is no checkpoint.  config: as it ran last."""

    mlflow_run_id: str
    config: RunConfig


def write_run_file(config: RunConfig, mlflow_run_id: str) -> None:
    """Write `run.json` into the run's folder, whole or not at all, with the secrets in URLs masked."""
    tree = {"mlflow_run_id": mlflow_run_id, "config": masked_tree(config.model_dump(mode="json"))}
    write_json(Path(config.output_dir) / RUN_FILE, tree)


def write_json(path: Path, tree: Mapping[str, Any]) -> None:
    """The file with its folder, whole or not at all."""
    write_whole(path, json.dumps(tree, indent=2) + "\n")


def read_run_file(folder: Path) -> RunFile:
    """Raises CheckpointError where a folder is not one of a run, ConfigError when the config is not one any more."""
    file = Path(folder) / RUN_FILE
    try:
        tree = json.loads(file.read_text())
        mlflow_run_id, config = tree["mlflow_run_id"], tree["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: a run's folder has this file, and it cannot be read: {error}") from error
    return RunFile(mlflow_run_id=mlflow_run_id, config=parse(config, source=str(file)))


def forget_summary(config: RunConfig) -> None:
    """Before anything is done again: the summary of a run says that it is over."""
    (config.output_dir / SUMMARY_FILE).unlink(missing_ok=True)


def write_before(config: RunConfig, mlflow_run_id: str, held_out: HeldOut) -> None:
    """What the weights answered that the run began with."""
    tree = {"asked": _asked(config, mlflow_run_id), "held_out": held_out}
    write_json(config.output_dir / BEFORE_FILE, tree)


def read_before(config: RunConfig, mlflow_run_id: str) -> HeldOut | None:
    """The same; None where it was not asked in this run, or not in this way."""
    try:
        tree = json.loads((config.output_dir / BEFORE_FILE).read_text())
        return tree["held_out"] if tree["asked"] == _asked(config, mlflow_run_id) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _asked(config: RunConfig, mlflow_run_id: str) -> dict[str, Any]:
    return {
        "mlflow_run_id": mlflow_run_id,
        "evaluation": config.evaluation.model_dump(mode="json"),
        "max_tokens": config.rollout.max_tokens,
    }


def name_on_cluster(config: RunConfig) -> str:
    """Of what serves a run on a cluster that outlives it, the same for every start of the run.

    So what a killed driver left there is replaced by the next start, and ends with it. All else that a driver has on a
    cluster ends with its process, by Ray's own doing.
    """
    whose = f"{socket.gethostname()}:{Path(config.output_dir).resolve()}"
    return f"rewards-{hashlib.sha256(whose.encode()).hexdigest()[:12]}"
