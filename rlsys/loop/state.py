"""The state of a run that a checkpoint holds beside the weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The state of a run, apart from the weights and the optimizer.

    step: number of steps done, which is also the version of the published weights.
    prompts_consumed: number of prompts consumed, including those that were skipped or replaced.
    seed: the run's seed.  mlflow_run_id: the MLflow run to continue, "" before there is one.
    weights_digest: see `rlsys.weights.manifest.digest`, "" before the first update.
    """

    step: int
    prompts_consumed: int
    seed: int
    mlflow_run_id: str
    weights_digest: str
