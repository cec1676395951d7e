"""The loop's parts in virtual time: everything that a group meets, and a record of every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlsys.checkpoint import RunState
from rlsys.collect import Collected
from rlsys.data.errors import ClipError
from rlsys.errors import LearnerLost
from rlsys.parts import Step
from rlsys.simulated.actors import Job, SimulatedActors
from rlsys.simulated.system import Draw, Faults, Phases, System, draw_group
from rlsys.simulated.virtual_time import Events, Meter, Servers, VirtualFuture
from rlsys.types import Prompt, PromptItem, Rollout, RolloutGroup, ScoredGroup, TrainBatch, WeightVersion

RESPONSES = 2  # the fewest that have advantages: the simulation counts groups, not responses


@dataclass(eq=False)
class _Group:
    """A group on its way. job: None before its clip is there.  outcome: None before its score is."""

    plan: Draw
    job: Job | None = None
    outcome: ScoredGroup | ClipError | None = None
    is_taken: bool = False


@dataclass(frozen=True, kw_only=True)
class Moment:
    """The end of a step: when, and busy seconds so far of slots of actors, ranks of the learner, and the judge."""

    at_s: float
    actors_s: float
    learner_s: float
    judge_s: float
    draws: tuple[int, ...] = ()
    lags: tuple[int, ...] = ()
    num_unscored: int = 0
    num_replaced: int = 0
    num_bad_clips: int = 0


class SimulatedParts:
    """What `rlsys.loop.run` drives; time passes in `publish`, `update` and the futures' `result`."""

    def __init__(self, system: System, phases: Phases, faults: Faults, seed: int) -> None:
        self.system, self._phases, self._faults, self._seed = system, phases, faults, seed
        self.events = Events()
        self._decoders = Servers(self.events, system.decode_workers)
        self._judge = Servers(self.events, system.judge_slots)
        self.actors = SimulatedActors(self.events, system, phases, faults, seed)
        self._learner = Meter(self.events)
        self._groups: list[_Group] = []
        self._version = 0
        self._num_taken = 0  # of the step that is being collected
        self.moments: list[Moment] = []

    def plan(self, draw: int) -> Draw:
        """What the draw-th group takes."""
        return draw_group(draw, self._phases, self._faults, self._seed)

    def start(self, draw: int) -> VirtualFuture:
        """Decode, generate and judge one group, in time."""
        group = _Group(self.plan(draw))
        self._groups.append(group)
        self._decoders.submit(self._phases.decode_s, lambda: self._generate(group))
        return VirtualFuture(lambda future: self._arrive(future, group))

    def _generate(self, group: _Group) -> None:
        plan = group.plan
        if plan.has_bad_clip:
            group.outcome = ClipError(f"simulated:{plan.draw}", "corrupt", "simulated")
            return
        group.job = Job(plan.draw, plan.generate_s, lambda: self._judge.submit(plan.score_s, scored))

        def scored() -> None:
            assert group.job is not None
            group.outcome = _scored(plan, group.job.version)

        self.actors.submit(group.job)

    def _arrive(self, future: VirtualFuture, group: _Group) -> None:
        if self.system.order == "finished":
            self.events.run_until(lambda: self._best() is not None)
            group = self._best() or group
        else:
            self.events.run_until(lambda: group.outcome is not None)
        group.is_taken = True
        self._groups.remove(group)
        if isinstance(group.outcome, ClipError):
            future.set_exception(group.outcome)
        elif group.outcome is not None:
            self._num_taken += 1
            future.set_result(group.outcome)

    def _best(self) -> _Group | None:
        """The oldest group that has its score and that can be taken before all others without making one too old."""
        for group in self._groups:
            if group.outcome is not None and (isinstance(group.outcome, ClipError) or self._leaves_room(group)):
                return group
        return None

    def _leaves_room(self, taken: _Group) -> bool:
        """Whether what is left can still be trained on in time, a step taking `prompts_per_step` groups."""
        size, last = self.system.prompts_per_step, self._version + self.system.max_lag
        left = size - self._num_taken - 1
        deadlines = [self._deadline(group) for group in self._groups if group is not taken]
        return all(
            sum(deadline <= version for deadline in deadlines) <= left + (version - self._version) * size
            for version in range(self._version, last)
        )

    def _deadline(self, group: _Group) -> int:
        """The last version that may train on it."""
        is_begun = group.job is not None and group.job.version >= 0
        return (group.job.version if group.job and is_begun else self._version) + self.system.max_lag

    def prefetch(self, draw: int) -> None:
        """Nothing: a simulated clip is decoded when its group starts."""

    def keep(self, step: int, collected: Collected) -> None:
        """Nothing."""

    def recover(self, error: LearnerLost) -> RunState:
        """A simulated learner does not fail."""
        raise error

    def reference_logprobs(self, groups: Sequence[RolloutGroup]) -> Sequence[Sequence[np.ndarray]]:
        """The simulation has no reference policy."""
        raise NotImplementedError("a simulated run has no KL in its reward.")

    def update(self, batch: TrainBatch) -> Mapping[str, float]:
        """The ranks share the groups, longest first to the least busy; the slowest decides."""
        costs = [self.plan(_draw_of(group)).update_s for group in batch.groups]
        loads = rank_loads(costs, self.system.num_ranks)
        done = 0.0
        self._learner.change(self.system.num_ranks)
        for load in sorted(loads):
            self.events.advance(load - done)
            done = load
            self._learner.change(-1)
        self._learner.change(self.system.num_ranks)
        self.events.advance(self._phases.optimizer_s)
        self._learner.change(-self.system.num_ranks)
        return {}

    def publish(self, version: int) -> WeightVersion:
        """See `SimulatedActors.publish`."""
        self.actors.publish(version)
        self._version, self._num_taken = version, 0
        return WeightVersion(version=version, transport="simulated", num_tensors=0, num_bytes=0, digest=f"{version}")

    def record(self, step: Step) -> None:
        """Keep the moment."""
        version = step.state.version - 1
        rollouts = [scored.group.rollouts[0] for scored in step.groups]
        self.moments.append(
            Moment(
                at_s=self.events.now,
                actors_s=self.actors.busy.total_s,
                learner_s=self._learner.total_s,
                judge_s=self._judge.busy.total_s,
                draws=tuple(_draw_of(scored.group) for scored in step.groups),
                lags=tuple(version - rollout.weight_version for rollout in rollouts),
                num_unscored=sum(not scored.is_valid.any() for scored in (*step.groups, *step.replaced)),
                num_replaced=len(step.replaced),
                num_bad_clips=len(step.collected.left_out),
            )
        )


def rank_loads(costs: Sequence[float], num_ranks: int) -> list[float]:
    """Seconds of each rank when groups go to the least busy one, costliest first."""
    loads = [0.0] * num_ranks
    for cost in sorted(costs, reverse=True):
        loads[loads.index(min(loads))] += cost
    return loads


def _draw_of(group: RolloutGroup) -> int:
    return int(group.item.prompt_id.partition(":")[2])


def _scored(plan: Draw, version: int) -> ScoredGroup:
    name = f"simulated:{plan.draw}"
    ids = np.zeros(1, np.int32)
    item = PromptItem(prompt_id=name, task="temporal_grounding", question="", options=(), media=(), truth=[[0.0, 1.0]])
    rollouts = tuple(
        Rollout(
            rollout_id=f"{name}/{index}",
            prompt_id=name,
            sample_index=index,
            prompt_ids=ids,
            response_ids=ids,
            response_logprobs=np.zeros(1, np.float32),
            text="",
            finish_reason="stop",
            token_versions=np.full(1, version, np.int32),
            generate_s=plan.generate_s,
        )
        for index in range(RESPONSES)
    )
    prompt = Prompt(engine_ids=ids, prompt_ids=ids, position_ids=np.zeros((3, 1), np.int32), next_position=1)
    rewards = np.array([1.0, 1.0 if plan.is_flat else 0.0], np.float32)
    if plan.is_unscored:
        rewards = np.full(RESPONSES, np.nan, np.float32)
    return ScoredGroup(
        group=RolloutGroup(item=item, prompt=prompt, clips=(), rollouts=rollouts),
        score_names=("iou",),
        scores=rewards[:, None],
        rewards=rewards,
        is_valid=~np.isnan(rewards),
        reasons=("infra: simulated" if plan.is_unscored else "",) * RESPONSES,
        evidence=(None,) * RESPONSES,
        spans={},
    )
