"""The evaluation of the weights that a run starts with, made once in the run's lifetime."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from rlsys.config.run import RunConfig
from rlsys.runs.inputs.identity import changes, evaluation_identity
from rlsys.runs.records.run_file import Before, HeldOut, read_before, write_before
from rlsys.tracking.unsent import current_id
from rlsys.types import PromptItem

log = logging.getLogger(__name__)


def initial_evaluation(
    config: RunConfig, held_out: Sequence[PromptItem], run_id: str, step: int, measure: Callable[[], HeldOut]
) -> tuple[HeldOut, str]:
    """Return the held-out figures "before" of an MLflow run, and which weights they are of if not of its first ones.

    Figures that an earlier start of the run saved are kept, unless what they depend on has changed since: then they
    could not be compared with those after training, so the present weights are measured, which is logged.
    step: of the present weights.  measure: evaluates them.
    """
    now, kept = evaluation_identity(config, held_out), read_before(config.output_dir)
    said = ""
    if kept is not None and current_id(config.output_dir, kept.mlflow_run_id) == run_id:
        changed = changes(kept.conditions, now)
        if not changed:
            return kept.held_out, ""
        said = f"step {step}, because what the first evaluation depends on has changed: {'; '.join(changed)}"
        log.warning('the held-out figures "before" are measured again, of the weights of %s', said)
    results = measure()
    try:
        before = Before(mlflow_run_id=run_id, step=step, conditions=now, held_out=results)
        write_before(config.output_dir, before)
    except OSError as error:
        log.warning("the initial evaluation could not be saved; a resume will repeat it: %s", error)
    return results, said
