"""The real loop on simulated parts: step times, idle times, and the best split of devices."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.simulation.parts import Moment, SimulatedParts, rank_loads
from benchmarks.simulation.system import Faults, Phases, System
from rlsys.loop import collect, loop
from rlsys.loop.state import RunState

NO_FAULTS = Faults()
START = RunState(step=0, prompts_consumed=0, seed=0, mlflow_run_id="", weights_digest="")


@dataclass(frozen=True, kw_only=True)
class Report:
    """The results of a run without its start and end, where the pipeline fills and empties. Times are in seconds.

    step_s, step_p95_s: of a step, mean and 95th percentile.
    generate_s, score_s, learn_s: mean time of each phase by itself, for a step's groups.
    capacity_s: time per step of the phase with the most work per slot or rank, if all were always busy. Overlapping
    steps can be shorter than the longest phase, but in the long run not shorter than this.
    *_busy: share of the time in which actor slots, ranks and the judge's slots are busy; judge_busy is NaN if the
    judge has no limit.
    max_lag, mean_lag: steps between the weights of a group's first token and those it trains, of all steps.
    groups_*: number in all steps that were unscored, replaced, or sampled again because of their age.
    bad_clips: number of groups without a clip.  actors_lost, learners_lost: numbers of losses; a repeated step takes
    all the time since the step before it.  wasted_s: generation time, summed over slots, that was lost with an actor.
    """

    num_steps: int
    step_s: float
    step_p95_s: float
    generate_s: float
    score_s: float
    learn_s: float
    capacity_s: float
    actors_busy: float
    learner_busy: float
    judge_busy: float
    max_lag: int
    mean_lag: float
    groups_trained: int
    groups_unscored: int
    groups_replaced: int
    groups_stale: int
    bad_clips: int
    actors_lost: int
    learners_lost: int
    wasted_s: float

    @property
    def floor_s(self) -> float:
        """Return the longest phase, which is the step time if all other phases are hidden."""
        return max(self.generate_s, self.score_s, self.learn_s)


def simulate(
    system: System, phases: Phases, faults: Faults = NO_FAULTS, *, num_steps: int = 30, seed: int = 0
) -> Report:
    """Train for `num_steps` in virtual time and return a report, which is a function of the arguments.

    Raises RuntimeError if the loop trains on a group that is too old, and ScoringFailed as the loop does.
    """
    return report(*run(system, phases, faults, num_steps=num_steps, seed=seed))


def run(
    system: System, phases: Phases, faults: Faults = NO_FAULTS, *, num_steps: int = 30, seed: int = 0
) -> tuple[SimulatedParts, System, Phases]:
    """Run the loop and return its parts, for `report` and for inspection."""
    start = replace(START, seed=seed)
    parts = SimulatedParts(system, phases, faults, seed, start, num_steps)
    level = collect.log.level
    collect.log.setLevel(logging.ERROR)  # it warns about every clip that it skips
    try:
        loop.run(parts, parts.config)
    finally:
        collect.log.setLevel(level)
    return parts, system, phases


def report(parts: SimulatedParts, system: System, phases: Phases) -> Report:
    """Return the report of a run."""
    start = Moment(at_s=0.0, actors_s=0.0, learner_s=0.0, judge_s=0.0)
    moments = [start, *parts.moments]
    cut = system.max_lag + 1
    steady = moments[cut : len(moments) - system.max_lag]
    if len(steady) < 2:
        steady = moments
    length = steady[-1].at_s - steady[0].at_s
    steps = np.diff([moment.at_s for moment in steady])
    alone = np.array([_alone(parts, moment.prompt_indices) for moment in steady[1:]]).mean(axis=0)
    lags = [lag for moment in parts.moments for lag in moment.lags]

    def busy(name: str, count: int) -> float:
        used = float(getattr(steady[-1], name) - getattr(steady[0], name))
        return used / (length * count) if length * count else float("nan")

    return Report(
        num_steps=len(parts.moments),
        step_s=float(steps.mean()),
        step_p95_s=float(np.percentile(steps, 95)),
        generate_s=float(alone[0]),
        score_s=float(alone[1]),
        learn_s=float(alone[2]) + phases.optimizer_s,
        capacity_s=float(max(alone[3], alone[4], alone[5] + phases.optimizer_s)),
        actors_busy=busy("actors_s", system.num_actors * system.slots),
        learner_busy=busy("learner_s", system.num_ranks),
        judge_busy=busy("judge_s", system.judge_slots),
        max_lag=max(lags),
        mean_lag=float(np.mean(lags)),
        groups_trained=len(lags),
        groups_unscored=sum(moment.num_unscored for moment in parts.moments),
        groups_replaced=sum(moment.num_replaced for moment in parts.moments),
        groups_stale=sum(moment.num_stale for moment in parts.moments),
        bad_clips=sum(moment.num_bad_clips for moment in parts.moments),
        actors_lost=parts.actors.num_lost,
        learners_lost=parts.num_learners_lost,
        wasted_s=parts.actors.wasted_s,
    )


def _alone(parts: SimulatedParts, prompt_indices: Sequence[int]) -> tuple[float, ...]:
    """Return the mean times of the phases for a step's groups, each by itself, and their work per server."""
    system = parts.system
    plans = [parts.plan(prompt_index) for prompt_index in prompt_indices]
    generate = [plan.generate_s for plan in plans]
    score = [plan.score_s for plan in plans]
    update = [plan.update_s for plan in plans]
    slots = system.num_actors * system.slots
    return (
        makespan(generate, slots),
        makespan(score, system.judge_slots),
        max(rank_loads(update, system.num_ranks)),
        sum(generate) / slots,
        sum(score) / system.judge_slots if system.judge_slots else 0.0,
        sum(update) / system.num_ranks,
    )


def makespan(seconds: Sequence[float], count: int) -> float:
    """Return the time at which `count` servers finish tasks that they take in order; count 0 serves all at once."""
    if count == 0 or count >= len(seconds):
        return max(seconds, default=0.0)
    ends = [0.0] * count
    for one in seconds:
        heapq.heapreplace(ends, ends[0] + one)
    return max(ends)


@dataclass(frozen=True, kw_only=True)
class Division:
    """A split of devices between actors and learner, and its step time."""

    num_actors: int
    num_ranks: int
    report: Report


def divisions(
    system: System, phases: Phases, *, num_devices: int, devices_per_actor: int = 1, num_steps: int = 12, seed: int = 0
) -> Iterator[Division]:
    """Yield every feasible split of the devices between actors and ranks, one device per rank.

    A remainder of `devices_per_actor` stays unused. The number of ranks divides `system.prompts_per_step`.
    """
    for num_ranks in range(1, num_devices):
        num_actors = (num_devices - num_ranks) // devices_per_actor
        if num_actors and system.prompts_per_step % num_ranks == 0:
            divided = replace(system, num_actors=num_actors, num_ranks=num_ranks)
            found = simulate(divided, phases, num_steps=num_steps, seed=seed)
            yield Division(num_actors=num_actors, num_ranks=num_ranks, report=found)


def balanced(candidates: Sequence[Division]) -> Division:
    """Return the split with the shortest step; of those within 1 %, the one with the fewest actors."""
    shortest = min(candidate.report.step_s for candidate in candidates)
    good = [candidate for candidate in candidates if candidate.report.step_s <= 1.01 * shortest]
    return min(good, key=lambda candidate: candidate.num_actors)
