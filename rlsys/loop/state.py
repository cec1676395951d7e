"""Where a run stands."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Where a run stands, beside the weights and the optimiser.

    step: updates done.  version: number of the published weights.  drawn: sampler draws consumed.
    seed: the run's seed.  mlflow_run_id: the run to go on with, "" before there is one.
    weights_digest: see `rlsys.weights.manifest.digest`, "" before the first update.
    """

    step: int
    version: int
    drawn: int
    seed: int
    mlflow_run_id: str
    weights_digest: str
