"""How short a step can be at each lag, and how devices are best split between actors and learner: pure arithmetic.

A step cannot be shorter than any of three things, whatever the order of groups:

- Generating. The actors' slots generate a step's groups and load its weights. Under `pause` an actor loads only
  between groups, so each of its turns is one whole group at least.
- Learning. The ranks learn from a step's groups, and the loop waits until the actors have loaded.
- Latency. A step's groups may start only when the weights of `max_lag` steps before it are there, and must have been
  generated, scored and learned from when it ends. So `max_lag + 1` steps hold one generation in whole rounds, one
  scoring, one update and one loading.

For equal groups without faults the simulation of the real loop (`benchmarks.simulation`) takes this long, within 4 %
where a step fills the actors in whole rounds. Where it does not and actors pause, up to a fifth longer was seen, and
never longer than a synchronous step. Under `abort` the groups that are started again come on top.
`tests/rlsys/planning/test_step_bound.py` compares them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class StepBound:
    """Equal groups, and what works on them. Times in seconds.

    num_groups: of a step.  num_slots: groups that one actor generates at once.
    generate_s, score_s: of a group.  update_s: of a group on one rank.  sync_s: of loading new weights.
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
        """Seconds that the slots of all actors work for a step, if they always work."""
        return self.num_groups * self.generate_s / (self.num_actors * self.num_slots)

    @property
    def rounds_s(self) -> float:
        """Seconds in which the actors generate one step's groups and nothing else, in whole rounds."""
        return math.ceil(self.num_groups / (self.num_actors * self.num_slots)) * self.generate_s

    @property
    def learn_s(self) -> float:
        """Seconds in which the ranks learn from one step's groups."""
        return math.ceil(self.num_groups / self.num_ranks) * self.update_s

    @property
    def longest_phase_s(self) -> float:
        """Seconds of generating, scoring or learning, whichever takes a step longest."""
        return max(self.rounds_s, self.score_s, self.learn_s)

    def step_s(self, max_lag: int) -> float:
        """Seconds that a step takes at least at this lag."""
        generating = max(self.slots_s, self.generate_s) if self.weight_update == "pause" else self.slots_s
        latency = self.rounds_s + self.score_s + self.learn_s + self.sync_s
        if max_lag == 0:
            return latency
        return max(generating + self.sync_s, self.learn_s + self.sync_s, latency / (max_lag + 1))

    def busy(self, max_lag: int) -> tuple[float, float]:
        """Shares of a step of that length in which the actors' slots and the ranks work."""
        step_s = self.step_s(max_lag)
        return self.slots_s / step_s, self.learn_s / step_s


def splits(bound: StepBound, *, num_devices: int, devices_per_actor: int = 1) -> list[StepBound]:
    """Every way to give all devices to actors and ranks, one device a rank, that the loop can run.

    The remainder of `devices_per_actor` stays unused. The number of ranks divides `num_groups`.
    """
    return [
        replace(bound, num_actors=(num_devices - num_ranks) // devices_per_actor, num_ranks=num_ranks)
        for num_ranks in range(1, num_devices - devices_per_actor + 1)
        if bound.num_groups % num_ranks == 0
    ]


def best_split(candidates: Sequence[StepBound], max_lag: int) -> StepBound:
    """The split with the shortest step; of those within 1 %, the one with the fewest actors."""
    shortest = min(candidate.step_s(max_lag) for candidate in candidates)
    good = [candidate for candidate in candidates if candidate.step_s(max_lag) <= 1.01 * shortest]
    return min(good, key=lambda candidate: candidate.num_actors)
