"""The order in which the rows of all sources are sampled, so that resuming needs only a number.

With a curriculum it also needs the pass rates of the steps that were done when an epoch began, which the ledger has.
Without weights and stages each prompt is a row of the shuffled union. Otherwise sources take turns: `interleave`
decides which source a prompt is of, and each source has an order of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from math import lcm
from typing import Protocol

import numpy as np

from rlsys.config.data import Source, is_used
from rlsys.config.run import ConfigError
from rlsys.data.sampler import Rank, Sampler
from rlsys.types import PromptItem


class Rates(Protocol):
    """The pass rates of rows by which a curriculum orders them; see `rlsys.runs.records.pass_rates`."""

    def newest_known(self, prompt_index: int) -> object | None:
        """Return the newest step that was done when a prompt could first be admitted; None if there was none."""

    def known_at(self, prompt_index: int) -> Mapping[str, float]:
        """Return the pass rates over these steps, by prompt id."""


class PromptOrder(Protocol):
    """Maps a prompt index to a row; a pure function of the seed and the index, and of the rates of a curriculum."""

    def index_at(self, prompt_index: int) -> int:
        """Return the index of the row at a prompt index, among all rows."""

    def prompts_by_source(self, num_prompts: int) -> list[int]:
        """Return how many of the first `num_prompts` prompts are of each source."""


def prompt_order(
    items: Sequence[PromptItem],
    sources: Sequence[Source],
    *,
    seed: int,
    prompts_per_step: int,
    rates: Rates | None = None,
) -> PromptOrder:
    """Return the order of a run's rows.

    items: of all sources, in any order; `PromptItem.source` names the source of each.  prompts_per_step: of the run, by
    which `from_step` and `until_step` of sources are counted in prompts.  rates: by which the rows of an epoch are
    ordered, highest first; None leaves them shuffled. Raises ConfigError for a source without a row.
    """
    numbers = {source.name: number for number, source in enumerate(sources)}
    if len(sources) < 2:
        return _Union([0] * len(items), 1, seed, _easy_first(items, rates))
    source_of = [numbers[item.source] for item in items]
    missing = [source.name for number, source in enumerate(sources) if number not in set(source_of)]
    if missing:
        raise ConfigError(f"source {missing[0]}: none of its rows can be sampled; remove it, or check its file.")
    has_weights = any(source.weight is not None for source in sources)
    if not has_weights and all(source.from_step == 0 and source.until_step is None for source in sources):
        return _Union(source_of, len(sources), seed, _easy_first(items, rates))
    return _TakingTurns(source_of, sources, seed, prompts_per_step, _easy_first(items, rates))


class _EasyFirst:
    """Orders shuffled rows by their pass rates so far, highest first; rows of one rate stay shuffled.

    Rows without a pass rate come last. An epoch that has not begun is ordered anew whenever more is known.
    """

    def __init__(self, ids: Sequence[str], rates: Rates) -> None:
        self._ids, self._rates = ids, rates
        self._orders: dict[int, tuple[object | None, int, np.ndarray]] = {}  # by number of the list of rows

    def order(self, stream: int, rows: np.ndarray, shuffled: np.ndarray, start: int) -> np.ndarray:
        """Return `shuffled`, which are indices of `rows`, in order. start: prompt index at which their epoch begins."""
        newest = self._rates.newest_known(start)
        known = self._orders.get(stream)
        if known is None or known[0] is not newest or known[1] != start:
            rates = self._rates.known_at(start)
            keys = [-rates.get(self._ids[row], -1.0) for row in rows[shuffled].tolist()]
            known = self._orders[stream] = (newest, start, shuffled[np.argsort(keys, kind="stable")])
        return known[2]


def _easy_first(items: Sequence[PromptItem], rates: Rates | None) -> _EasyFirst | None:
    return None if rates is None else _EasyFirst([item.prompt_id for item in items], rates)


class _Union:
    """Each row of all sources once an epoch, in one shuffled order. source_of: number of each row's source."""

    def __init__(
        self, source_of: Sequence[int], num_sources: int, seed: int, curriculum: _EasyFirst | None = None
    ) -> None:
        self._source_of, self._num_sources = np.asarray(source_of, np.int64), num_sources
        rows = np.arange(len(source_of))

        def rank(epoch: int, shuffled: np.ndarray) -> np.ndarray:
            return curriculum.order(0, rows, shuffled, epoch * rows.size) if curriculum else shuffled

        self._sampler = Sampler(rows.size, seed, rank=rank)

    def index_at(self, prompt_index: int) -> int:
        return self._sampler.index_at(prompt_index)

    def prompts_by_source(self, num_prompts: int) -> list[int]:
        epochs, rest = divmod(num_prompts, self._source_of.size)
        begun = self._source_of[self._sampler.order_of(epochs)[:rest]]
        counts = epochs * np.bincount(self._source_of, minlength=self._num_sources)
        return (counts + np.bincount(begun, minlength=self._num_sources)).tolist()


class _TakingTurns:
    """Sources in exact shares. What a number leads to is computed once, from the first prompt on."""

    def __init__(
        self,
        source_of: Sequence[int],
        sources: Sequence[Source],
        seed: int,
        prompts_per_step: int,
        curriculum: _EasyFirst | None = None,
    ) -> None:
        self._curriculum = curriculum
        self._rows = [np.flatnonzero(np.asarray(source_of) == number) for number in range(len(sources))]
        self._samplers = [
            Sampler(rows.size, seed, stream, self._rank_of(stream)) for stream, rows in enumerate(self._rows)
        ]
        self._epoch_starts: list[list[int]] = [[] for _ in sources]  # prompt index of each source's epochs
        self._turns = self._all_turns(sources, prompts_per_step)
        self._source_at: list[int] = []
        self._place_at: list[int] = []  # of the prompt in its source's own order
        self._num_taken = [0] * len(sources)

    def _all_turns(self, sources: Sequence[Source], prompts_per_step: int) -> Iterator[int]:
        """Yield the source of each prompt. The shares begin anew whenever a source comes or goes."""
        changes = {step for one in sources for step in (one.from_step, one.until_step) if step}
        starts = [0, *sorted(changes)]
        for start, end in zip(starts, [*starts[1:], None], strict=True):
            used = [number for number, source in enumerate(sources) if is_used(source, start)]
            weights = [sources[number].weight or self._rows[number].size for number in used]
            turns = interleave(weights)
            num_prompts = None if end is None else (end - start) * prompts_per_step
            while num_prompts is None or num_prompts > 0:
                yield used[next(turns)]
                num_prompts = None if num_prompts is None else num_prompts - 1

    def _rank_of(self, stream: int) -> Rank:
        def rank(epoch: int, shuffled: np.ndarray) -> np.ndarray:
            if self._curriculum is None:
                return shuffled
            return self._curriculum.order(stream, self._rows[stream], shuffled, self._epoch_starts[stream][epoch])

        return rank

    def _extend(self, num_prompts: int) -> None:
        while len(self._source_at) < num_prompts:
            source = next(self._turns)
            if self._num_taken[source] % self._rows[source].size == 0:
                self._epoch_starts[source].append(len(self._source_at))
            self._source_at.append(source)
            self._place_at.append(self._num_taken[source])
            self._num_taken[source] += 1

    def index_at(self, prompt_index: int) -> int:
        if prompt_index < 0:
            raise ValueError(f"prompt_index={prompt_index}: prompt indices are counted from 0.")
        self._extend(prompt_index + 1)
        source = self._source_at[prompt_index]
        return int(self._rows[source][self._samplers[source].index_at(self._place_at[prompt_index])])

    def prompts_by_source(self, num_prompts: int) -> list[int]:
        self._extend(num_prompts)
        return np.bincount(self._source_at[:num_prompts], minlength=len(self._rows)).tolist()


def interleave(weights: Sequence[float]) -> Iterator[int]:
    """Yield indices of `weights` without end, each in its exact share.

    Of k weights, the first n indices contain each one n x share times, but for at most 1 - 1 / (2k - 2); so any window
    is off by less than 2, and of two weights by at most 1. No order does better than the first bound for all weights.
    Source: R. Tijdeman, The chairman assignment problem, Discrete Mathematics 32 (1980); of the indices that are
    due, the one with the earliest deadline comes first. All arithmetic is in integers.
    """
    fractions = [Fraction(str(weight)) for weight in weights]
    scale = lcm(*(fraction.denominator for fraction in fractions))
    parts = [int(fraction * scale) for fraction in fractions]
    total, slack = sum(parts), max(2, 2 * len(parts) - 2)
    taken = [0] * len(parts)

    def deadline(index: int) -> int:
        return (taken[index] * slack + slack - 1) * total // (slack * parts[index])

    deadlines = [deadline(index) for index in range(len(parts))]
    number = 0
    while True:
        number += 1
        due = (i for i, part in enumerate(parts) if slack * (number * part - taken[i] * total) >= total)
        chosen = min(due, key=deadlines.__getitem__)
        yield chosen
        taken[chosen] += 1
        deadlines[chosen] = deadline(chosen)
