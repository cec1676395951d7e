"""The main loop, over Protocols alone: start groups, collect them scored, update, publish.

Groups are trained on in the order in which they started, so a synchronous run
(`pipeline.max_lag=0`) is deterministic whichever actor finishes first.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace

from rlsys.batch import make_batch, require_scores
from rlsys.checkpoint import RunState
from rlsys.clock import Clock
from rlsys.config import RunConfig
from rlsys.data.errors import ClipError
from rlsys.parts import Parts, Step
from rlsys.staleness import how_many_may_start, lag_updates
from rlsys.types import ScoredGroup

log = logging.getLogger(__name__)


def run(parts: Parts, config: RunConfig, state: RunState) -> RunState:
    """Train from `state` to `train.num_steps` updates and return the state then."""
    in_flight: deque[Future[ScoredGroup]] = deque()
    published = parts.publish(state.version)
    while state.step < config.train.num_steps:
        clock = Clock()
        with clock("collect"):
            groups, bad_clips = _collect(parts.start, in_flight, config, state)
        batch = make_batch(groups, config.reward.min_valid)
        require_scores(groups, batch)
        with clock("update"):
            learner_metrics = parts.update(batch)
        drawn = state.drawn + len(groups) + bad_clips
        with clock("sync"):
            published = parts.publish(state.version + 1)
        state = replace(
            state, step=state.step + 1, version=published.version, drawn=drawn, weights_digest=published.digest
        )
        parts.record(
            Step(
                state=state,
                groups=groups,
                batch=batch,
                learner_metrics=learner_metrics,
                seconds=clock.seconds,
                bad_clips=bad_clips,
            )
        )
    return replace(state, weights_digest=published.digest)


def _collect(
    start: Callable[[int], Future[ScoredGroup]],
    in_flight: deque[Future[ScoredGroup]],
    config: RunConfig,
    state: RunState,
) -> tuple[tuple[ScoredGroup, ...], int]:
    """The groups of the next update in starting order, and how many draws had an unusable clip."""
    wanted, max_lag = config.train.prompts_per_step, config.pipeline.max_lag
    still_needed = (config.train.num_steps - state.step) * wanted
    groups: list[ScoredGroup] = []
    bad_clips = 0
    while len(groups) < wanted:
        ahead = len(in_flight) + len(groups)
        room = how_many_may_start(
            in_flight=len(in_flight), collected=len(groups), prompts_per_step=wanted, max_lag=max_lag
        )
        first = state.drawn + bad_clips + ahead
        in_flight.extend(start(draw) for draw in range(first, first + min(room, still_needed - ahead)))
        try:
            groups.append(in_flight.popleft().result())
        except ClipError as error:
            if config.data.on_bad_clip == "stop":
                raise
            bad_clips += 1
            log.warning("left out a row: %s", error)
            if bad_clips > 100 * wanted:
                raise RuntimeError(f"{bad_clips} rows in a row had no usable clip; last: {error}") from error
    _check_lag(groups, state.version, max_lag)
    return tuple(groups), bad_clips


def _check_lag(groups: list[ScoredGroup], version: int, max_lag: int) -> None:
    for scored in groups:
        for rollout in scored.group.rollouts:
            lag = lag_updates(version=version, weight_version=rollout.weight_version)
            if not 0 <= lag <= max_lag:
                raise RuntimeError(
                    f"{rollout.rollout_id} is {lag} updates old at version {version}; pipeline.max_lag={max_lag}."
                )
