"""Collection of the groups of the next step, started ahead as far as staleness allows and taken in prompt order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, Protocol

from rlsys.config.run import RunConfig
from rlsys.data.video.errors import ClipError
from rlsys.errors import PassRateOutside, RowUnusable, TruthOutside, UserError
from rlsys.loop.objective import Objective
from rlsys.loop.staleness import groups_under_way
from rlsys.loop.state import RunState
from rlsys.types import ScoredGroup

log = logging.getLogger(__name__)

POLL_S = 1.0
"""Seconds between two checks whether the awaited group can still arrive."""
MAX_SKIPPED_PER_GROUP = 100
"""Unusable rows per group of a step above which the run ends, because then the cause is not in single rows."""


SkipReason = Literal["bad_clip", "truth_outside", "quarantined", "pass_rate"]


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A prompt that was consumed without yielding a group."""

    prompt_index: int
    reason: SkipReason
    detail: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Collected:
    """The groups of one step, and the other prompts that it consumed.

    groups: to train on, in prompt order.  replaced: groups without reward spread, replaced by later groups.
    skipped: prompts without a group.  num_stale: groups that had become too old and were sampled again.
    """

    prompt_indices: tuple[int, ...]
    groups: tuple[ScoredGroup, ...]
    replaced_indices: tuple[int, ...]
    replaced: tuple[ScoredGroup, ...]
    skipped: tuple[Skipped, ...]
    num_stale: int

    @property
    def num_consumed(self) -> int:
        """Number of prompts that the step consumed."""
        return len(self.groups) + len(self.replaced) + len(self.skipped)


class GroupSource(Protocol):
    """Supplies the groups of a run by prompt index."""

    def start(self, prompt_index: int) -> Future[ScoredGroup]:
        """Start the group of a prompt index: decode, build the prompt, generate, score."""

    def prefetch(self, prompt_index: int) -> None:
        """Decode the clips of a prompt that will start soon. Returns at once; errors surface when it starts."""

    def check(self) -> None:
        """Raise LearnerLost if groups wait for weights that were lost with the learner. Called while waiting."""


def awaited(future: Future[ScoredGroup], check: Callable[[], None]) -> ScoredGroup:
    """Wait for a group and return it. Raises the group's own error, or what `check`, polled meanwhile, raises."""
    while True:
        try:
            return future.result(timeout=POLL_S)
        except TimeoutError:
            if future.done():  # the TimeoutError is the group's own, or the group ended just now
                return future.result()
            check()


class InFlightGroups:
    """The groups in flight by prompt index, from their start until the step that uses them is done.

    They are kept that long because a step whose update fails is repeated with the same groups.
    """

    def __init__(self, source: GroupSource) -> None:
        self._source = source
        self._groups: dict[int, Future[ScoredGroup]] = {}
        self._prefetched = -1

    def admit(self, prompt_indices: range) -> None:
        """Start the groups of these prompts that have not been started."""
        for prompt_index in prompt_indices:
            if prompt_index not in self._groups:
                self._groups[prompt_index] = self._source.start(prompt_index)

    def prefetch(self, prompt_indices: range) -> None:
        """Decode ahead for the prompts that have been neither started nor decoded."""
        for prompt_index in prompt_indices:
            if prompt_index > self._prefetched and prompt_index not in self._groups:
                self._source.prefetch(prompt_index)
                self._prefetched = prompt_index

    def result(self, prompt_index: int) -> ScoredGroup:
        """Wait for the group of a prompt and return it. Raises as `awaited` does."""
        return awaited(self._groups[prompt_index], self._source.check)

    def start_again(self, prompt_index: int) -> None:
        """Discard the group of a prompt and sample it again."""
        self._groups[prompt_index].cancel()
        self._groups[prompt_index] = self._source.start(prompt_index)

    def forget_before(self, prompt_index: int) -> None:
        """Release the groups of all prompts before this index; their steps are done."""
        for done in [number for number in self._groups if number < prompt_index]:
            del self._groups[done]


def collect(in_flight: InFlightGroups, objective: Objective, config: RunConfig, state: RunState) -> Collected:
    """Wait for the groups of the next step and return them; `in_flight` may also hold groups of later steps.

    A prompt that is skipped, or a group replaced for lack of reward spread, admits one more group at the end of the
    queue. The groups behind it move up, so none becomes older than admission allowed for.
    """
    wanted, max_lag = config.train.prompts_per_step, objective.max_lag
    still_needed = (config.train.num_steps - state.step) * wanted
    taken: dict[int, ScoredGroup] = {}
    replaced: dict[int, ScoredGroup] = {}
    skipped: list[Skipped] = []
    again: set[int] = set()
    while len(taken) < wanted:
        prompt_index = state.prompts_consumed + len(taken) + len(replaced) + len(skipped)
        room = groups_under_way(collected=len(taken), prompts_per_step=wanted, max_lag=max_lag)
        end = prompt_index + min(room, still_needed - len(taken))
        in_flight.admit(range(prompt_index, end))
        in_flight.prefetch(range(end, min(end + config.data.decode_ahead, prompt_index + still_needed - len(taken))))
        try:
            scored = in_flight.result(prompt_index)
        except RowUnusable as error:
            skipped.append(Skipped(prompt_index=prompt_index, reason=skip_reason(error, config), detail=str(error)))
            if len(skipped) > MAX_SKIPPED_PER_GROUP * wanted:
                raise _too_many_skipped(skipped, error) from error
            continue
        if problem := objective.staleness_problem(scored, state.step):
            if prompt_index in again:
                raise RuntimeError(problem)
            log.warning("sampled again: %s", problem)
            again.add(prompt_index)
            in_flight.start_again(prompt_index)
        elif len(replaced) < config.algorithm.max_extra_groups and not objective.teaches(scored):
            # dynamic sampling, DAPO, arXiv:2503.14476, section 3.2, with a bound on the groups that are discarded
            replaced[prompt_index] = scored
        else:
            taken[prompt_index] = scored
    return Collected(
        prompt_indices=tuple(taken),
        groups=tuple(taken.values()),
        replaced_indices=tuple(replaced),
        replaced=tuple(replaced.values()),
        skipped=tuple(skipped),
        num_stale=len(again),
    )


def _too_many_skipped(skipped: Sequence[Skipped], error: RowUnusable) -> Exception:
    filtered = sum(one.reason == "pass_rate" for one in skipped)
    if 2 * filtered > len(skipped):
        return UserError(
            f"{filtered} rows in a row have a pass rate outside data.pass_rate, so hardly any is left to train on; "
            f"lower data.pass_rate.min or raise data.pass_rate.max and continue with --resume. The last one: {error}"
        )
    return RuntimeError(
        f"{len(skipped)} rows of one step were unusable; fix the data or the servers. Last error: {error}"
    )


def skip_reason(error: RowUnusable, config: RunConfig) -> SkipReason:
    """Log that a row is skipped and return why. Raises `error` for a bad clip if data.on_bad_clip is "stop"."""
    is_clip = isinstance(error, ClipError)
    if is_clip and config.data.on_bad_clip == "stop":
        raise error
    if isinstance(error, PassRateOutside):
        return "pass_rate"
    log.warning("skipped a row: %s", error)
    if isinstance(error, TruthOutside):
        return "truth_outside"
    return "bad_clip" if is_clip else "quarantined"
