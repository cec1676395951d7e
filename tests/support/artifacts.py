"""Artifacts of MLflow runs."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow import MlflowClient


def artifact_bytes(client: MlflowClient, run_id: str, path: str) -> bytes:
    """Return the content of an artifact; without a folder for it, MLflow leaves one among the temporary files."""
    with TemporaryDirectory() as folder:
        return Path(client.download_artifacts(run_id, path, folder)).read_bytes()


def artifact_text(client: MlflowClient, run_id: str, path: str) -> str:
    """Return the text of an artifact."""
    return artifact_bytes(client, run_id, path).decode()
