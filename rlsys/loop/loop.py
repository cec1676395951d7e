"""The main loop: sample groups, score them, compute advantages, update, publish the weights, record.

`train` is the training loop itself; `run` adds loading, finishing, and recovery from a lost learner. Both depend only
on the Protocols of `rlsys.loop.parts`. Groups are trained on in prompt order, so a synchronous run
(`pipeline.max_lag=0`) is deterministic whichever actor finishes first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from rlsys.algorithm.reward_shaping import Shaped
from rlsys.clock import Clock
from rlsys.config.run import RunConfig
from rlsys.errors import LearnerLost, WeightsDiffer
from rlsys.loop.collect import InFlightGroups, collect
from rlsys.loop.objective import Objective, PolicyGradient
from rlsys.loop.parts import Parts, Step, WholeRun
from rlsys.loop.state import RunState
from rlsys.types import ScoredGroup
from rlsys.weights.manifest import are_different

Outcome = TypeVar("Outcome")


def run(whole: WholeRun[Outcome], config: RunConfig) -> Outcome:
    """Load the learner, train to the last step and finish, recovering whenever the learner is lost.

    A lost learner restarts from its newest checkpoint. Groups that were sampled meanwhile are kept and used unless
    they are too old by then. Raises LearnerLost when `whole.learner_lost` gives up.
    """
    groups = InFlightGroups(whole)
    while True:
        try:
            state = whole.load_learner()
            whole.begin(state)
            with whole.progress:
                state = train(whole, config, state, whole.objective, groups)
            return whole.finish(state)
        except LearnerLost as error:
            whole.learner_lost(error)


def train(
    parts: Parts,
    config: RunConfig,
    state: RunState,
    objective: Objective | None = None,
    groups: InFlightGroups | None = None,
) -> RunState:
    """Train from `state` until `train.num_steps` steps are done and return the final state.

    objective: None means the policy gradient configured in `config.algorithm`.
    groups: the groups already in flight; None means none.
    """
    objective, groups = objective or PolicyGradient(config), groups or InFlightGroups(parts)
    published = parts.publish(state.step)
    if published.kind == "full" and are_different(published.digest, state.weights_digest):
        raise WeightsDiffer(
            f"the learner's weights are not those of the checkpoint: their digest is {published.digest}, but step "
            f"{state.step} was saved with {state.weights_digest}. Resume from another checkpoint."
        )
    state = replace(state, weights_digest=published.digest)
    while state.step < config.train.num_steps:
        clock = Clock()
        with clock("collect"):  # generate and score G responses per prompt
            collected = collect(groups, objective, config, state)
            parts.keep(state.step + 1, collected)
        shaped = _shape_rewards(parts, objective, collected.groups, clock)
        advantages = objective.advantages(shaped.groups)
        batch = objective.batch(shaped.groups, advantages)
        with clock("update"):
            learner_metrics = parts.update(batch)
        with clock("sync"):
            published = parts.publish(state.step + 1)
        state = replace(
            state,
            step=state.step + 1,
            prompts_consumed=state.prompts_consumed + collected.num_consumed,
            weights_digest=published.digest,
        )
        parts.record(
            Step(
                state=state,
                collected=collected,
                batch=batch,
                shaping_metrics=shaped.metrics,
                learner_metrics=learner_metrics,
                seconds=clock.seconds,
            )
        )
        groups.forget_before(state.prompts_consumed)
    return state


def _shape_rewards(parts: Parts, objective: Objective, groups: tuple[ScoredGroup, ...], clock: Clock) -> Shaped:
    if not objective.needs_reference:
        return objective.shape(groups, None)
    with clock("reference"):
        reference = parts.reference_logprobs([group for scored in groups for group in scored.groups])
    return objective.shape(groups, reference)
