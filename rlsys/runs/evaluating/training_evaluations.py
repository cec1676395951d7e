"""Evaluations on data sets during a training run, and the mark of the best checkpoint."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path

from rlsys.config.run import RunConfig
from rlsys.evaluation.answering.answers import AnswersDiffer
from rlsys.evaluation.answering.responders import ActorResponder
from rlsys.evaluation.evaluated import EvaluatedSet, results_of
from rlsys.loop.state import RunState
from rlsys.runs.assemble import Stack
from rlsys.runs.evaluating.answering import answer_sets, chosen_sets
from rlsys.runs.evaluating.evaluate import PAGE_FILE, RESULTS_FILE, metrics_of, with_verdicts, write_reports
from rlsys.runs.records.checkpoint import Best, Checkpoints
from rlsys.tracking.tracker import Tracker
from rlsys.types import Json

log = logging.getLogger(__name__)

BEST_STEP_TAG, BEST_VALUE_TAG = "rlsys.best_step", "rlsys.best_value"


class TrainingEvaluations:
    """The evaluations of a run on `evaluation.sets`.

    stack: of the run, whose actors hold the weights to evaluate; called only when an evaluation is due.
    """

    def __init__(
        self, config: RunConfig, stack: Callable[[], Stack], checkpoints: Checkpoints, tracker: Tracker
    ) -> None:
        self._config, self._stack, self._checkpoints, self._tracker = config, stack, checkpoints, tracker
        self._chosen = chosen_sets(config) if config.evaluation.every_steps else []
        self._best: Best | None = None

    def is_due(self, step: int) -> bool:
        """Return whether the weights after `step` are to be evaluated."""
        every = self._config.evaluation.every_steps
        return bool(every) and (step % every == 0 or step == self._config.train.num_steps)

    def evaluate(self, state: RunState) -> dict[str, float]:
        """Evaluate the actors' weights and return the figures by metric; reports go to `evaluation/step_N`."""
        out = self._folder(state.step)
        log.info("evaluating step %d on %s", state.step, ", ".join(one.name for one in self._chosen))
        try:
            evaluated = self._answered(state)
        except AnswersDiffer:  # of a run that went back and came here with other weights
            shutil.rmtree(out)
            evaluated = self._answered(state)
        evaluated = with_verdicts(self._config, evaluated)
        seed = self._config.seed
        results = {
            "model": f"step {state.step} of {self._config.output_dir}",
            "seed": seed,
            "sets": [results_of(one, seed) for one in evaluated],
        }
        write_reports(self._config, out, f"Evaluation of {results['model']}", evaluated, results)
        self._tracker.log_artifact(out / PAGE_FILE, f"evaluation/step_{state.step:06d}")
        metrics = metrics_of(results)
        self._note_best(state.step, results)
        return metrics

    def figures_of(self, step: int) -> dict[str, float]:
        """Return the figures of the evaluation after `step` by metric, {} if there was none."""
        try:
            return metrics_of(json.loads((self._folder(step) / RESULTS_FILE).read_text()))
        except FileNotFoundError:
            return {}

    def _folder(self, step: int) -> Path:
        return self._config.output_dir / "evaluation" / f"step_{step:06d}"

    def _answered(self, state: RunState) -> list[EvaluatedSet]:
        stack = self._stack()
        stack.begin_sampling()
        responder = ActorResponder(stack.producer, stack.pool.raise_if_weights_gone)
        return answer_sets(
            self._config,
            self._chosen,
            self._folder(state.step),
            {"weights": state.weights_digest},
            lambda: nullcontext(responder),
            self._config.evaluation.controls or (),
            shows_progress=False,
        )

    def _note_best(self, step: int, results: Mapping[str, Json]) -> None:
        wanted = self._config.evaluation.best
        if wanted is None:
            return
        value = best_value(wanted, results)
        best = self._checkpoints.best(wanted)
        if beats(value, None if best is None else best.value):
            self._best = Best(step=step, metric=wanted, value=value)

    @property
    def wants_checkpoint(self) -> bool:
        """Whether the weights that were evaluated last are the best so far and their checkpoint is not marked yet."""
        return self._best is not None

    def mark_best(self) -> None:
        """Mark the checkpoint of the best step, if it exists, on disk and in MLflow."""
        best = self._best
        if best is None or best.step not in self._checkpoints.steps():
            return
        self._checkpoints.mark_best(best)
        self._tracker.log_tags({BEST_STEP_TAG: str(best.step), BEST_VALUE_TAG: f"{best.metric}={best.value:.6g}"})
        log.info("step %d is the best so far by %s: %.4f", best.step, best.metric, best.value)
        self._best = None


def beats(value: float, best: float | None) -> bool:
    """Return whether a figure is better than the best so far; NaN, the figure of no scored row, never is."""
    if math.isnan(value):
        return False
    return best is None or math.isnan(best) or value > best


def best_value(wanted: str, results: Mapping[str, Json]) -> float:
    """Return the value of "SET/METRIC", of the set's first protocol that has it.

    It has one: `rlsys.runs.check` refuses a config whose sets have no such metric.
    """
    name, _, metric = wanted.partition("/")
    (one,) = (found for found in results["sets"] if found["name"] == name)
    protocols = [found for by_task in one["tasks"].values() for found in by_task]
    return next(float(found["metrics"][metric]["value"]) for found in protocols if metric in found["metrics"])
