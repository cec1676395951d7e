"""Section `tracking`: recording in MLflow."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints, field_validator, model_validator

from rlsys.config.part import Part, expanded

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=250)]
"""A name in MLflow, whose columns and folders take no longer one."""


class TrackingConfig(Part):
    """The settings of MLflow."""

    uri: str | None = None
    """MLflow tracking URI; null uses `MLFLOW_TRACKING_URI`, or an SQLite file in `output_dir` if that is unset."""
    experiment: Name = "rlsys"
    """Name of the MLflow experiment."""
    run_name: Name | None = None
    """Name of the MLflow run; null uses the name of `output_dir`."""
    samples_per_step: int = Field(default=8, ge=0)
    """Number of responses per step that are logged with their texts and scores; 0 logs none."""
    page_every_steps: int = Field(default=50, ge=0)
    """Number of steps between HTML pages of sampled responses with frames, spans, scores and verdicts; 0 never. A page
    shows all responses of the step's first `samples_per_step` groups, so none is written if that is 0."""
    log_model: bool = True
    """Upload the final model folder as an artifact."""
    registered_model: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)] | None = None
    """Name in MLflow's model registry under which the final model becomes a version, with the figures of its
    evaluations as tags; null registers none."""
    wait_s: float = Field(default=60.0, ge=0)
    """Seconds that the start and the end of a run wait for an unreachable tracking server; steps never wait."""

    @field_validator("uri")
    @classmethod
    def _path_is_expanded(cls, uri: str | None) -> str | None:
        if uri is None:
            return None
        if not uri.strip():
            raise ValueError("an empty address; write null for MLFLOW_TRACKING_URI, or else a file in output_dir")
        scheme, separator, path = uri.partition(":///")
        return f"{scheme}{separator}{expanded(path)}" if scheme == "sqlite" and path else uri

    @field_validator("registered_model")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        if name and any(sign in name for sign in "/:"):
            raise ValueError("MLflow's names of registered models have no slash and no colon; choose another name")
        return name

    @model_validator(mode="after")
    def _registers_what_is_uploaded(self) -> TrackingConfig:
        if self.registered_model and not self.log_model:
            raise ValueError(
                f"tracking.registered_model={self.registered_model} needs the uploaded model; "
                "set tracking.log_model=true, or remove tracking.registered_model."
            )
        return self
