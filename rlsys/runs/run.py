"""What every kind of run shares around its steps: learner, checkpoints, evaluation, tracking and summary."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from rlsys.clock import Clock
from rlsys.config.data import sources
from rlsys.config.run import RunConfig
from rlsys.errors import CheckpointError, LearnerLost, NotWritten, UserError
from rlsys.files import DISK_ERRORS, read_json
from rlsys.loop import loop
from rlsys.loop.collect import Collected
from rlsys.loop.objective import Objective
from rlsys.loop.parts import Step
from rlsys.loop.state import RunState
from rlsys.runs.assemble import LearnerStack, Stack
from rlsys.runs.continuation import MAX_TAG_CHARACTERS, ResumePoint, Start
from rlsys.runs.evaluating.answering import annotations_digest
from rlsys.runs.evaluating.initial import initial_evaluation
from rlsys.runs.evaluating.training_evaluations import TrainingEvaluations
from rlsys.runs.records.checkpoint import load_state
from rlsys.runs.records.run_file import SUMMARY_FILE, HeldOut, forget_summary, write_json, write_run_file
from rlsys.runs.recovery import Recovery, evaluate_held_out, why_not_concluded, why_not_saved
from rlsys.tracking.progress import Progress, show_table
from rlsys.tracking.tracker import Tracker
from rlsys.types import PromptItem, RolloutGroup, ScoredGroup, TrainBatch
from rlsys.weights.version import WeightVersion

log = logging.getLogger(__name__)

BEFORE_TAG = "rlsys.held_out_before"
"""Tag of the weights whose held-out figures stand for those before training, where they are not the first ones."""
AnyStack = TypeVar("AnyStack", bound=LearnerStack)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The content of `summary.json`.

    held_out: {} if no held-out rows were given.  model: "" if the last checkpoint could not be written.
    ledger: {} after supervised training.
    """

    weights_digest: str
    num_steps: int
    mlflow_run_id: str
    seconds: Mapping[str, float]
    held_out: Mapping[str, Mapping[str, Mapping[str, float]]]
    model: str
    ledger: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Setting(Generic[AnyStack]):
    """The components of a run. point: where it starts, with the MLflow run that `tracker` has open."""

    config: RunConfig
    stack: AnyStack
    tracker: Tracker
    point: ResumePoint
    held_out: tuple[PromptItem, ...]


class Run(ABC, Generic[AnyStack]):
    """Base of all runs; implements `rlsys.loop.parts.WholeRun` except the source of groups and the metrics."""

    objective: Objective
    progress: Progress
    title: str
    publishes: bool
    """Whether the learner's weights are sent to the actors after every step."""

    def __init__(self, setting: Setting[AnyStack]) -> None:
        self._config, self._stack, self._tracker = setting.config, setting.stack, setting.tracker
        self._held_out = setting.held_out
        self.recovery = Recovery(setting.stack, setting.config, setting.point)
        self.clock = Clock()
        self._at_rest: RunState | None = None  # whose weights the learner has; None while a step changes them
        self._results: dict[str, HeldOut] = {}
        self._evaluations = TrainingEvaluations(
            self._config, lambda: _with_actors(self._stack), self.recovery.checkpoints, self._tracker
        )
        self.evaluated: Mapping[str, float] = {}
        """Figures of the evaluation at the present step, {} if none was due."""

    # --- called by the loop at every step

    @abstractmethod
    def start(self, prompt_index: int) -> Future[ScoredGroup]:
        """See `GroupSource`."""

    @abstractmethod
    def prefetch(self, prompt_index: int) -> None:
        """See `GroupSource`."""

    @abstractmethod
    def check(self) -> None:
        """See `GroupSource`."""

    @abstractmethod
    def keep(self, step: int, collected: Collected) -> None:
        """See `Parts`."""

    @abstractmethod
    def publish(self, version: int) -> WeightVersion:
        """See `Parts`."""

    def reference_logprobs(self, groups: Sequence[RolloutGroup]) -> Sequence[Sequence[np.ndarray]]:
        self._begin_learning()
        return self._stack.preparer.with_frames(
            groups, lambda present: self._stack.learner.logprobs(present, reference=True)
        )

    def _begin_learning(self) -> None:
        with self.clock("switch"):
            self._stack.begin_learning()

    def update(self, batch: TrainBatch) -> Mapping[str, float]:
        self._at_rest = None
        self._begin_learning()
        return self._stack.preparer.with_frames(
            batch.groups, lambda present: self._stack.learner.update(replace(batch, groups=present))
        )

    def record(self, step: Step) -> None:
        for phase, seconds in step.seconds.items():
            self.clock.seconds[phase] = self.clock.seconds.get(phase, 0.0) + seconds
        number, num_steps = step.state.step, self._config.train.num_steps
        self.evaluated = self._evaluated(step.state) if self._evaluations.is_due(number) else {}
        with self.clock("record"):
            self._record(step)
        self._at_rest = step.state
        every = self._config.checkpoint.every_steps
        is_due = self._evaluations.wants_checkpoint or (every and number % every == 0)
        if is_due and number < num_steps:
            with self.clock("checkpoint"):
                if self.recovery.save_if_possible(step.state, self._write_beside):
                    self._saved()

    def _evaluated(self, state: RunState) -> dict[str, float]:
        with self.clock("evaluate"):
            if not self.publishes:
                _with_actors(self._stack).publish(state.step)
            try:
                return self._evaluations.evaluate(state)
            except OSError as error:
                if error.errno not in DISK_ERRORS:
                    raise
                log.warning("step %d: its evaluation is not recorded; the run continues: %s", state.step, error)
                return {}

    # --- around the steps

    def load_learner(self) -> RunState:
        self._at_rest = None
        with self.clock("recover" if self.recovery.is_learner_lost else "load"):
            state = self.recovery.load_learner()
        self._went_back(state)
        return state

    def learner_lost(self, error: LearnerLost) -> None:
        self.recovery.learner_lost(error)

    def begin(self, state: RunState) -> None:
        """Evaluate the weights that the run starts with, once in the run's lifetime."""
        with self.clock("evaluate"):
            if self._held_out and "before" not in self._results:
                self._results["before"] = self._before(state)

    def _before(self, state: RunState) -> HeldOut:
        def measured() -> HeldOut:
            stack = _with_actors(self._stack)
            stack.publish(state.step)
            return evaluate_held_out(stack, self._held_out, self._config)

        results, said = initial_evaluation(self._config, self._held_out, state.mlflow_run_id, state.step, measured)
        if said:
            self._tracker.log_tags({BEFORE_TAG: said[:MAX_TAG_CHARACTERS]})
        return results

    def finish(self, state: RunState) -> Summary:
        """Save the last checkpoint, evaluate, and record the outputs of the run.

        Raises NotSavedError if the checkpoint could not be written, after everything else is recorded.
        """
        folder, problem = self.recovery.newest_of(state.step), None
        if folder is None:
            try:
                folder = self._save(state)
            except (OSError, NotWritten) as error:
                problem = error
        with self.clock("evaluate"):
            if self._held_out:
                stack = _with_actors(self._stack)
                if not self.publishes:
                    stack.publish(state.step)
                self._results["after"] = evaluate_held_out(stack, self._held_out, self._config)
        if folder is not None:
            self._mark_best()
        summary = Summary(
            weights_digest=state.weights_digest or (load_state(folder).weights_digest if folder else ""),
            num_steps=state.step,
            mlflow_run_id=self._tracker.run_id,
            seconds=dict(self.clock.seconds),
            held_out=self._results,
            model=str(folder / "model") if folder else "",
            ledger=self._ledger_result(state),
        )
        try:
            curve = self._record_outputs(summary)
            if problem:
                write_summary(self._config.output_dir / SUMMARY_FILE, asdict(summary))
        except OSError as error:
            if problem is None:
                raise why_not_concluded(self._config, error) from error
            log.warning("the outputs of the run could not all be recorded: %s", error)
        if problem:
            raise why_not_saved(self._config, self.recovery.newest_state.step, problem) from problem
        show_table(f"{self.title} {self._config.output_dir}", self._end_rows(summary, curve))
        return summary

    def save_finished_steps(self) -> None:
        """Save a checkpoint of the steps that are done, before an error that the user can fix ends the run.

        Does nothing if there is one already, or if a step was being applied: the weights are then between two steps.
        """
        state = self._at_rest
        if state is None or state.step == self.recovery.newest_state.step:
            return
        try:
            self.recovery.save_if_possible(state, self._write_beside)
        except (OSError, LearnerLost) as error:  # what ends the run matters more
            log.warning("could not save the checkpoint of step %d: %s", state.step, error)

    def _save(self, state: RunState) -> Path:
        with self.clock("checkpoint"):
            folder = self.recovery.save(state, self._write_beside)
            self._saved()
        return folder

    def _write_beside(self, folder: Path) -> None:
        self._tracker.sync()  # no checkpoint of steps whose record could still be lost
        self.write_extras(folder)

    def _record_outputs(self, summary: Summary) -> Path:
        curve = self._write_curve()
        self._tracker.log_artifact(curve)
        if summary.held_out:
            self._tracker.log_table("held_out", held_out_rows(summary.held_out))
        if self._config.tracking.log_model and summary.model:
            self._record_model(summary)
        return curve

    def _record_model(self, summary: Summary) -> None:
        name, path = self._config.tracking.registered_model, Path(summary.model)
        if name is None:
            self._tracker.log_model_folder(path)
            return
        held_out = {
            f"held_out/{key}/{metric}": value
            for key, metrics in summary.held_out.get("after", {}).items()
            for metric, value in metrics.items()
        }
        self._tracker.log_model_version(
            name,
            path,
            step=summary.num_steps,
            weights_digest=summary.weights_digest,
            figures={**held_out, **self._evaluations.figures_of(summary.num_steps)},
        )

    def _end_rows(self, summary: Summary, curve: Path) -> list[tuple[str, str]]:
        return [
            *self.progress.summary.rows(summary.seconds),
            *_ledger_rows(summary),
            ("model", summary.model),
            ("curve", str(curve)),
            ("MLflow run", self._tracker.run_id),
            ("open it with", self._tracker.how_to_open),
        ]

    # --- implemented by each kind of run

    @abstractmethod
    def _record(self, step: Step) -> None:
        """Log a step."""

    @abstractmethod
    def write_extras(self, folder: Path) -> None:
        """Write the files that this kind of run adds to a checkpoint."""

    @abstractmethod
    def _write_curve(self) -> Path:
        """Plot the training curve so far and return the file."""

    def _went_back(self, state: RunState) -> None:
        """React to the learner having loaded the weights of `state`."""

    def _saved(self) -> None:
        """React to a new checkpoint."""
        self._mark_best()

    def _mark_best(self) -> None:
        try:
            self._evaluations.mark_best()
        except OSError as error:
            log.warning("which checkpoint is the best could not be noted yet: %s", error)

    def _ledger_result(self, state: RunState) -> Mapping[str, Any]:
        """Return the ledger's part of `summary.json`."""
        return {}


def carry_out(
    opened: AbstractContextManager[AnyStack],
    config: RunConfig,
    point: ResumePoint,
    held_out: tuple[PromptItem, ...],
    make: Callable[[Setting[AnyStack]], Run[AnyStack]],
    start: Start,
) -> Summary:
    """Carry out a run on the stack that `opened` opens, and write `summary.json` once the stack is closed again.

    start: what is recorded of this start in `run.json` and MLflow.
    """
    with opened as stack:
        forget_summary(config)
        with Tracker(config, run_id=point.state.mlflow_run_id or None, tags=start.tags) as tracker:
            write_run_file(start.run_file(config, tracker.run_id))
            for source in sources(config.data):
                digest = annotations_digest(source.annotations)
                num_rows = start.num_rows.get(source.name, 0)
                tracker.log_dataset(source.name, digest, str(source.annotations), num_rows, "training")
            for name, rows in start.tables.items():
                tracker.log_table(name, rows)
            point = replace(point, state=replace(point.state, mlflow_run_id=tracker.run_id))
            run = make(Setting(config=config, stack=stack, tracker=tracker, point=point, held_out=held_out))
            try:
                summary = loop.run(run, config)
            except UserError:
                run.save_finished_steps()
                raise
    write_summary(config.output_dir / SUMMARY_FILE, asdict(summary))  # the last of all; see `has_ended`
    return summary


def _with_actors(stack: LearnerStack) -> Stack:
    if not isinstance(stack, Stack):
        raise TypeError(
            "evaluating held-out rows needs rollout actors and this stack has none; open it with open_stack."
        )
    return stack


def _ledger_rows(summary: Summary) -> list[tuple[str, str]]:
    if not summary.ledger:
        return []
    problems = summary.ledger["problems"]
    verdict = f"{len(problems)} PROBLEMS, {problems[0]}" if problems else "each prompt was used exactly once"
    return [("ledger", f"{summary.ledger['counts']}; {verdict}")]


def held_out_rows(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[dict[str, Any]]:
    """Return one row per (stage, decoding, task) for the before/after table; task "all" covers every row."""
    return [
        {"stage": stage, "decoding": decoding, "task": task or "all", **metrics}
        for stage, by_decoding in results.items()
        for key, metrics in by_decoding.items()
        for decoding, _, task in [key.partition("/")]
    ]


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    write_json(path, summary)
    log.info("summary in %s", path)


def read_summary(config: RunConfig) -> Summary:
    """Read the summary of a run that has ended. Raises CheckpointError if it is incomplete."""
    file = config.output_dir / SUMMARY_FILE
    tree = read_json(file)
    names = [one.name for one in fields(Summary)]
    if missing := [name for name in names if name not in tree]:
        raise CheckpointError(
            f"{file}: has no {missing[0]!r}, so it is not the summary of a run; remove it and resume again."
        )
    log.info("the run is complete with %d steps, see %s; raise train.num_steps to continue it", tree["num_steps"], file)
    return Summary(**{name: tree[name] for name in names})
