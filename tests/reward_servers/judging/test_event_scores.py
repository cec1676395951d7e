"""From verdicts to scores: by hand, and against all ways to decide what is undecided."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_servers.judging.event_scores import EventVerdict, event_scores, tiered

ALL = frozenset({"recall", "precision", "f1"})
verdict_lists = st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=5)
tier_lists = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=3).map(tuple)


def verdicts(*entailed: bool | None) -> list[EventVerdict]:
    return [EventVerdict(event=f"e{index}", entailed=value, reason="") for index, value in enumerate(entailed)]


@pytest.mark.parametrize(
    ("recall", "reward"),
    [(0.0, 0.0), (0.29, 0.0), (0.3, 0.25), (0.59, 0.25), (0.6, 0.5), (0.9, 1.0), (1.0, 1.0)],
)
def test_the_highest_tier_that_is_reached_counts(recall: float, reward: float) -> None:
    assert tiered(recall, ((0.9, 1.0), (0.3, 0.25), (0.6, 0.5))) == reward


def test_without_tiers_the_recall_is_the_reward() -> None:
    assert tiered(0.37, ()) == 0.37


def test_scores_by_hand() -> None:
    found = event_scores(verdicts(True, True, False, False), verdicts(True, False, False), ALL, ())
    # recall 1/2, precision 1/3: F1 = 2 * (1/6) / (5/6)
    assert found == {"recall": 0.5, "precision": pytest.approx(1 / 3), "f1": pytest.approx(0.4)}
    assert event_scores(verdicts(False), [], ALL, ()) == {"recall": 0.0, "precision": 0.0, "f1": 0.0}
    assert event_scores(verdicts(True), None, {"recall"}, ()) == {"recall": 1.0}


@given(verdict_lists, verdict_lists, tier_lists, st.sets(st.sampled_from(sorted(ALL)), min_size=1))
def test_a_score_stands_only_if_no_undecided_event_could_change_it(
    recall: list[bool | None], precision: list[bool | None], tiers: tuple[tuple[float, float], ...], want: set[str]
) -> None:
    found = event_scores(verdicts(*recall), verdicts(*precision), want, tiers)
    possible = []
    for guess in product([True, False], repeat=[*recall, *precision].count(None)):
        guesses = iter(guess)
        decided = [next(guesses) if value is None else value for value in [*recall, *precision]]
        there, back = decided[: len(recall)], decided[len(recall) :]
        possible.append(event_scores(verdicts(*there), verdicts(*back), want, tiers))
    if found is not None:
        assert set(found) == want
    if found is None or not tiers:
        assert (found is None) == any(scores != possible[0] for scores in possible)
    elif all(later[1] >= earlier[1] for earlier, later in zip(sorted(tiers), sorted(tiers)[1:], strict=False)):
        assert all(scores == found for scores in possible)


def test_a_verdict_survives_json_and_nothing_else_is_one() -> None:
    for verdict in verdicts(True, False, None):
        assert EventVerdict.from_json(verdict.as_json()) == verdict
    for wrong in (None, {}, {"event": "a", "entailed": 1, "reason": ""}, {"event": "a", "entailed": True}):
        with pytest.raises(ValueError, match="write event, entailed"):
            EventVerdict.from_json(wrong)
