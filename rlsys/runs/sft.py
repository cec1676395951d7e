"""`rlsys sft`: supervised fine-tuning on the learner, the packing and the record of GRPO."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rlsys.clock import Clock
from rlsys.config.run import RunConfig
from rlsys.errors import LearnerLost, NotWritten
from rlsys.evaluation.report import write_loss_curve
from rlsys.loop.state import RunState
from rlsys.runs.assemble import LearnerStack, Stack, open_learner_stack, open_stack
from rlsys.runs.checkpoint import load_state
from rlsys.runs.demonstrations import Demonstration, Feed, Lessons, read_lessons
from rlsys.runs.recovery import Origin, Recovery, evaluated, evaluated_before, find_origin, has_ended
from rlsys.runs.run_file import SUMMARY_FILE, forget_summary, write_json, write_run_file
from rlsys.runs.supervised import PreparedDemonstration, supervised_batch
from rlsys.runs.train import Summary, end_rows, held_out_rows, read_summary, write_summary
from rlsys.tracking.metrics import merge, summarise
from rlsys.tracking.progress import FINE_TUNING, Progress, show_table
from rlsys.tracking.tracker import Tracker

log = logging.getLogger(__name__)

LOSSES_FILE = "losses.json"
"""In a checkpoint: the loss of each step of the run."""


class SftRun:
    """Updates on what the feed gives, recorded and checkpointed."""

    def __init__(
        self,
        config: RunConfig,
        stack: LearnerStack,
        tracker: Tracker,
        demonstrations: Sequence[Demonstration],
        progress: Progress,
        origin: Origin,
    ) -> None:
        self._progress = progress
        self._config, self._stack, self._tracker, self._demonstrations = config, stack, tracker, demonstrations
        self.recovery = Recovery(stack, config, origin)
        self.clock = Clock()
        self.losses = _read_losses(origin.checkpoint) if origin.checkpoint else {}

    def go_on(self, state: RunState) -> tuple[RunState, Path]:
        """Train from `state` to `train.num_steps`; the state and the checkpoint at the end."""
        while True:
            try:
                return self._to_the_end(state)
            except LearnerLost as error:
                with self.clock("recover"):
                    state = self.recovery.recover(error)

    def _to_the_end(self, state: RunState) -> tuple[RunState, Path]:
        num_steps, every = self._config.train.num_steps, self._config.checkpoint.every_steps
        feed = Feed(self._stack.preparer, self._demonstrations, self._config, state.drawn)
        while state.step < num_steps:
            state = self._step(state, feed)
            if every and state.step % every == 0 and state.step < num_steps:
                with self.clock("checkpoint"):
                    self._tracker.sync()
                    self.recovery.save_if_possible(replace(state, weights_digest=""), self._write_losses)
        with self.clock("checkpoint"):
            self._tracker.sync()
            try:
                folder = self.recovery.save(replace(state, weights_digest=""), self._write_losses)
            except (OSError, NotWritten) as error:
                raise self.recovery.why_not_saved(error) from error
        return load_state(folder), folder

    def _step(self, state: RunState, feed: Feed) -> RunState:
        wanted, num_steps = self._config.train.prompts_per_step, self._config.train.num_steps
        clock = Clock()
        with clock("prepare"):
            taken, bad_draws = feed.take(wanted, num_ahead=min(1, num_steps - state.step - 1) * wanted)
        with clock("update"):
            learner_metrics = self._stack.learner.update(supervised_batch(taken))
        state = replace(state, step=state.step + 1, version=state.version + 1, drawn=feed.drawn)
        with self.clock("record"):
            metrics = merge(
                learner_metrics,
                data_metrics(taken, bad_draws, state.drawn, len(self._demonstrations)),
                speed_metrics(taken, learner_metrics, clock.seconds),
                {name if "/" in name else f"data/{name}": n for name, n in self._stack.clips.counters().items()},
                self.recovery.metrics(),
            )
            self._tracker.log_step(state.step, metrics)
            self.losses[state.step] = metrics["loss/nll"]
            if self.recovery.step_done(state.step):
                self._progress.step(state.step, metrics, len(taken))
        for phase, seconds in clock.seconds.items():
            self.clock.seconds[phase] = self.clock.seconds.get(phase, 0.0) + seconds
        return state

    def _write_losses(self, folder: Path) -> None:
        write_json(folder / LOSSES_FILE, {str(step): loss for step, loss in sorted(self.losses.items())})


def _read_losses(checkpoint: Path) -> dict[int, float]:
    """By step; {} where the checkpoint is not one of a supervised run."""
    file = checkpoint / LOSSES_FILE
    return {int(step): loss for step, loss in json.loads(file.read_text()).items()} if file.exists() else {}


def sft(config: RunConfig, *, resume: Path | None = None, stack: LearnerStack | None = None) -> Summary:
    """Fine-tune on demonstrations as `config` says and write `summary.json`.

    resume: a checkpoint folder, or a run folder whose newest checkpoint is taken.
    stack: one that is open already, for the same clips and prompts; else only what is needed is started, which is
    the learner, and actors and reward servers where held-out rows are to be answered.
    """
    origin = find_origin(config, resume)
    if has_ended(config, origin):
        return read_summary(config)
    lessons = read_lessons(config)
    lessons.report.raise_problems()
    for fact in lessons.report.facts:
        log.info("%s", fact)
    tasks = {item.task for item in lessons.held_out}
    opened: AbstractContextManager[LearnerStack]
    if stack is not None:
        opened = nullcontext(stack)
    else:
        opened = open_stack(config, tasks) if lessons.held_out else open_learner_stack(config)
    with opened as parts:
        summary = _sft_on(parts, config, origin, lessons)
    write_summary(config.output_dir / SUMMARY_FILE, asdict(summary))
    log.info("the model is in %s; go on with `rlsys train CONFIG model.path=%s`", summary.model, summary.model)
    return summary


def _sft_on(stack: LearnerStack, config: RunConfig, origin: Origin, lessons: Lessons) -> Summary:
    clock = Clock()
    forget_summary(config)
    with Tracker(config, run_id=origin.state.mlflow_run_id or None) as tracker:
        write_run_file(config, tracker.run_id)
        progress = Progress(FINE_TUNING, origin.state.step, config.train.num_steps, {})
        origin = replace(origin, state=replace(origin.state, mlflow_run_id=tracker.run_id))
        run = SftRun(config, stack, tracker, lessons.demonstrations, progress, origin)
        with clock("load"):
            state = run.recovery.load_learner()
        results: dict[str, Any] = {}
        with clock("evaluate"):
            if lessons.held_out:
                state, results["before"] = evaluated_before(
                    _with_actors(stack), lessons.held_out, config, state, run.recovery.recover
                )
        with progress:
            state, folder = run.go_on(state)
        with clock("evaluate"):
            if lessons.held_out:
                state, results["after"] = evaluated(
                    _with_actors(stack), lessons.held_out, config, state, run.recovery.recover
                )
        summary = Summary(
            weights_digest=state.weights_digest,
            num_steps=state.step,
            mlflow_run_id=tracker.run_id,
            seconds={**run.clock.seconds, **clock.seconds},
            held_out=results,
            model=str(folder / "model"),
        )
        curve = _record_outputs(config, tracker, summary, run.losses)
    show_table(f"Fine-tuned in {config.output_dir}", end_rows(progress.story, summary, tracker, curve))
    return summary


def _with_actors(stack: LearnerStack) -> Stack:
    if not isinstance(stack, Stack):
        raise TypeError("held-out rows are to be answered, and the stack has no actors; open it with open_stack.")
    return stack


def _record_outputs(config: RunConfig, tracker: Tracker, summary: Summary, losses: Mapping[int, float]) -> Path:
    """The loss curve."""
    by_step = sorted(losses)
    curve = write_loss_curve([losses[step] for step in by_step], config.output_dir / "loss_curve.png", by_step[0])
    tracker.log_artifact(curve)
    if summary.held_out:
        tracker.log_table("held_out", held_out_rows(summary.held_out))
    if config.tracking.log_model:
        tracker.log_model_folder(Path(summary.model))
    return curve


def data_metrics(taken: Sequence[PreparedDemonstration], bad_draws: int, drawn: int, num_rows: int) -> dict[str, float]:
    """Lengths of a batch's demonstrations, and how far through them the run is. num_rows: of demonstrations."""
    return {
        **summarise("data/prompt_tokens", [one.prompt.prompt_ids.size for one in taken], "mean", "max"),
        **summarise("data/response_tokens", [one.demonstration.response_ids.size for one in taken], "mean", "max"),
        "data/bad_draws": float(bad_draws),
        "data/drawn": float(drawn),
        "data/epochs": drawn / num_rows,
    }


def speed_metrics(
    taken: Sequence[PreparedDemonstration], learner_metrics: Mapping[str, float], seconds: Mapping[str, float]
) -> dict[str, float]:
    """Seconds by phase, and tokens per second: those that are trained on, and all that were computed."""
    total_s = sum(seconds.values())
    num_trained = sum(one.demonstration.response_ids.size for one in taken)
    return {
        **{f"time/{phase}_s": value for phase, value in seconds.items()},
        "time/step_s": total_s,
        "perf/response_tokens_per_s": num_trained / total_s,
        "perf/learner_tokens_per_s": learner_metrics["perf/learner_tokens"] / total_s,
    }
