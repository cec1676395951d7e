"""Section `tracking`: recording in MLflow."""

from __future__ import annotations

from pydantic import Field, field_validator

from rlsys.config.part import Part, expanded


class TrackingConfig(Part):
    """The settings of MLflow."""

    uri: str | None = None
    """MLflow tracking URI; null uses `MLFLOW_TRACKING_URI`, or an SQLite file in `output_dir` if that is unset."""
    experiment: str = "rlsys"
    """Name of the MLflow experiment."""
    run_name: str | None = None
    """Name of the MLflow run; null uses the name of `output_dir`."""
    samples_per_step: int = Field(default=8, ge=0)
    """Number of responses per step that are logged with their texts and scores; 0 logs none."""
    page_every_steps: int = Field(default=50, ge=0)
    """Number of steps between HTML pages of sampled responses with frames, spans, scores and verdicts; 0 never. A page
    shows all responses of the step's first `samples_per_step` groups, so none is written if that is 0."""
    log_model: bool = True
    """Upload the final model folder as an artifact."""
    wait_s: float = Field(default=60.0, ge=0)
    """Seconds that the start and the end of a run wait for an unreachable tracking server; steps never wait."""

    @field_validator("uri")
    @classmethod
    def _path_is_expanded(cls, uri: str | None) -> str | None:
        if uri is None:
            return None
        scheme, separator, path = uri.partition(":///")
        return f"{scheme}{separator}{expanded(path)}" if scheme == "sqlite" and path else uri
