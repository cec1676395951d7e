"""`rlsys train`: a config's parts in the main loop, recorded, checkpointed, evaluated."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rlsys import loop
from rlsys.assemble import Stack, held_out_items, open_stack, training_items
from rlsys.check import check
from rlsys.checkpoint import Checkpoints, RunState, find, load_state
from rlsys.clock import Clock
from rlsys.config import ConfigError, RunConfig
from rlsys.data.sampler import Sampler
from rlsys.errors import LearnerLost
from rlsys.evaluation.report import write_reward_curve
from rlsys.evaluation.runner import evaluate
from rlsys.experience import sampling_seed
from rlsys.metrics import step_metrics
from rlsys.parts import Step
from rlsys.progress import TRAINING, Progress, Story, show_table
from rlsys.tracking import Tracker
from rlsys.types import PromptItem, RolloutGroup, Sampling, ScoredGroup, TrainBatch, WeightVersion
from rlsys.unsent import require_sent

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What `summary.json` says of a run; `held_out` is {} when no held-out rows were given."""

    weights_digest: str
    num_steps: int
    mlflow_run_id: str
    seconds: Mapping[str, float]
    held_out: Mapping[str, Mapping[str, Mapping[str, float]]]
    model: str


class TrainingRun:
    """The loop's parts for one config: draws prompts, drives the stack, keeps the record."""

    def __init__(
        self, config: RunConfig, stack: Stack, items: tuple[PromptItem, ...], tracker: Tracker, progress: Progress
    ) -> None:
        self._progress = progress
        self._config, self._stack, self._items, self._tracker = config, stack, items, tracker
        self._sampler = Sampler(len(items), config.seed)
        self._checkpoints = Checkpoints(config.output_dir / "checkpoints", keep=config.checkpoint.keep)
        self.clock = Clock()
        self.rewards: list[float] = []

    def start(self, draw: int) -> Future[ScoredGroup]:
        item = self._items[self._sampler.index_at(draw)]
        rollout = self._config.rollout
        return self._stack.experience.start(
            item,
            Sampling(
                num_samples=rollout.group_size,
                temperature=rollout.temperature,
                top_p=rollout.top_p,
                max_tokens=rollout.max_tokens,
                seed=sampling_seed(self._config.seed, draw, item.prompt_id),
            ),
        )

    def prefetch(self, draw: int) -> None:
        self._stack.experience.prefetch(self._items[self._sampler.index_at(draw)])

    def recover(self, error: LearnerLost) -> RunState:
        raise error

    def reference_logprobs(self, groups: Sequence[RolloutGroup]) -> Sequence[Sequence[np.ndarray]]:
        return self._stack.learner.logprobs(groups, reference=True)

    def update(self, batch: TrainBatch) -> Mapping[str, float]:
        return self._stack.learner.update(batch)

    def publish(self, version: int) -> WeightVersion:
        return self._stack.publish(version)

    def record(self, step: Step) -> None:
        for phase, seconds in step.seconds.items():
            self.clock.seconds[phase] = self.clock.seconds.get(phase, 0.0) + seconds
        with self.clock("record"):
            stack = self._stack
            metrics = step_metrics(step, stack.clips.counters(), stack.pool.counters(), stack.scorer.counters())
            self._tracker.log_step(step.state.step, metrics)
            self._tracker.log_samples(step.state.step, step.groups)
            self.rewards.append(metrics["reward/total/mean"])
            self._progress.step(
                step.state.step, metrics, sum(len(scored.group.rollouts) for scored in (*step.groups, *step.replaced))
            )
        every = self._config.checkpoint.every_steps
        if every and step.state.step % every == 0 and step.state.step < self._config.train.num_steps:
            self.save(step.state)

    def save(self, state: RunState) -> Path:
        """A checkpoint: DeepSpeed state, RunState and a Hugging Face folder."""
        with self.clock("checkpoint"):
            self._tracker.sync()
            folder = self._checkpoints.save(state, self._write_checkpoint)
        log.info("checkpoint of step %d in %s", state.step, folder)
        return folder

    def _write_checkpoint(self, folder: Path) -> None:
        self._stack.learner.save(folder / "deepspeed")
        self._stack.learner.export(folder / "model")


def train(config: RunConfig, *, resume: Path | None = None, stack: Stack | None = None) -> Summary:
    """Run GRPO as `config` says, on `stack` when one is open already, and write `summary.json`.

    resume: a checkpoint folder, or a run folder whose newest checkpoint is taken.
    """
    state = start_state(config, resume)
    check(config).raise_problems()
    items = training_items(config)
    held_out = held_out_items(config)
    if stack is None:
        with open_stack(config, {item.task for item in (*items, *held_out)}) as opened:
            return _train_on(opened, config, state, items, held_out, resume)
    return _train_on(stack, config, state, items, held_out, resume)


def _train_on(
    stack: Stack,
    config: RunConfig,
    state: RunState,
    items: tuple[PromptItem, ...],
    held_out: tuple[PromptItem, ...],
    resume: Path | None,
) -> Summary:
    clock = Clock()
    with clock("load"):
        stack.load_learner(config)
        if resume:
            stack.learner.restore(find(resume) / "deepspeed")
    with Tracker(config, run_id=state.mlflow_run_id or None) as tracker:
        queue = {"judge queue": lambda: stack.scorer.num_waiting}
        progress = Progress(TRAINING, state.step, config.train.num_steps, queue)
        run = TrainingRun(config, stack, items, tracker, progress)
        state = replace(state, mlflow_run_id=tracker.run_id)
        results: dict[str, Any] = {}
        with clock("evaluate"):
            if held_out:
                run.publish(state.version)
                results["before"] = evaluate(stack.experience, held_out, config)
        with progress:
            state = loop.run(run, config, state)
        with clock("evaluate"):
            if held_out:
                results["after"] = evaluate(stack.experience, held_out, config)
        folder = run.save(state)
        summary = Summary(
            weights_digest=state.weights_digest,
            num_steps=state.step,
            mlflow_run_id=tracker.run_id,
            seconds={**run.clock.seconds, **clock.seconds},
            held_out=results,
            model=str(folder / "model"),
        )
        curve = _write_outputs(config, run, tracker, summary, folder)
    show_table(f"Trained in {config.output_dir}", end_rows(progress.story, summary, tracker, curve))
    return summary


def start_state(config: RunConfig, resume: Path | None) -> RunState:
    if resume:
        state = load_state(find(resume))
        require_sent(find(resume).parent.parent, config.output_dir)
        if state.seed != config.seed:
            raise ConfigError(
                f"--resume {resume}: it was run with seed={state.seed}, the config says seed={config.seed}."
            )
        if state.step >= config.train.num_steps:
            raise ConfigError(
                f"--resume {resume}: it holds {state.step} steps, train.num_steps={config.train.num_steps}; "
                "raise num_steps."
            )
        log.info("going on from step %d of %s", state.step, resume)
        return state
    if (config.output_dir / "checkpoints").exists():
        raise ConfigError(
            f"output_dir={config.output_dir} holds the checkpoints of another run; "
            f"go on with --resume {config.output_dir}, or choose another output_dir."
        )
    return RunState(step=0, version=0, drawn=0, seed=config.seed, mlflow_run_id="", weights_digest="")


def _write_outputs(config: RunConfig, run: TrainingRun, tracker: Tracker, summary: Summary, checkpoint: Path) -> Path:
    """The reward curve."""
    curve = write_reward_curve(run.rewards, config.output_dir / "reward_curve.png")
    tracker.log_artifact(curve)
    if summary.held_out:
        tracker.log_table("held_out", held_out_rows(summary.held_out))
    if config.tracking.log_model:
        tracker.log_model_folder(checkpoint / "model")
    write_summary(config.output_dir / "summary.json", asdict(summary))
    return curve


def end_rows(story: Story, summary: Summary, tracker: Tracker, curve: Path) -> list[tuple[str, str]]:
    """What the table at the end of a run says: how it went, and where things are."""
    unsent = f"; {tracker.num_unsent} records are not there yet" if tracker.num_unsent else ""
    return [
        *story.rows(summary.seconds),
        ("model", summary.model),
        ("curve", str(curve)),
        ("MLflow run", f"{tracker.run_id}{unsent}"),
        ("look at it", tracker.how_to_open),
    ]


def held_out_rows(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[dict[str, Any]]:
    """One row per (stage, decoding, task) for the before/after table; task "all" is over every row."""
    return [
        {"stage": stage, "decoding": decoding, "task": task or "all", **metrics}
        for stage, by_decoding in results.items()
        for key, metrics in by_decoding.items()
        for decoding, _, task in [key.partition("/")]
    ]


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(summary, indent=2) + "\n")
    log.info("summary in %s", path)
