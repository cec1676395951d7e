"""The loop's parts for one config: draws prompts, drives the stack, keeps the record."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from rlsys.clock import Clock
from rlsys.config.run import RunConfig
from rlsys.data.sampler import Sampler
from rlsys.errors import FramesLost, LearnerLost, RowUnusable
from rlsys.loop.collect import Collected, LeftOut
from rlsys.loop.experience import MAX_CLIPS_LOST, sampling_seed
from rlsys.loop.parts import Step
from rlsys.loop.state import RunState
from rlsys.runs import ledger
from rlsys.runs.assemble import Stack
from rlsys.runs.ledger import Ledger
from rlsys.runs.recovery import Origin, Recovery
from rlsys.runs.rollout_store import SavedGroup, SavedRollouts, settings_digest
from rlsys.tracking.metrics import merge, step_metrics
from rlsys.tracking.progress import Progress
from rlsys.tracking.tracker import Tracker
from rlsys.types import PromptItem, RolloutGroup, Sampling, ScoredGroup, TrainBatch
from rlsys.weights.version import WeightVersion

log = logging.getLogger(__name__)

Computed = TypeVar("Computed")


class TrainingRun:
    """What `rlsys.loop.parts.Parts` says, on a stack.

    origin: with the MLflow run that `tracker` has open.
    """

    def __init__(
        self,
        config: RunConfig,
        stack: Stack,
        items: tuple[PromptItem, ...],
        tracker: Tracker,
        progress: Progress,
        origin: Origin,
    ) -> None:
        self._progress = progress
        self._config, self._stack, self._items, self._tracker = config, stack, items, tracker
        self._sampler = Sampler(len(items), config.seed)
        self.recovery = Recovery(stack, config, origin)
        self._rollouts = SavedRollouts(config.output_dir, settings_digest(config))
        self.ledger = Ledger(config.output_dir, ledger.read(origin.checkpoint) if origin.checkpoint else [])
        self.clock = Clock()
        if origin.is_new:
            self._rollouts.forget_through(max(self._rollouts.steps(), default=0))

    def load_learner(self) -> RunState:
        """The state that the run starts from, when the learner has its weights."""
        return self._at(self.recovery.load_learner())

    def start(self, draw: int) -> Future[ScoredGroup]:
        item = self._items[self._sampler.index_at(draw)]
        match self._rollouts.take(draw):
            case SavedGroup() as saved:
                return self._stack.experience.put_together(
                    item, lambda prompt, clips: saved.put_together(item, prompt, clips)
                )
            case LeftOut(reason="quarantined", detail=detail):  # to find it out again would cost two actors
                return _failed(RowUnusable(detail))
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

    def check(self) -> None:
        self._stack.pool.raise_if_weights_gone()

    def keep(self, step: int, collected: Collected) -> None:
        if self._config.checkpoint.save_rollouts:
            with self.clock("keep"):
                self._rollouts.keep(step, collected)

    def recover(self, error: LearnerLost) -> RunState:
        with self.clock("recover"):
            return self._at(self.recovery.recover(error))

    def reference_logprobs(self, groups: Sequence[RolloutGroup]) -> Sequence[Sequence[np.ndarray]]:
        return self._with_frames(groups, lambda present: self._stack.learner.logprobs(present, reference=True))

    def update(self, batch: TrainBatch) -> Mapping[str, float]:
        return self._with_frames(
            batch.groups, lambda present: self._stack.learner.update(replace(batch, groups=present))
        )

    def _with_frames(
        self, groups: Sequence[RolloutGroup], compute: Callable[[tuple[RolloutGroup, ...]], Computed]
    ) -> Computed:
        """What the learner computes of the groups; clips whose frames were lost with their node are decoded again."""
        for _ in range(MAX_CLIPS_LOST):
            try:
                return compute(tuple(groups))
            except FramesLost as error:
                log.warning("%s; decoded again", error)
                groups = [self._present(group, error.references) for group in groups]
        return compute(tuple(groups))

    def _present(self, group: RolloutGroup, lost: Collection[str]) -> RolloutGroup:
        if not any(clip.frames.hex() in lost for clip in group.clips):
            return group
        return self._stack.experience.with_clips_again(group, lost).result()

    def publish(self, version: int) -> WeightVersion:
        return self._stack.publish(version)

    def record(self, step: Step) -> None:
        for phase, seconds in step.seconds.items():
            self.clock.seconds[phase] = self.clock.seconds.get(phase, 0.0) + seconds
        with self.clock("record"):
            self._record(step)
        every = self._config.checkpoint.every_steps
        if every and step.state.step % every == 0 and step.state.step < self._config.train.num_steps:
            with self.clock("checkpoint"):
                self._tracker.sync()
                if self.recovery.save_if_possible(step.state, self._write_ledger):
                    self._rollouts.forget_through(self.recovery.checkpoints.steps()[0])

    def _record(self, step: Step) -> None:
        stack, number = self._stack, step.state.step
        is_new = self.recovery.step_done(number)
        metrics = merge(
            step_metrics(step, stack.clips.counters(), stack.pool.counters(), stack.scorer.counters()),
            self.recovery.metrics(),
        )
        self._tracker.log_step(number, metrics)
        self._tracker.log_samples(number, step.groups)
        reward, digest = metrics["reward/total/mean"], step.state.weights_digest
        self.ledger.add(ledger.entry(number, step.collected, reward=reward, weights_digest=digest))
        if is_new:
            self._progress.step(
                number, metrics, sum(len(scored.group.rollouts) for scored in (*step.groups, *step.replaced))
            )

    def save(self, state: RunState) -> Path:
        """The checkpoint at the end. Raises OSError or NotWritten when the disk does not take it."""
        with self.clock("checkpoint"):
            self._tracker.sync()
            folder = self.recovery.save(state, self._write_ledger)
            self._rollouts.forget_through(self.recovery.checkpoints.steps()[0])
        return folder

    def _write_ledger(self, folder: Path) -> None:
        ledger.write(folder, self.ledger.entries)

    def _at(self, state: RunState) -> RunState:
        self.ledger.go_back(state.step)
        self._look_for_rollouts(state)
        return state

    def _look_for_rollouts(self, state: RunState) -> None:
        if self._config.checkpoint.save_rollouts and (found := self._rollouts.look(after_step=state.step)):
            log.info("the rollouts of %d draws after step %d are saved and not sampled again", found, state.step)


def _failed(error: RowUnusable) -> Future[ScoredGroup]:
    future: Future[ScoredGroup] = Future()
    future.set_exception(error)
    return future
