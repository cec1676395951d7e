"""The indices of verdicts: from 1 or completely from 0, in whatever type; anything else is asked for again."""

from __future__ import annotations

from typing import Any

import pytest

from reward_servers.judging.calls import Unusable, entailment_call

EVENTS = ["A", "B", "C"]


def read(*indices: Any) -> list[bool | None]:
    verdicts = [
        {"index": index, "reason": "", "verdict": "entailed" if at == 0 else "not_entailed"}
        for at, index in enumerate(indices)
    ]
    answer = entailment_call(EVENTS[: max(1, min(3, len(indices)))], ["A"]).read({"verdicts": verdicts})
    return [verdict["entailed"] for verdict in answer]


@pytest.mark.parametrize(
    "indices",
    [
        (1, 2, 3),
        (0, 1, 2),
        ("1", "2", "3"),
        ("0", "1", "2"),
        (1.0, 2.0, 3.0),
        (1, "2", 3.0),
        (" 1", "#2", "3."),
        ("1.0", 2, 3),
    ],
)
def test_a_complete_count_is_read_in_any_type(indices: tuple[Any, ...]) -> None:
    assert read(*indices) == [True, False, False]


@pytest.mark.parametrize("index", [0, 1, "0", "1", 1.0])
def test_of_one_event_there_is_one_verdict(index: Any) -> None:
    assert read(index) == [True]


@pytest.mark.parametrize(
    ("indices", "named"),
    [
        ((1, 1, 2), "1, 1, 2"),
        ((0, 0, 1), "0, 0, 1"),
        ((1, 2, 4), "1, 2, 4"),
        ((2, 3, 4), "2, 3, 4"),
        ((3, 2, 1), "3, 2, 1"),
        ((0, 1, 3), "0, 1, 3"),
        ((-1, 0, 1), "-1, 0, 1"),
        ((1.5, 2, 3), "none, 2, 3"),
        ((True, 2, 3), "none, 2, 3"),
        (("one", 2, 3), "none, 2, 3"),
        ((None, 2, 3), "none, 2, 3"),
        ((float("inf"), 2, 3), "none, 2, 3"),
        ((10**400, 2, 3), "none, 2, 3"),
        (("9" * 5000, 2, 3), "none, 2, 3"),
    ],
)
def test_an_incomplete_or_ambiguous_count_is_not_guessed_at(indices: tuple[Any, ...], named: str) -> None:
    with pytest.raises(Unusable, match=f"the indices {named} instead of 1 to 3 in order"):
        read(*indices)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_missing_and_surplus_verdicts_are_refused(count: int) -> None:
    verdicts = [{"index": index, "reason": "", "verdict": "entailed"} for index in range(count)]
    with pytest.raises(Unusable, match=f"it has {count} verdicts, 3 are needed"):
        entailment_call(EVENTS, ["A"]).read({"verdicts": verdicts})


@pytest.mark.parametrize(
    ("written", "verdict"),
    [
        *(("Not entailed", False), ("NOT-ENTAILED", False), (" entailed ", True)),
        *(("not_entailed.", False), ("**Entailed**", True), ("'entailed'", True), ("`cannot tell`", None)),
    ],
)
def test_a_verdict_may_be_spelled_otherwise(written: str, verdict: bool) -> None:
    answer = entailment_call(["A"], ["A"]).read({"verdicts": [{"index": 1, "reason": "", "verdict": written}]})
    assert answer[0]["entailed"] is verdict


@pytest.mark.parametrize("reason", [{}, {"reason": None}, {"reason": 7}, {"reason": ["x"]}])
def test_a_verdict_that_was_given_without_a_reason_is_asked_for_again(reason: dict[str, Any]) -> None:
    with pytest.raises(Unusable, match="verdict 1 is not {index, reason, verdict}"):
        entailment_call(["A"], ["A"]).read({"verdicts": [{"index": 1, "verdict": "not_entailed", **reason}]})


@pytest.mark.parametrize("verdict", [True, False, None, "yes", "no", "", "entailed or not_entailed", 1, ["entailed"]])
def test_another_word_is_no_verdict(verdict: object) -> None:
    with pytest.raises(Unusable, match="verdict 1 is not"):
        entailment_call(["A"], ["A"]).read({"verdicts": [{"index": 1, "reason": "", "verdict": verdict}]})
