"""What MLflow records, and where."""

from __future__ import annotations

from pydantic import Field, field_validator

from rlsys.config.part import Part, expanded


class TrackingConfig(Part):
    uri: str | None = None
    """MLflow tracking URI; null takes `MLFLOW_TRACKING_URI`, or an SQLite file in `output_dir` where it is unset."""
    experiment: str = "rlsys"
    """MLflow experiment."""
    run_name: str | None = None
    """Name of the MLflow run; null takes the output folder's name."""
    samples_per_step: int = Field(default=8, ge=0)
    """Responses per step that are stored with their texts and scores; 0 stores none."""
    log_model: bool = True
    """Store the final model folder as an artifact."""
    wait_s: float = Field(default=60.0, ge=0)
    """Seconds that start and end of a run wait for a tracking server that takes nothing; a step never waits."""

    @field_validator("uri")
    @classmethod
    def _path_is_expanded(cls, uri: str | None) -> str | None:
        if uri is None:
            return None
        scheme, separator, path = uri.partition(":///")
        return f"{scheme}{separator}{expanded(path)}" if scheme == "sqlite" and path else uri
