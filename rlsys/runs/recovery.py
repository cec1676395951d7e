"""Where a run starts from, its checkpoints, and recovery from them when the learner is lost."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rlsys.config.run import ConfigError, RunConfig
from rlsys.errors import CheckpointError, LearnerLost, NotWritten, UserError
from rlsys.evaluation.runner import evaluate
from rlsys.files import read_json
from rlsys.loop.state import RunState
from rlsys.runs.assemble import LearnerStack, Stack
from rlsys.runs.continuation import ResumePoint, StartOptions
from rlsys.runs.records.checkpoint import Checkpoints, find_whole, load_state
from rlsys.runs.records.checkpoint_manifest import CheckpointDamaged, verify_model
from rlsys.runs.records.output_space import checkpoint_bytes
from rlsys.runs.records.run_file import RUN_FILE, SUMMARY_FILE, HeldOut, read_run_file
from rlsys.tracking.unsent import current_id
from rlsys.types import PromptItem

log = logging.getLogger(__name__)

PAUSE_S = 5.0
"""Pause before a restart that follows a failed one, growing linearly: a cluster needs time to notice a dead node."""


class NotSavedError(UserError):
    """The last checkpoint of a run could not be written; the message gives the remedy."""


def find_resume_point(config: RunConfig, options: StartOptions, command: str = "train") -> ResumePoint:
    """Return where the run starts: the point that `--resume` or `--from` names, or a fresh start.

    The config's own `output_dir` can be resumed at any time: before the first checkpoint, the run starts from the
    beginning within the same MLflow run; after its last step, it is only concluded, or is complete already (see
    `has_ended`). A checkpoint of another run starts a new run from its weights, optimizer and position in the data.
    """
    verify_model(config.model.path)
    if options.resume and options.fork:
        raise ConfigError("--resume continues the run of output_dir, --from starts a new run; give one of them.")
    if options.fork:
        return _fork_point(config, options.fork)
    if options.resume is None:
        _refuse_used_folder(config)
        return ResumePoint(state=_first_state(config, ""), checkpoint=None, is_new=True)
    _require_command(config, command)
    return _point_in_run(config, options.resume, options.allow_changes)


def _point_in_run(config: RunConfig, resume: Path, allow_changes: bool) -> ResumePoint:
    try:
        checkpoint = find_whole(resume)
    except CheckpointDamaged:
        raise  # there are checkpoints: starting from the beginning would discard their steps
    except CheckpointError:
        if os.path.realpath(resume) != os.path.realpath(config.output_dir):
            raise
        return _beginning(config, resume)
    if not _is_own(config, checkpoint):
        raise ConfigError(
            f"--resume {resume}: the checkpoint is not in output_dir={config.output_dir}, so it belongs to another "
            f"run. Set output_dir to that run's folder to continue it, or start a new run with --from {resume}."
        )
    state = load_state(checkpoint)
    _require_run(config.output_dir, checkpoint, state.mlflow_run_id)
    if state.seed != config.seed and not allow_changes:
        raise ConfigError(
            f"--resume {resume}: the run used seed={state.seed}, but the config has seed={config.seed}; "
            f"set seed={state.seed}, or start a new run with --from {resume}."
        )
    if state.step > config.train.num_steps:
        raise ConfigError(_too_many_steps("--resume", resume, state.step, config))
    if state.step < config.train.num_steps:
        log.info("resuming from step %d of %s", state.step, resume)
    return ResumePoint(state=replace(state, seed=config.seed), checkpoint=checkpoint)


def _beginning(config: RunConfig, resume: Path) -> ResumePoint:
    """Return where a run that has no checkpoint of its own yet began: its model, or a checkpoint of another run."""
    run = read_run_file(resume) if (Path(resume) / RUN_FILE).exists() else None
    mlflow_run_id = run.mlflow_run_id if run else ""
    if run is None or not run.parent_checkpoint:
        log.warning("%s has no checkpoint yet; the run starts from the beginning", resume)
        return ResumePoint(state=_first_state(config, mlflow_run_id), checkpoint=None)
    try:
        parent = find_whole(Path(run.parent_checkpoint))
        state = load_state(parent)
    except CheckpointError as error:
        raise CheckpointError(
            f"{resume} has no checkpoint yet, and the one that it started from cannot be used: {error} Start a new run "
            "in another output_dir."
        ) from error
    log.warning("%s has no checkpoint yet; the run starts again from %s", resume, parent)
    return ResumePoint(state=replace(state, seed=config.seed, mlflow_run_id=mlflow_run_id), checkpoint=parent)


def _fork_point(config: RunConfig, fork: Path) -> ResumePoint:
    _refuse_used_folder(config)
    checkpoint = find_whole(fork)
    state = load_state(checkpoint)
    if state.step >= config.train.num_steps:
        raise ConfigError(_too_many_steps("--from", fork, state.step, config))
    log.info("starting a new run from step %d of %s", state.step, checkpoint)
    return ResumePoint(
        state=replace(state, seed=config.seed, mlflow_run_id=""),
        checkpoint=checkpoint,
        is_new=True,
        parent_run_id=state.mlflow_run_id,
    )


def _too_many_steps(option: str, path: Path, step: int, config: RunConfig) -> str:
    return (
        f"{option} {path}: the run has done {step} steps already, train.num_steps={config.train.num_steps}; "
        "raise train.num_steps."
    )


def _is_own(config: RunConfig, checkpoint: Path) -> bool:
    # a checkpoint may be a link to another disk, and so may the folder of all of them
    holders = (os.path.dirname(path) for path in (os.path.abspath(checkpoint), os.path.realpath(checkpoint)))
    return os.path.realpath(config.output_dir / "checkpoints") in map(os.path.realpath, holders)


def _require_run(run_folder: Path, checkpoint: Path, mlflow_run_id: str) -> None:
    """Raise CheckpointError for a checkpoint that was copied from another run: its record would be written to."""
    if not (run_folder / RUN_FILE).exists():
        return
    own, its = (current_id(run_folder, one) for one in (read_run_file(run_folder).mlflow_run_id, mlflow_run_id))
    if own and its and own != its:
        raise CheckpointError(
            f"{checkpoint}: it is of MLflow run {its}, and output_dir={run_folder} is that of run {own}: it was "
            f"copied from another run. Resume from another checkpoint, or start a new run with --from {checkpoint}."
        )


def _require_command(config: RunConfig, command: str) -> None:
    """Raise ConfigError if `output_dir` is that of a run of another command, whose record this one would overwrite."""
    if not (Path(config.output_dir) / RUN_FILE).exists():
        return
    other = read_run_file(config.output_dir).command
    if other and other != command:
        raise ConfigError(
            f"output_dir={config.output_dir} is that of an `rlsys {other}` run; resume it with `rlsys {other}`, or "
            f"choose another output_dir and set model.path={config.output_dir}/checkpoints/STEP/model."
        )


def has_ended(config: RunConfig, point: ResumePoint) -> bool:
    """Return whether the run in `output_dir` is complete: it has done all steps and written its summary."""
    if point.checkpoint is None or point.state.step < config.train.num_steps:
        return False
    try:
        num_steps = read_json(config.output_dir / SUMMARY_FILE)["num_steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(num_steps == config.train.num_steps)


def _first_state(config: RunConfig, mlflow_run_id: str) -> RunState:
    return RunState(step=0, prompts_consumed=0, seed=config.seed, mlflow_run_id=mlflow_run_id, weights_digest="")


def _refuse_used_folder(config: RunConfig) -> None:
    if (config.output_dir / "checkpoints").exists():
        raise ConfigError(
            f"output_dir={config.output_dir} holds the checkpoints of another run; "
            f"continue it with --resume {config.output_dir}, or choose another output_dir."
        )


class Recovery:
    """Saves a run's checkpoints and restores a lost learner from the newest one.

    point: where the run starts, with the id of the open MLflow run.
    """

    def __init__(self, stack: LearnerStack, config: RunConfig, point: ResumePoint) -> None:
        self._stack, self._config, self._point = stack, config, point
        self._newest = point.checkpoint
        self.checkpoints = Checkpoints(config.output_dir / "checkpoints", keep=config.checkpoint.keep)
        self.furthest_step = point.state.step
        self._num_restarts = self._restarts_in_a_row = self._num_failed = 0
        self._lost_s = 0.0
        self._lost_at: float | None = None

    @property
    def is_learner_lost(self) -> bool:
        """Whether the learner must be restarted."""
        return self._lost_at is not None

    def load_learner(self) -> RunState:
        """Load weights and optimizer into the learner, restarting it if it was lost, and return their state.

        They come from the newest checkpoint, or else from where the run starts.
        """
        if self._lost_at is None:
            self._stack.load_learner(self._config)
            self._restore()
            return self._point.state
        if self._restarts_in_a_row > 1:
            time.sleep(PAUSE_S * (self._restarts_in_a_row - 1))
        self._stack.relaunch_learner(self._config)
        self._restore()
        seconds, self._lost_at = time.monotonic() - self._lost_at, None
        self._lost_s += seconds
        state = self.newest_state
        log.warning(
            "the learner recovered after %.1f s from the checkpoint of step %d; the run had reached step %d",
            seconds,
            state.step,
            self.furthest_step,
        )
        return state

    def learner_lost(self, error: LearnerLost) -> None:
        """Count a loss. Raises LearnerLost after `learner.max_restarts` restarts in a row without a new step."""
        if self._restarts_in_a_row >= self._config.learner.max_restarts:
            raise LearnerLost(
                f"the learner was lost, and {self._restarts_in_a_row} restarts in a row completed no new step "
                f"(learner.max_restarts={self._config.learner.max_restarts}): {error}"
            ) from error
        self._restarts_in_a_row += 1
        self._num_restarts += 1
        self._lost_at = self._lost_at or time.monotonic()
        log.warning("lost the learner, restarting it: %s", error)

    def step_done(self, step: int) -> bool:
        """Note that a step was recorded; return whether the run reached it for the first time."""
        if step <= self.furthest_step:
            return False
        self.furthest_step, self._restarts_in_a_row = step, 0
        return True

    def save(self, state: RunState, extra: Callable[[Path], None] | None = None) -> Path:
        """Save a checkpoint: DeepSpeed's state, the RunState, a Hugging Face folder, and the files of `extra`.

        Raises OSError or NotWritten if it cannot be written; earlier checkpoints are then unchanged.
        """

        self._stack.begin_learning()

        def write(folder: Path) -> str:
            self._stack.learner.save(folder / "deepspeed")
            digest = self._stack.learner.export(folder / "model")
            if extra:
                extra(folder)
            return digest

        self._newest = self.checkpoints.save(state, write, num_bytes=checkpoint_bytes(self._config))
        log.info("saved the checkpoint of step %d in %s", state.step, self._newest)
        return self._newest

    def save_if_possible(self, state: RunState, extra: Callable[[Path], None] | None = None) -> Path | None:
        """Save a checkpoint and return it; if it cannot be written, log and count that and return None."""
        try:
            return self.save(state, extra)
        except (OSError, NotWritten) as error:
            self._num_failed += 1
            log.warning("could not save the checkpoint of step %d; the run continues: %s", state.step, error)
            return None

    def metrics(self) -> dict[str, float]:
        """Return the totals of this process."""
        return {
            "cluster/learner_restarts": float(self._num_restarts),
            "cluster/recovery_s": self._lost_s,
            "cluster/checkpoint_failures": float(self._num_failed),
        }

    def _restore(self) -> None:
        if self._newest:
            self._stack.learner.restore(self._newest / "deepspeed", self._config.output_dir / "checkpoints")

    @property
    def newest_state(self) -> RunState:
        """The state from which a lost learner recovers."""
        if self._newest is None:
            return self._point.state
        # a checkpoint of another run is continued under this run's MLflow id
        return replace(load_state(self._newest), mlflow_run_id=self._point.state.mlflow_run_id)

    def newest_of(self, step: int) -> Path | None:
        """Return the newest checkpoint if it is of `step`, else None."""
        return self._newest if self._newest and self.newest_state.step == step else None


def why_not_saved(config: RunConfig, step: int, error: Exception) -> NotSavedError:
    """Return the error of a run whose last checkpoint failed. step: of the newest existing checkpoint."""
    return NotSavedError(
        f"the final checkpoint could not be written to {config.output_dir}: {error}\n"
        f"{_first(error)} and run the same command with --resume {config.output_dir}: it continues from step {step}."
    )


def why_not_concluded(config: RunConfig, error: OSError) -> NotSavedError:
    """Return the error of a run whose last checkpoint is there, but not everything else of its end."""
    return NotSavedError(
        f"the last checkpoint is saved, but the outputs of the run could not be recorded: {error}\n{_first(error)} "
        f"and run the same command with --resume {config.output_dir}: it does no step, but concludes the run."
    )


def _first(error: Exception) -> str:
    """Return what a person has to do first about a file that could not be written."""
    is_full = any(f"[Errno {number}]" in str(error) for number in (errno.ENOSPC, errno.EDQUOT))  # also of a rank
    return "Free space there" if is_full else "Correct that"


def evaluate_held_out(stack: Stack, held_out: Sequence[PromptItem], config: RunConfig) -> HeldOut:
    """Evaluate the actors' current weights on the held-out rows, see `evaluate`."""
    log.info("evaluating on %d held-out rows", len(held_out))
    stack.begin_sampling()
    return evaluate(stack.producer, held_out, config, stack.pool.raise_if_weights_gone)
