"""The main loop, over Protocols alone: start groups, collect them scored, update, publish.

Groups are trained on in the order of their draws, so a synchronous run (`pipeline.max_lag=0`) is
deterministic whichever actor finishes first.
"""

from __future__ import annotations

from dataclasses import replace

from rlsys.algorithm.batch import make_batch, require_scores
from rlsys.algorithm.reward_shaping import Shaped, needs_reference, shape_rewards
from rlsys.clock import Clock
from rlsys.config.run import RunConfig
from rlsys.errors import LearnerLost
from rlsys.loop.collect import Flight, collect
from rlsys.loop.parts import Parts, Step
from rlsys.loop.state import RunState
from rlsys.types import ScoredGroup


def run(parts: Parts, config: RunConfig, state: RunState) -> RunState:
    """Train from `state` to `train.num_steps` steps and return the state then.

    A learner that is lost goes back to where `parts.recover` says. What was sampled meanwhile is kept, and
    used where it is not too old then.
    """
    flight = Flight(parts.start, parts.prefetch, parts.check)
    is_published = False
    while state.step < config.train.num_steps or not is_published:
        try:
            if not is_published:
                state = replace(state, weights_digest=parts.publish(state.version).digest)
                is_published = True
            else:
                state = _step(parts, config, state, flight)
                flight.forget_before(state.drawn)
        except LearnerLost as error:
            state = parts.recover(error)
            is_published = False
    return state


def _step(parts: Parts, config: RunConfig, state: RunState, flight: Flight) -> RunState:
    clock = Clock()
    with clock("collect"):
        collected = collect(flight, config, state)
        parts.keep(state.step + 1, collected)
    shaped = _shape(parts, collected.groups, config, clock)
    batch = make_batch(shaped.groups, config.algorithm, config.reward)
    require_scores(collected.groups, batch)
    with clock("update"):
        learner_metrics = parts.update(batch)
    with clock("sync"):
        published = parts.publish(state.version + 1)
    state = replace(
        state,
        step=state.step + 1,
        version=published.version,
        drawn=state.drawn + collected.num_drawn,
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
    return state


def _shape(parts: Parts, groups: tuple[ScoredGroup, ...], config: RunConfig, clock: Clock) -> Shaped:
    reference = None
    if needs_reference(config.algorithm):
        with clock("reference"):
            reference = parts.reference_logprobs([scored.group for scored in groups])
    return shape_rewards(groups, config.algorithm, config.rollout.max_tokens, reference)
