"""`rlsys train`: GRPO on groups that actors sample and reward servers score."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlsys.config.data import sources
from rlsys.config.run import RunConfig
from rlsys.errors import PassRateOutside, RowUnusable
from rlsys.evaluation.report import write_reward_curve
from rlsys.loop.collect import Collected, Skipped
from rlsys.loop.objective import PolicyGradient
from rlsys.loop.parts import Step
from rlsys.loop.producer import sampling_seed
from rlsys.loop.staleness import groups_under_way
from rlsys.loop.state import RunState
from rlsys.runs.assemble import Stack, open_stack, require_machine
from rlsys.runs.check import check
from rlsys.runs.continuation import FRESH, StartOptions, describe_start
from rlsys.runs.inputs.hub_paths import with_local_files
from rlsys.runs.inputs.items import order_of, read_rows, training_items, with_num_steps
from rlsys.runs.inputs.source_metrics import SourceMetrics
from rlsys.runs.records import ledger
from rlsys.runs.records.ledger import Ledger
from rlsys.runs.records.pass_rates import PassRates
from rlsys.runs.records.rollout_page import record_rollout_page
from rlsys.runs.records.rollout_store import SavedRollouts, settings_digest
from rlsys.runs.records.run_lock import run_lock
from rlsys.runs.records.saved_group import SavedGroup, as_it_was
from rlsys.runs.recovery import find_resume_point, has_ended
from rlsys.runs.run import Run, Setting, Summary, carry_out, read_summary
from rlsys.runs.signal_watch import SignalWatch
from rlsys.tracking.metrics import merge, step_metrics
from rlsys.tracking.progress import TRAINING, Progress
from rlsys.types import PromptItem, Sampling, ScoredGroup
from rlsys.weights.version import WeightVersion

log = logging.getLogger(__name__)


def train(config: RunConfig, options: StartOptions = FRESH, *, stack: Stack | None = None) -> Summary:
    """Train with GRPO as configured, on `stack` if one is open already, and write `summary.json`.

    options: whether to resume or to fork; see `recovery.find_resume_point`.
    If the run is complete already, its existing summary is returned.
    """
    with run_lock(config.output_dir):
        config = with_local_files(config, options.resume and config.output_dir)
        config = with_num_steps(config, lambda whole: len(training_items(whole)))
        point = find_resume_point(config, options)
        if has_ended(config, point):
            return read_summary(config)
        if stack is None:
            require_machine(config)
        check(config).raise_problems()
        rows = read_rows(config)
        items, held_out = rows.training, rows.held_out
        start = describe_start(config, point, items, command="train", allow_changes=options.allow_changes)
        start = replace(start, tables=rows.tables())
        tasks = {item.task for item in (*items, *held_out)}
        opened = open_stack(config, tasks) if stack is None else nullcontext(stack)
        return carry_out(opened, config, point, held_out, lambda setting: GrpoRun(setting, items), start)


class GrpoRun(Run[Stack]):
    """A run whose groups are sampled, scored, saved to disk and accounted for in a ledger."""

    title = "Trained in"
    publishes = True

    def __init__(self, setting: Setting[Stack], items: tuple[PromptItem, ...]) -> None:
        super().__init__(setting)
        config, point = setting.config, setting.point
        self.objective = PolicyGradient(config)
        self.progress = Progress(
            TRAINING, point.state.step, config.train.num_steps, {"judge queue": lambda: self._stack.scorer.num_waiting}
        )
        self._signal = SignalWatch(config.train)
        self._rollouts = SavedRollouts(config.output_dir, settings_digest(config))
        self.ledger = Ledger(config.output_dir, ledger.read(point.checkpoint) if point.checkpoint else [])
        in_flight = groups_under_way(
            collected=0, prompts_per_step=config.train.prompts_per_step, max_lag=self.objective.max_lag
        )
        self._pass_rates = PassRates(config.data.pass_rate, self.ledger, in_flight)
        self._items, self._order = items, order_of(config, items, self._pass_rates)
        self._sources = SourceMetrics(sources(config.data), items, self._order)
        if point.is_new:
            self._rollouts.forget_through(max(self._rollouts.steps(), default=0))

    def start(self, prompt_index: int) -> Future[ScoredGroup]:
        """Start sampling and scoring the prompt's group, or reuse the saved one."""
        item = self._items[self._order.index_at(prompt_index)]
        match self._rollouts.take(prompt_index):
            case SavedGroup() as saved:
                return as_it_was(saved, item, self._stack.producer, self._config)
            case Skipped(reason="quarantined", detail=detail):  # sampling it again would kill two actors again
                return _failed(RowUnusable(detail))
        try:
            self._pass_rates.require_inside(prompt_index, item.prompt_id)
        except PassRateOutside as error:
            return _failed(error)
        rollout = self._config.rollout
        with self.clock("switch"):
            self._stack.begin_sampling()
        return self._stack.producer.start(
            item,
            Sampling(
                num_samples=rollout.group_size,
                temperature=rollout.temperature,
                top_p=rollout.top_p,
                max_tokens=rollout.max_tokens,
                seed=sampling_seed(self._config.seed, prompt_index, item.prompt_id),
            ),
            self._config.data.on_dirty_row,
        )

    def prefetch(self, prompt_index: int) -> None:
        item = self._items[self._order.index_at(prompt_index)]
        with suppress(PassRateOutside):
            self._pass_rates.require_inside(prompt_index, item.prompt_id)
            self._stack.producer.prefetch(item)

    def check(self) -> None:
        self._stack.pool.raise_if_weights_gone()

    def keep(self, step: int, collected: Collected) -> None:
        if self._config.checkpoint.save_rollouts:
            with self.clock("keep"):
                self._rollouts.keep(step, collected)

    def publish(self, version: int) -> WeightVersion:
        return self._stack.publish(version)

    def _record(self, step: Step) -> None:
        stack, number = self._stack, step.state.step
        metrics = merge(
            step_metrics(step, stack.clips.counters(), stack.pool.counters(), stack.scorer.counters()),
            self.recovery.metrics(),
            self._sources.of(step),
            self.evaluated,
        )
        self._tracker.log_step(number, metrics)
        self._tracker.log_samples(number, step.groups)
        record_rollout_page(self._tracker, self._config, number, step.groups)
        reward, digest = metrics["reward/total/mean"], step.state.weights_digest
        self.ledger.add(ledger.entry(number, step.collected, reward=reward, weights_digest=digest))
        self._signal.observe(number, (*step.groups, *step.replaced), metrics.get("optim/grad_norm", 0.0))
        if self.recovery.step_done(number):
            num_rollouts = sum(len(scored.rollouts) for scored in (*step.groups, *step.replaced))
            self.progress.step(number, metrics, num_rollouts)

    def write_extras(self, folder: Path) -> None:
        ledger.write(folder, self.ledger.entries)

    def _saved(self) -> None:
        super()._saved()
        self._rollouts.forget_through(self.recovery.checkpoints.recent_steps()[0])

    def _went_back(self, state: RunState) -> None:
        self.ledger.go_back(state.step)
        if self._config.checkpoint.save_rollouts and (found := self._rollouts.look(after_step=state.step)):
            log.info("reusing the saved rollouts of %d prompts after step %d", found, state.step)

    def _ledger_result(self, state: RunState) -> Mapping[str, Any]:
        found = ledger.problems(self.ledger.entries, state.prompts_consumed)
        for problem in found:
            log.error("ledger: %s", problem)
        return {"counts": ledger.count(self.ledger.entries), "problems": found}

    def _write_curve(self) -> Path:
        rewards = [one.reward for one in self.ledger.entries]
        return write_reward_curve(rewards, self._config.output_dir / "reward_curve.png")


def _failed(error: RowUnusable) -> Future[ScoredGroup]:
    future: Future[ScoredGroup] = Future()
    future.set_exception(error)
    return future
