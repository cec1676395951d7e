"""Sources take turns in exact shares, each through all its rows before any comes again."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlsys.config.data import Source
from rlsys.config.run import ConfigError, DataConfig
from rlsys.data.mixture import PromptOrder, interleave, prompt_order
from rlsys.data.sampler import Sampler
from rlsys.types import PromptItem
from tests.support.rounding import FLOAT64


def source(name: str, **settings: Any) -> Source:
    return Source(name=name, annotations=Path(name), videos=Path("videos"), data=DataConfig(), **settings)


def rows_of(**counts: int) -> list[PromptItem]:
    return [
        PromptItem(
            prompt_id=f"{name}:{row}", task="numeric_qa", question="?", options=(), media=(), truth=1.0, source=name
        )
        for name, count in counts.items()
        for row in range(count)
    ]


def order_of(items: list[PromptItem], *sources: Source, seed: int = 0, prompts_per_step: int = 4) -> PromptOrder:
    return prompt_order(items, sources, seed=seed, prompts_per_step=prompts_per_step)


def drawn(order: PromptOrder, items: list[PromptItem], num_prompts: int) -> list[PromptItem]:
    return [items[order.index_at(prompt_index)] for prompt_index in range(num_prompts)]


@given(weights=st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_no_source_is_ever_a_whole_prompt_ahead_or_behind(weights: list[int]) -> None:
    shares = np.array(weights) / sum(weights)
    taken = np.zeros(len(weights))
    bound = 1 - 1 / max(2, 2 * len(weights) - 2)
    for number, index in enumerate(islice(interleave(weights), 400), start=1):
        taken[index] += 1
        assert np.abs(taken - number * shares).max() <= bound + FLOAT64


@given(weights=st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)), length=st.integers(1, 60))
def test_every_window_of_two_sources_is_within_one_prompt_of_its_share(
    weights: tuple[float, float], length: int
) -> None:
    turns = np.array(list(islice(interleave(weights), 300)))
    counts = np.convolve(turns == 0, np.ones(length), mode="valid")
    assert np.abs(counts - length * weights[0] / sum(weights)).max() <= 1 + FLOAT64


def test_the_turns_of_three_to_two_to_one() -> None:
    turns = list(islice(interleave([3, 2, 1]), 12))
    assert [turns.count(index) for index in range(3)] == [6, 4, 2]
    assert turns[:6] == turns[6:]
    assert turns[:6] == [0, 1, 0, 2, 0, 1]


@given(
    counts=st.lists(st.integers(1, 30), min_size=2, max_size=4),
    weights=st.lists(st.integers(1, 9), min_size=4, max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_row_comes_twice_in_an_epoch_of_its_source(counts: list[int], weights: list[int], seed: int) -> None:
    names = [f"s{number}" for number in range(len(counts))]
    items = rows_of(**dict(zip(names, counts, strict=True)))
    sources = [source(name, weight=weight) for name, weight in zip(names, weights, strict=False)]
    found = drawn(order_of(items, *sources, seed=seed), items, 200)
    for name, count in zip(names, counts, strict=True):
        own = [item.prompt_id for item in found if item.source == name]
        for start in range(0, len(own) - count + 1, count):
            assert len(set(own[start : start + count])) == count
    assert order_of(items, *sources, seed=seed).prompts_by_source(200) == [
        sum(item.source == name for item in found) for name in names
    ]


def test_a_source_has_another_order_in_every_epoch_and_with_every_seed() -> None:
    items = rows_of(a=40, b=40)
    sources = source("a", weight=1), source("b", weight=1)
    own = [item.prompt_id for item in drawn(order_of(items, *sources), items, 160) if item.source == "a"]
    other = [item.prompt_id for item in drawn(order_of(items, *sources, seed=1), items, 80) if item.source == "a"]
    assert own[:40] != own[40:] and own[:40] != other
    assert sorted(own[:40]) == sorted(own[40:]) == sorted(other)
    of_b = [item.prompt_id.replace("b:", "a:") for item in drawn(order_of(items, *sources), items, 80)[1::2]]
    assert of_b != own[:40], "two sources of one size are shuffled independently"


def test_a_place_depends_on_the_number_alone() -> None:
    items, sources = rows_of(a=7, b=5, c=3), (source("a", weight=5), source("b", weight=2.5), source("c", weight=0.1))
    forwards = [order_of(items, *sources).index_at(prompt_index) for prompt_index in range(90)]
    one = order_of(items, *sources)
    assert [one.index_at(prompt_index) for prompt_index in reversed(range(90))] == forwards[::-1]
    with pytest.raises(ValueError, match="prompt_index=-1"):
        one.index_at(-1)


@pytest.mark.parametrize("sources", [(), (source("a"),), (source("a", weight=2.0),)])
def test_the_order_of_a_single_source_is_that_of_the_sampler(sources: tuple[Source, ...]) -> None:
    items, expected = rows_of(a=11), Sampler(11, 5)
    order = order_of(items, *sources, seed=5)
    assert [order.index_at(n) for n in range(40)] == [expected.index_at(n) for n in range(40)]


def test_without_weights_the_union_is_shuffled_as_one_file_would_be() -> None:
    items, expected = rows_of(a=6, b=3), Sampler(9, 5)
    order = order_of(items, source("a"), source("b"), seed=5)
    found = [order.index_at(n) for n in range(24)]
    assert found == [expected.index_at(n) for n in range(24)]
    assert [order.prompts_by_source(n) for n in (0, 9, 18)] == [[0, 0], [6, 3], [12, 6]]
    for n in range(24):
        counts = Counter(items[index].source for index in found[:n])
        assert order.prompts_by_source(n) == [counts["a"], counts["b"]]


def test_stages_come_and_go_with_their_steps() -> None:
    items = rows_of(easy=10, hard=20, late=4)
    sources = source("easy", until_step=3), source("hard", from_step=2), source("late", from_step=4)
    found = drawn(order_of(items, *sources, prompts_per_step=6), items, 60)
    by_step = [Counter(item.source for item in found[start : start + 6]) for start in range(0, 60, 6)]
    assert by_step[:2] == [{"easy": 6}, {"easy": 6}]
    assert by_step[2] == {"easy": 2, "hard": 4}, "in proportion to their rows"
    assert by_step[3] == {"hard": 6}
    assert all(set(step) <= {"hard", "late"} for step in by_step[4:])
    assert sum((step for step in by_step[4:]), Counter()) == {"hard": 30, "late": 6}
    easy = [item.prompt_id for item in found if item.source == "easy"]
    assert len(set(easy[:10])) == 10, "an epoch continues over stages"


class Known:
    """Pass rates that are known from a prompt index on: of row i of n, i / n."""

    def __init__(self, items: list[PromptItem], since: int, without: tuple[str, ...] = ()) -> None:
        self._rates = {item.prompt_id: place / len(items) for place, item in enumerate(items)}
        self._since, self._without = since, without

    def newest_known(self, prompt_index: int) -> object | None:
        return None if prompt_index < self._since else self

    def known_at(self, prompt_index: int) -> dict[str, float]:
        rates = self._rates if prompt_index >= self._since else {}
        return {name: rate for name, rate in rates.items() if name not in self._without}


def test_a_curriculum_takes_easy_rows_first_once_pass_rates_are_known() -> None:
    items = rows_of(a=12)
    known = Known(items, 12, without=("a:7",))
    order = prompt_order(items, (source("a"),), seed=3, prompts_per_step=4, rates=known)
    shuffled = drawn(order_of(items, source("a"), seed=3), items, 12)
    found = drawn(order, items, 36)
    assert found[:12] == shuffled, "nothing is known of the first epoch's rows"
    expected = [*(f"a:{row}" for row in range(11, -1, -1) if row != 7), "a:7"]
    assert [item.prompt_id for item in found[12:24]] == [item.prompt_id for item in found[24:]] == expected


def test_rows_of_one_pass_rate_stay_shuffled_and_a_source_has_epochs_of_its_own() -> None:
    items = rows_of(a=6, b=18)
    sources = source("a", weight=1), source("b", weight=1)

    class TwoKinds(Known):
        def known_at(self, prompt_index: int) -> dict[str, float]:
            found = super().known_at(prompt_index)
            return {name: float(int(name.partition(":")[2]) % 2) for name in found}

    order = prompt_order(items, sources, seed=1, prompts_per_step=4, rates=TwoKinds(items, 12))
    plain = drawn(order_of(items, *sources, seed=1), items, 72)
    found = drawn(order, items, 72)
    assert [item.source for item in found] == [item.source for item in plain], "shares are those without a curriculum"
    for name, count in (("a", 6), ("b", 18)):
        own = [item.prompt_id for item in found if item.source == name]
        shuffled = [item.prompt_id for item in plain if item.source == name]
        assert own[:count] == shuffled[:count]
        later, unranked = own[count : 2 * count], shuffled[count : 2 * count]
        assert later == sorted(unranked, key=lambda one: -(int(one.partition(":")[2]) % 2))
        assert len(set(later)) == count
    assert order.prompts_by_source(72) == [36, 36]


def test_a_source_without_rows_is_named() -> None:
    with pytest.raises(ConfigError, match="source b: none of its rows"):
        order_of(rows_of(a=3), source("a", weight=1), source("b", weight=1))
