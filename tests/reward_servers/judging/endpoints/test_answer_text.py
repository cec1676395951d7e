"""Answers that are long and hostile are read in bounded steps; `test_replies` has those of honest models."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import pytest

from reward_servers.judging.endpoints.answer_text import NotJson, json_object
from tests.reward_servers.scorers.test_growth import grows_too_fast, text_of


def refused(text: str) -> None:
    with pytest.raises(NotJson):
        json_object(text)


@pytest.mark.parametrize("size", [10_000, 20_000, 40_000])
def test_a_hostile_answer_is_read_in_bounded_steps(size: int) -> None:
    for start in ('{"a":', '{"', "{", '{"a":[', "<think>", "```json"):
        refused(start * size)


@pytest.mark.parametrize("unit", ['{"a" ', "{'", '{"a":1,', "</think>", "</", "{}", "- {'a':-", "\\", '"'])
def test_reading_an_answer_is_far_from_quadratic(unit: str) -> None:
    def work(text: str) -> None:
        with suppress(NotJson):
            json_object(text)

    assert not grows_too_fast(work, partial(text_of, unit))


def test_lists_that_many_objects_open_are_not_read_as_often() -> None:
    """Each of 256 objects opens one list without an end, which would be read 256 times."""
    refused('{"a":[' * 256 + "1," * 400_000)


def test_a_dictionary_of_other_than_json_is_refused() -> None:
    for text in ("{'a': {1, 2}}", "{'a': b'x'}", "{'a': 1e999}", "{'a': f'{1}'}", "{" + "-" * 60_000 + "1: 2}"):
        refused(text)
