"""The groups of the next step: started ahead as far as staleness allows, taken in the order of their draws."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, Protocol

from rlsys.config.run import RunConfig
from rlsys.data.video.errors import ClipError
from rlsys.errors import RowUnusable
from rlsys.loop.objective import Objective
from rlsys.loop.staleness import groups_under_way
from rlsys.loop.state import RunState
from rlsys.types import ScoredGroup

log = logging.getLogger(__name__)

POLL_S = 1.0
"""Between two looks at whether waiting for a group is in vain."""
MAX_LEFT_OUT = 100
"""Unusable rows of a step, in steps' sizes, at which it is not the rows any more."""


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A draw that nothing came of."""

    draw: int
    reason: Literal["bad_clip", "quarantined"]
    detail: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Collected:
    """groups: to train on, in the order of their draws.  replaced: without spread, others were drawn in their place.
    num_stale: groups that were too old to be trained on, and were sampled again.
    """

    draws: tuple[int, ...]
    groups: tuple[ScoredGroup, ...]
    replaced_draws: tuple[int, ...]
    replaced: tuple[ScoredGroup, ...]
    left_out: tuple[Skipped, ...]
    num_stale: int

    @property
    def num_drawn(self) -> int:
        """Draws that are used up."""
        return len(self.groups) + len(self.replaced) + len(self.left_out)


class GroupSource(Protocol):
    """Where the groups of a run come from."""

    def start(self, draw: int) -> Future[ScoredGroup]:
        """Begin the run's draw-th prompt: decode, build the prompt, generate, score."""

    def prefetch(self, draw: int) -> None:
        """Decode the clips of a prompt that will be started soon. Returns at once; errors come up at its start."""

    def check(self) -> None:
        """Raise LearnerLost when groups wait for weights that went with it. Called while a group is waited for."""


def awaited(future: Future[ScoredGroup], check: Callable[[], None]) -> ScoredGroup:
    """The group; waits for it. Raises what went wrong with it, or what `check`, asked meanwhile, raises."""
    while True:
        try:
            return future.result(timeout=POLL_S)
        except TimeoutError:
            if future.done():  # an error of its own, or it ended just now
                return future.result()
            check()


class InFlightGroups:
    """Groups by draw, from their start until the step that used them is over.

    They stay that long because a step whose update fails is done again, with the same groups.
    """

    def __init__(self, source: GroupSource) -> None:
        self._source = source
        self._groups: dict[int, Future[ScoredGroup]] = {}
        self._prefetched = -1

    def admit(self, draws: range) -> None:
        """Start those of the draws that have not been started."""
        for draw in draws:
            if draw not in self._groups:
                self._groups[draw] = self._source.start(draw)

    def prefetch(self, draws: range) -> None:
        """Decode ahead for those of the draws that it was not done for."""
        for draw in draws:
            if draw > self._prefetched and draw not in self._groups:
                self._source.prefetch(draw)
                self._prefetched = draw

    def result(self, draw: int) -> ScoredGroup:
        """See `awaited`."""
        return awaited(self._groups[draw], self._source.check)

    def start_again(self, draw: int) -> None:
        """Sample the draw's group anew."""
        self._groups[draw].cancel()
        self._groups[draw] = self._source.start(draw)

    def forget_before(self, draw: int) -> None:
        """The steps that used the draws before this one are over."""
        for done in [number for number in self._groups if number < draw]:
            del self._groups[done]


def collect(flight: InFlightGroups, objective: Objective, config: RunConfig, state: RunState) -> Collected:
    """The groups of the next step. `flight` may hold groups of later ones, started now or before.

    A group that is left out, for its row or for want of spread, makes room for one more at the end of the
    line. Those behind it move up, so none becomes older than admission allowed for.
    """
    wanted, max_lag = config.train.prompts_per_step, objective.max_lag
    still_needed = (config.train.num_steps - state.step) * wanted
    taken: dict[int, ScoredGroup] = {}
    replaced: dict[int, ScoredGroup] = {}
    left_out: list[Skipped] = []
    again: set[int] = set()
    while len(taken) < wanted:
        draw = state.drawn + len(taken) + len(replaced) + len(left_out)
        room = groups_under_way(collected=len(taken), prompts_per_step=wanted, max_lag=max_lag)
        end = draw + min(room, still_needed - len(taken))
        flight.admit(range(draw, end))
        flight.prefetch(range(end, min(end + config.data.decode_ahead, draw + still_needed - len(taken))))
        try:
            scored = flight.result(draw)
        except RowUnusable as error:
            left_out.append(Skipped(draw=draw, reason=why_left_out(error, config), detail=str(error)))
            if len(left_out) > MAX_LEFT_OUT * wanted:
                raise RuntimeError(f"{len(left_out)} rows of one step were unusable; last: {error}") from error
            continue
        if problem := objective.staleness_problem(scored, state.step):
            if draw in again:
                raise RuntimeError(problem)
            log.warning("sampled again: %s", problem)
            again.add(draw)
            flight.start_again(draw)
        elif len(replaced) < config.algorithm.max_extra_groups and not objective.teaches(scored):
            # dynamic sampling, DAPO, arXiv:2503.14476, section 3.2, with a bound on the groups sampled for nothing
            replaced[draw] = scored
        else:
            taken[draw] = scored
    return Collected(
        draws=tuple(taken),
        groups=tuple(taken.values()),
        replaced_draws=tuple(replaced),
        replaced=tuple(replaced.values()),
        left_out=tuple(left_out),
        num_stale=len(again),
    )


def why_left_out(error: RowUnusable, config: RunConfig) -> Literal["bad_clip", "quarantined"]:
    """Says that a row is left out, and returns why. Raises `error` where `data.on_bad_clip` says so."""
    is_clip = isinstance(error, ClipError)
    if is_clip and config.data.on_bad_clip == "stop":
        raise error
    log.warning("left out a row: %s", error)
    return "bad_clip" if is_clip else "quarantined"
