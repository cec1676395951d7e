"""Lower bound on the step time at each lag, and the best actor:learner split.

In any order of groups, three quantities bound a step from below:

- Generation. The actors' slots generate a step's groups and load its weights. Under `pause` an actor loads only
  between groups, so each of its turns takes at least one whole group.
- Learning. The ranks train on a step's groups, and the loop waits until the actors have loaded the weights.
- Latency. A step's groups start only after the weights of `max_lag` steps earlier are loaded, and must be generated,
  scored and trained on before the step ends. So `max_lag + 1` steps contain one generation in whole rounds, one
  scoring, one update and one loading.

For equal groups without faults, the simulation of the real loop (`benchmarks.simulation`) matches the bound within 4 %
if a step fills the actors in whole rounds. Otherwise, and if actors pause, steps were up to a fifth longer, but never
longer than a synchronous step. Under `abort` the restarted groups come on top.
`tests/rlsys/planning/test_step_bound.py` compares them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class StepBound:
    """Step-time bounds for equal groups. Times are in seconds.

    num_groups: groups per step.  num_slots: groups that one actor generates concurrently.
    generate_s, score_s: per group.  update_s: per group on one rank.  sync_s: loading new weights.
    """

    num_groups: int
    num_actors: int
    num_slots: int
    num_ranks: int
    generate_s: float
    score_s: float
    update_s: float
    sync_s: float
    weight_update: Literal["pause", "keep", "abort"]

    @property
    def slots_s(self) -> float:
        """Return the seconds per step for which fully busy actors generate and load."""
        return self.num_groups * self.generate_s / (self.num_actors * self.num_slots)

    @property
    def rounds_s(self) -> float:
        """Return the seconds in which the actors generate one step's groups in whole rounds."""
        return math.ceil(self.num_groups / (self.num_actors * self.num_slots)) * self.generate_s

    @property
    def learn_s(self) -> float:
        """Return the seconds in which the ranks train on one step's groups."""
        return math.ceil(self.num_groups / self.num_ranks) * self.update_s

    @property
    def longest_phase_s(self) -> float:
        """Return the seconds per step of the longest phase: generation, scoring or learning."""
        return max(self.rounds_s, self.score_s, self.learn_s)

    def step_s(self, max_lag: int) -> float:
        """Return the lower bound on the seconds of a step at this lag."""
        generating = max(self.slots_s, self.generate_s) if self.weight_update == "pause" else self.slots_s
        latency = self.rounds_s + self.score_s + self.learn_s + self.sync_s
        if max_lag == 0:
            return latency
        return max(generating + self.sync_s, self.learn_s + self.sync_s, latency / (max_lag + 1))

    def busy(self, max_lag: int) -> tuple[float, float]:
        """Return the fractions of a step at this bound in which the actors' slots and the ranks are busy."""
        step_s = self.step_s(max_lag)
        return self.slots_s / step_s, self.learn_s / step_s


def splits(
    bound: StepBound, *, num_devices: int, devices_per_actor: int = 1, devices_per_rank: int = 1
) -> list[StepBound]:
    """Return all feasible splits of the devices between actors and ranks.

    A remainder of `devices_per_actor` stays unused. The number of ranks divides `num_groups`.
    """
    return [
        replace(
            bound,
            num_actors=(num_devices - num_ranks * devices_per_rank) // devices_per_actor,
            num_ranks=num_ranks,
        )
        for num_ranks in range(1, (num_devices - devices_per_actor) // devices_per_rank + 1)
        if bound.num_groups % num_ranks == 0
    ]


def best_split(candidates: Sequence[StepBound], max_lag: int) -> StepBound:
    """Return the split with the shortest step; of those within 1 %, the one with the fewest actors."""
    shortest = min(candidate.step_s(max_lag) for candidate in candidates)
    good = [candidate for candidate in candidates if candidate.step_s(max_lag) <= 1.01 * shortest]
    return min(good, key=lambda candidate: candidate.num_actors)
