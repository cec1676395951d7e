"""`run.json` of a run's folder: its MLflow run and its config, there before the first step."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from rlsys.checkpoint import CheckpointError
from rlsys.config import RunConfig, parse

RUN_FILE = "run.json"
SUMMARY_FILE = "summary.json"


@dataclass(frozen=True, kw_only=True)
class RunFile:
    """mlflow_run_id: the run that `--resume` goes on with where there is no checkpoint.  config: as it ran last."""

    mlflow_run_id: str
    config: RunConfig


def write_run_file(config: RunConfig, mlflow_run_id: str) -> None:
    """Into the run's folder, whole or not at all."""
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".tmp-{RUN_FILE}"
    with aside.open("w") as file:
        tree = {"mlflow_run_id": mlflow_run_id, "config": config.model_dump(mode="json")}
        file.write(json.dumps(tree, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    aside.replace(folder / RUN_FILE)


def read_run_file(folder: Path) -> RunFile:
    """Raises CheckpointError where a folder is not one of a run, ConfigError when the config is not one any more."""
    file = Path(folder) / RUN_FILE
    try:
        tree = json.loads(file.read_text())
        mlflow_run_id, config = tree["mlflow_run_id"], tree["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: a run's folder has this file, and it cannot be read: {error}") from error
    return RunFile(mlflow_run_id=mlflow_run_id, config=parse(config, source=str(file)))


def name_on_cluster(config: RunConfig) -> str:
    """Of what serves a run on a cluster that outlives it, the same for every start of the run.

    So what a killed driver left there is replaced by the next start, and ends with it. All else that a driver has on a
    cluster ends with its process, by Ray's own doing.
    """
    whose = f"{socket.gethostname()}:{Path(config.output_dir).resolve()}"
    return f"rewards-{hashlib.sha256(whose.encode()).hexdigest()[:12]}"
