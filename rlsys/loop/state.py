"""Where a run stands."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Where a run stands, apart from the weights and the optimizer.

    step: steps done, which is the version of the published weights as well.  drawn: prompts consumed, those that were
    skipped or replaced included.  seed: the run's seed.  mlflow_run_id: the run to continue, "" before there is one.
    weights_digest: see `rlsys.weights.manifest.digest`, "" before the first update.
    """

    step: int
    drawn: int
    seed: int
    mlflow_run_id: str
    weights_digest: str
