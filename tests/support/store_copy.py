"""All that an MLflow store has of a run, for comparison with what it had before."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from mlflow import MlflowClient

from tests.support.artifacts import artifact_bytes
from tests.support.paths import REPO

OF_ONE_RUN = ("rlsys.opened_by",)
"""Tags that differ between a run and the one that replaces it."""


def everything_of(uri: str, run_id: str) -> dict[str, Any]:
    """Return every metric, parameter, tag, input, artifact and registered version of a run, without its id.

    num_runs: of its experiment.
    """
    client = MlflowClient(uri)
    run = client.get_run(run_id)
    return {
        "info": [run.info.run_name, run.info.status, run.info.lifecycle_stage, run.info.end_time],
        "num_runs": len(client.search_runs([run.info.experiment_id])),
        "experiment": client.get_experiment(run.info.experiment_id).name,
        "metrics": {
            name: sorted(
                [point.step, point.timestamp, point.value] for point in client.get_metric_history(run_id, name)
            )
            for name in sorted(run.data.metrics)
        },
        "params": run.data.params,
        "tags": {name: value for name, value in run.data.tags.items() if name not in OF_ONE_RUN},
        "inputs": [
            [
                one.dataset.name,
                one.dataset.digest,
                one.dataset.source,
                one.dataset.profile,
                [tag.value for tag in one.tags],
            ]
            for one in run.inputs.dataset_inputs
        ],
        "artifacts": dict(sorted(_artifacts(client, run_id, ""))),
        "versions": sorted(
            [one.name, one.version, dict(sorted(one.tags.items())), (one.source or "").replace(run_id, "RUN")]
            for one in client.search_model_versions(f"run_id = '{run_id}'")
        ),
    }


def _artifacts(client: MlflowClient, run_id: str, folder: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for one in client.list_artifacts(run_id, folder):
        if one.is_dir:
            found += _artifacts(client, run_id, one.path)
        else:
            found.append((one.path, artifact_bytes(client, run_id, one.path).hex()))
    return found


def everything_in(uri: str, run_id: str) -> dict[str, Any]:
    """Return the same, read by a process of its own: MLflow keeps connections to a database that was replaced."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.store_copy", uri, run_id],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(everything_of(*sys.argv[1:])) + "\n")
