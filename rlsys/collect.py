"""The groups of the next step: started ahead as far as staleness allows, taken in the order in which they started."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from rlsys.batch import has_spread
from rlsys.checkpoint import RunState
from rlsys.config import RunConfig
from rlsys.data.errors import ClipError
from rlsys.staleness import how_many_may_start, lag_updates
from rlsys.types import ScoredGroup

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Collected:
    """groups: to train on, in starting order.  replaced: without spread, others were drawn in their place.
    bad_clips: draws whose clip was unusable.
    """

    groups: tuple[ScoredGroup, ...]
    replaced: tuple[ScoredGroup, ...]
    bad_clips: int

    @property
    def num_drawn(self) -> int:
        """Draws that are used up."""
        return len(self.groups) + len(self.replaced) + self.bad_clips


def collect(
    start: Callable[[int], Future[ScoredGroup]],
    in_flight: deque[Future[ScoredGroup]],
    config: RunConfig,
    state: RunState,
) -> Collected:
    """The groups of the next step; `in_flight` holds those that were started for later steps.

    A group that is left out, for its clip or for want of spread, makes room for one more at the end of the
    line. Those behind it move up, so none becomes older than admission allowed for.
    """
    wanted, max_lag = config.train.prompts_per_step, config.pipeline.max_lag
    still_needed = (config.train.num_steps - state.step) * wanted
    groups: list[ScoredGroup] = []
    replaced: list[ScoredGroup] = []
    bad_clips = 0
    while len(groups) < wanted:
        ahead = len(in_flight) + len(groups)
        room = how_many_may_start(
            in_flight=len(in_flight), collected=len(groups), prompts_per_step=wanted, max_lag=max_lag
        )
        first = state.drawn + bad_clips + len(replaced) + ahead
        in_flight.extend(start(draw) for draw in range(first, first + min(room, still_needed - ahead)))
        try:
            scored = in_flight.popleft().result()
        except ClipError as error:
            if config.data.on_bad_clip == "stop":
                raise
            bad_clips += 1
            log.warning("left out a row: %s", error)
            if bad_clips > 100 * wanted:
                raise RuntimeError(f"{bad_clips} rows in a row had no usable clip; last: {error}") from error
            continue
        (replaced if _may_be_replaced(scored, len(replaced), config) else groups).append(scored)
    _check_lag(groups, state.version, max_lag)
    return Collected(groups=tuple(groups), replaced=tuple(replaced), bad_clips=bad_clips)


def _may_be_replaced(scored: ScoredGroup, num_replaced: int, config: RunConfig) -> bool:
    """Source: dynamic sampling, DAPO, arXiv:2503.14476, §3.2, with a bound on the groups drawn for nothing."""
    if num_replaced >= config.algorithm.max_extra_groups:
        return False
    return not has_spread(scored, config.algorithm, config.reward)


def _check_lag(groups: Sequence[ScoredGroup], version: int, max_lag: int) -> None:
    for scored in groups:
        for rollout in scored.group.rollouts:
            lag = lag_updates(version=version, weight_version=rollout.weight_version)
            if not 0 <= lag <= max_lag:
                raise RuntimeError(
                    f"{rollout.rollout_id} is {lag} updates old at version {version}; pipeline.max_lag={max_lag}."
                )
