"""The loop's parts in virtual time, which take each group through its phases and record every step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np

from benchmarks.simulation.actors import Job, SimulatedActors
from benchmarks.simulation.system import Draw, Faults, Phases, System, draw_group
from benchmarks.simulation.virtual_time import Events, Meter, Servers, VirtualFuture
from rlsys.data.video.errors import ClipError
from rlsys.errors import LearnerLost
from rlsys.loop.collect import Collected
from rlsys.loop.objective import PolicyGradient
from rlsys.loop.parts import Step
from rlsys.loop.state import RunState
from rlsys.runs.records.ledger import Entry, entry
from rlsys.types import Prompt, PromptItem, Rollout, RolloutGroup, ScoredGroup, TrainBatch
from rlsys.weights.version import WeightVersion

RESPONSES = 2  # the fewest that have advantages: the simulation counts groups, not responses
LEARNER = 1 << 40  # keeps the random numbers of the learner's fate apart from those of groups


@dataclass(eq=False)
class _Group:
    """A group in flight. job: None until its clip is decoded.  outcome: None until it is scored."""

    plan: Draw
    job: Job | None = None
    outcome: ScoredGroup | ClipError | None = None
    is_cancelled: bool = False


@dataclass(frozen=True, kw_only=True)
class Moment:
    """The end of a step: its time, and the busy seconds so far of actor slots, learner ranks and the judge."""

    at_s: float
    actors_s: float
    learner_s: float
    judge_s: float
    prompt_indices: tuple[int, ...] = ()
    lags: tuple[int, ...] = ()
    num_unscored: int = 0
    num_replaced: int = 0
    num_bad_clips: int = 0
    num_stale: int = 0


class SimulatedParts:
    """The parts that `rlsys.loop.loop.run` drives; time passes in `publish`, `update` and the futures' `result`."""

    def __init__(
        self, system: System, phases: Phases, faults: Faults, seed: int, start: RunState, num_steps: int = 1
    ) -> None:
        self.system, self._phases, self._faults, self._seed = system, phases, faults, seed
        self.config = system.config(num_steps, seed)
        self.objective = PolicyGradient(self.config)
        self.progress: AbstractContextManager[None] = nullcontext()
        self.events = Events()
        self._decoders = Servers(self.events, system.decode_workers)
        self._judge = Servers(self.events, system.judge_slots)
        self.actors = SimulatedActors(self.events, system, phases, faults, seed)
        self._learner = Meter(self.events)
        self._clips: dict[
            int, list[Callable[[], None]] | None
        ] = {}  # by prompt_index, who waits for it; None: it is there
        self._saved, self._num_updates = start, 0
        self.num_learners_lost = 0
        self.moments: list[Moment] = []
        self.entries: list[Entry] = []

    def plan(self, prompt_index: int) -> Draw:
        """Return the times and faults of the group of this prompt index."""
        return draw_group(prompt_index, self._phases, self._faults, self._seed)

    def start(self, prompt_index: int) -> VirtualFuture:
        """Start to decode, generate and judge one group in virtual time."""
        group = _Group(self.plan(prompt_index))
        self._when_decoded(prompt_index, lambda: self._generate(group))
        return VirtualFuture(lambda future: self._arrive(future, group), lambda: self._cancel(group))

    def prefetch(self, prompt_index: int) -> None:
        """Start to decode the clip of a group that will start soon."""
        if prompt_index not in self._clips:
            self._when_decoded(prompt_index, lambda: None)

    def check(self) -> None:
        """Do nothing, because simulated weights are never lost."""

    def _when_decoded(self, prompt_index: int, proceed: Callable[[], None]) -> None:
        waiting = self._clips.get(prompt_index, [])
        if waiting is None:
            proceed()
            return
        waiting.append(proceed)
        if prompt_index in self._clips:
            return
        self._clips[prompt_index] = waiting

        def decoded() -> None:
            self._clips[prompt_index] = None
            for waits in waiting:
                waits()

        self._decoders.submit(self._phases.decode_s, decoded)

    def _generate(self, group: _Group) -> None:
        plan = group.plan
        if group.is_cancelled:
            return
        if plan.has_bad_clip:
            group.outcome = ClipError(f"simulated:{plan.prompt_index}", "corrupt", "simulated")
            return
        job = group.job = Job(plan.prompt_index, plan.generate_s, lambda: self._judge.submit(plan.score_s, scored))

        def scored() -> None:
            group.outcome = _scored(plan, job.versions)

        self.actors.submit(job)

    def _cancel(self, group: _Group) -> None:
        group.is_cancelled = True
        if group.job is not None:
            self.actors.cancel(group.job)

    def _arrive(self, future: VirtualFuture, group: _Group) -> None:
        self.events.run_until(lambda: group.outcome is not None)
        if isinstance(group.outcome, ClipError):
            future.set_exception(group.outcome)
        elif group.outcome is not None:
            future.set_result(group.outcome)

    def keep(self, step: int, collected: Collected) -> None:
        """Do nothing: a step that is repeated samples its groups again."""

    def learner_lost(self, error: LearnerLost) -> None:
        """Let the time of a restart pass; steps since the last checkpoint are repeated."""
        self.events.advance(self._faults.learner_restart_s)
        self.num_learners_lost += 1
        del self.moments[self._saved.step :], self.entries[self._saved.step :]

    def load_learner(self) -> RunState:
        """Return the state of the learner's last checkpoint."""
        return self._saved

    def begin(self, state: RunState) -> None:
        """Do nothing: a simulated run has no evaluation."""

    def finish(self, state: RunState) -> RunState:
        """Return the state at the end."""
        return state

    def reference_logprobs(self, groups: Sequence[RolloutGroup]) -> Sequence[Sequence[np.ndarray]]:
        """Raise NotImplementedError: the simulation has no reference policy."""
        raise NotImplementedError("a simulated run has no KL in its reward.")

    def update(self, batch: TrainBatch) -> Mapping[str, float]:
        """Let the time of an update pass: ranks get groups longest first, and the slowest rank decides."""
        costs = [self.plan(_draw_of(group)).update_s for group in batch.groups]
        loads = rank_loads(costs, self.system.num_ranks)
        self._num_updates += 1
        lost, when = np.random.default_rng([self._seed, LEARNER, self._num_updates]).random(2).tolist()
        if lost < self._faults.learner_lost_frac:
            self.events.advance(max(loads) * when)
            raise LearnerLost("simulated")
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
        """Publish a version, see `SimulatedActors.publish`."""
        self.actors.publish(version)
        return WeightVersion(version=version, transport="simulated", num_tensors=0, num_bytes=0, digest=f"{version}")

    def record(self, step: Step) -> None:
        """Record the moment and the prompt indices, and a checkpoint when one is due."""
        version = step.state.step - 1
        rollouts = [scored.group.rollouts[0] for scored in step.groups]
        self.entries.append(
            entry(step.state.step, step.collected, reward=0.0, weights_digest=step.state.weights_digest)
        )
        if step.state.step % self.system.checkpoint_every == 0:
            self._saved = step.state
        self.moments.append(
            Moment(
                at_s=self.events.now,
                actors_s=self.actors.busy.total_s,
                learner_s=self._learner.total_s,
                judge_s=self._judge.busy.total_s,
                prompt_indices=tuple(_draw_of(scored.group) for scored in step.groups),
                lags=tuple(version - int(rollout.token_versions.min()) for rollout in rollouts),
                num_unscored=sum(not scored.is_valid.any() for scored in (*step.groups, *step.replaced)),
                num_replaced=len(step.replaced),
                num_bad_clips=len(step.collected.skipped),
                num_stale=step.collected.num_stale,
            )
        )


def rank_loads(costs: Sequence[float], num_ranks: int) -> list[float]:
    """Return the seconds of each rank if groups go to the least busy one, costliest first."""
    loads = [0.0] * num_ranks
    for cost in sorted(costs, reverse=True):
        loads[loads.index(min(loads))] += cost
    return loads


def _draw_of(group: RolloutGroup) -> int:
    return int(group.item.prompt_id.partition(":")[2])


def _scored(plan: Draw, versions: tuple[int, ...]) -> ScoredGroup:
    name = f"simulated:{plan.prompt_index}"
    ids = np.zeros(len(versions), np.int32)
    item = PromptItem(prompt_id=name, task="temporal_grounding", question="", options=(), media=(), truth=[[0.0, 1.0]])
    rollouts = tuple(
        Rollout(
            rollout_id=f"{name}/{index}",
            prompt_id=name,
            sample_index=index,
            prompt_ids=ids,
            response_ids=ids,
            response_logprobs=np.zeros(len(versions), np.float32),
            text="",
            finish_reason="stop",
            token_versions=np.array(versions, np.int32),
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
