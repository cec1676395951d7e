"""Versions of a registered model in MLflow: made of a run's final model, and found again by its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

STEP_TAG, DIGEST_TAG = "rlsys.step", "rlsys.weights_digest"
EVALUATION_TAG = "rlsys.evaluation"
"""Begins the tags of a version that name the runs of its evaluations."""
VERSION_TAG = "rlsys.model_version"
"""Tag of a run: the version, as NAME/NUMBER, that it made or evaluated."""


def weights_tags(step: int, weights_digest: str) -> dict[str, str]:
    """Return the tags by which a version of a run's model is found again."""
    return {STEP_TAG: str(step), DIGEST_TAG: weights_digest}


def versions_of(client: MlflowClient, run_id: str, weights: Mapping[str, str]) -> list[ModelVersion]:
    """Return the versions that a run made of weights with these `weights_tags`, under any name."""
    found = client.search_model_versions(f"run_id = '{run_id}'")
    return [one for one in found if weights.items() <= one.tags.items()]


def register(
    client: MlflowClient, name: str, run_id: str, folder: str, weights: Mapping[str, str], more: Mapping[str, str]
) -> str:
    """Make a version of the model in a run's artifact folder and return its number; one that is there gets the tags."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for known in versions_of(client, run_id, weights):
        if known.name == name:
            tag(client, known, more)
            return str(known.version)
    made = client.create_model_version(
        name, f"runs:/{run_id}/{folder}", run_id, tags={**weights, **more}, await_creation_for=0
    )
    return str(made.version)


def tag(client: MlflowClient, version: ModelVersion, tags: Mapping[str, str]) -> None:
    """Set tags of a version."""
    for key, value in tags.items():
        client.set_model_version_tag(version.name, version.version, key, value)
