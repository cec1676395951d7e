from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlsys.data.sampler import Sampler


@given(num_items=st.integers(1, 200), seed=st.integers(0, 2**64), epoch=st.integers(0, 50))
def test_an_epoch_draws_every_item_once(num_items: int, seed: int, epoch: int) -> None:
    sampler = Sampler(num_items, seed)
    prompt_indices = range(epoch * num_items, (epoch + 1) * num_items)
    assert sorted(sampler.index_at(prompt_index) for prompt_index in prompt_indices) == list(range(num_items))
    assert {sampler.epoch_of(prompt_index) for prompt_index in prompt_indices} == {epoch}


def test_a_draw_depends_on_seed_and_number_alone() -> None:
    forwards = [Sampler(10, 3).index_at(prompt_index) for prompt_index in range(35)]
    one = Sampler(10, 3)
    assert [one.index_at(prompt_index) for prompt_index in reversed(range(35))] == forwards[::-1]
    assert [Sampler(10, 4).index_at(prompt_index) for prompt_index in range(35)] != forwards
    assert forwards[:10] != forwards[10:20]


def test_the_order_is_the_same_on_every_machine_and_in_every_release() -> None:
    # a resumed run must go on in the order in which it began
    assert [Sampler(8, 0).index_at(prompt_index) for prompt_index in range(16)] == [
        3,
        2,
        1,
        6,
        0,
        7,
        4,
        5,
        7,
        4,
        5,
        1,
        6,
        2,
        0,
        3,
    ]


def test_nothing_to_draw_from_is_an_error() -> None:
    with pytest.raises(ValueError, match="num_items=0"):
        Sampler(0, 1)
    with pytest.raises(ValueError, match="prompt_index=-1"):
        Sampler(3, 1).index_at(-1)
