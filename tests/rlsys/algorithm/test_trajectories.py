"""Trajectories of several rounds: whose score counts, what a clue is worth, and what each round is trained with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from rlsys.algorithm.reward_shaping import shape_rewards
from rlsys.algorithm.trajectories import clue_advantages, clue_qualities, clue_terms, trajectories
from rlsys.config.run import RunConfig, parse
from rlsys.loop.objective import PolicyGradient
from rlsys.perception.clues import clue_scores
from rlsys.types import LaterRound, ScoredGroup
from tests.support.factories import make_group, make_scored
from tests.support.rounding import FLOAT32

NAN = float("nan")


def later(sample_index: int, number: int, iou: float, *, is_valid: bool = True, tokens: int = 3) -> LaterRound:
    group = make_group("file:0", num_rollouts=1, weight_version=number, response_tokens=tokens)
    return LaterRound(sample_index=sample_index, number=number, scored=make_scored(group, [iou], [is_valid]))


def four(*more: LaterRound, first: Sequence[float] = (0.2, 0.4, 0.6, 0.0)) -> ScoredGroup:
    return trajectories(make_scored(make_group("file:0"), first), more)


def config(**perception: object) -> RunConfig:
    tree = {
        "output_dir": "out",
        "model": {"path": "model"},
        "rollout": {"max_tokens": 4, "group_size": 4},
        "algorithm": {"advantage": "dr_grpo"},
        "perception": {"rounds": 3, **perception},
    }
    return parse(tree, source="test")


def test_a_trajectory_is_worth_its_last_round_and_the_first_keeps_its_own_scores() -> None:
    scored = four(later(0, 2, 0.9), later(0, 3, 0.5), later(2, 2, 0.1, is_valid=False))
    np.testing.assert_allclose(scored.rewards, np.float32([0.5, 0.4, NAN, 0.0]))
    assert scored.is_valid.tolist() == [True, True, False, True]
    assert scored.reasons == ("", "", "judge timed out", "")
    assert scored.first is not None
    np.testing.assert_allclose(scored.first.rewards, np.float32([0.2, 0.4, 0.6, 0.0]))
    assert [len(group.rollouts) for group in scored.groups] == [4, 1, 1, 1]
    assert len(scored.rollouts) == 7


def test_rows_that_were_asked_once_stay_as_they_are() -> None:
    first = make_scored(make_group("file:0"), [0.0, 1.0, 0.5, 0.5])
    assert trajectories(first, ()) is first


@pytest.mark.parametrize("numbers", [(3,), (2, 2), (2, 4)])
def test_a_missing_round_is_an_error(numbers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="cannot follow"):
        four(*(later(1, number, 0.5) for number in numbers))


def test_qualities_and_terms_of_clues_equal_a_table_by_hand() -> None:
    scored = four(later(0, 2, 0.9), later(0, 3, 0.5), later(1, 2, 0.3), later(2, 2, 0.1, is_valid=False))
    qualities = clue_qualities(scored, ("iou",))
    np.testing.assert_allclose(
        qualities, [[0.2, 0.4, 0.6, 0.0], [0.9, 0.3, NAN, NAN], [0.5, NAN, NAN, NAN]], atol=FLOAT32
    )
    # 0.9 + (0.9 - 0.2) / 2, 0.3 + (0.3 - 0.4) / 2, 0.5 + (0.5 - 0.9) / 2
    expected = [[0.2, 0.4, 0.6, 0.0], [1.25, 0.25, NAN, NAN], [0.3, NAN, NAN, NAN]]
    np.testing.assert_allclose(clue_terms(qualities, 0.5), expected, atol=FLOAT32)
    # the round before could not be scored, so nothing is known of a gain
    np.testing.assert_allclose(clue_terms(np.array([[NAN], [0.4]]), 0.5), [[NAN], [0.4]])


def test_each_round_is_normalised_by_itself_and_one_trajectory_alone_has_nothing_to_compare_with() -> None:
    terms = np.array([[0.2, 0.4, 0.6, 0.0], [1.25, 0.25, NAN, NAN], [0.3, NAN, NAN, NAN]])
    found = clue_advantages(terms, "dr_grpo")
    np.testing.assert_allclose(found, [[-0.1, 0.1, 0.3, -0.3], [0.5, -0.5, 0, 0], [0, 0, 0, 0]], atol=FLOAT32)
    assert not clue_advantages(terms, "grpo", min_valid=3)[1].any()


def test_clues_are_compared_by_the_lowest_of_a_period_and_a_box() -> None:
    assert clue_scores("temporal_grounding") == ("iou",)
    assert clue_scores("grounded_qa") == ("iou",)
    assert clue_scores("spatiotemporal_grounding") == ("iou", "box_iou")
    assert clue_scores("multiple_choice") == () == clue_scores("tracking")
    group = make_group("file:0", num_rollouts=2)
    scored = ScoredGroup(
        group=group,
        score_names=("format", "iou", "box_iou"),
        scores=np.float32([[1, 0.5, 0.7], [1, 0.9, 0.3]]),
        rewards=np.float32([2.2, 2.2]),
        is_valid=np.ones(2, bool),
        reasons=("", ""),
        evidence=(None, None),
        spans={},
    )
    np.testing.assert_allclose(clue_qualities(scored, ("iou", "box_iou")), [[0.5, 0.3]], atol=FLOAT32)
    assert np.isnan(clue_qualities(scored, ())).all()


def test_every_round_has_the_advantage_of_its_trajectory_and_that_of_its_clue() -> None:
    scored = four(later(0, 2, 0.9), later(0, 3, 0.6), later(1, 2, 0.3), first=(0.2, 0.4, 0.6, 0.0))
    objective = PolicyGradient(config(clue_coef=0.5, improvement_coef=0.5))
    batch = objective.batch((scored,), objective.advantages((scored,)))
    of_trajectory = np.array([0.6, 0.3, 0.6, 0.0]) - 0.375
    clue = 0.5 * np.array([-0.1, 0.1, 0.3, -0.3])
    found = [one.tolist() for one in batch.advantages]
    expected = [
        of_trajectory + clue,  # round 1
        [of_trajectory[0] + 0.25],  # round 2: terms 1.25 and 0.25
        [of_trajectory[0]],  # round 3: no other trajectory has one
        [of_trajectory[1] - 0.25],
    ]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=FLOAT32)
    assert [mask.tolist() for mask in batch.is_trained] == [[True] * 4, [True], [True], [True]]
    assert batch.num_trained_tokens == 3 * 7


def test_a_failed_score_is_missing_data_of_its_round_and_a_failed_last_one_of_the_trajectory() -> None:
    broken_middle = later(0, 2, 0.0, is_valid=False)
    scored = four(broken_middle, later(0, 3, 0.6), later(1, 2, 0.3, is_valid=False))
    objective = PolicyGradient(config())
    batch = objective.batch((scored,), objective.advantages((scored,)))
    assert batch.is_trained[0].tolist() == [True, False, True, True]
    assert [mask.tolist() for mask in batch.is_trained[1:]] == [[True], [True], [False]]
    of_trajectory = 0.6 - np.mean([0.6, 0.6, 0.0])
    np.testing.assert_allclose(batch.advantages[1], [of_trajectory], atol=FLOAT32)
    assert batch.advantages[0][1] == 0 == batch.advantages[3][0]


def test_without_a_coefficient_or_with_requests_of_parts_clues_count_nothing() -> None:
    scored = four(later(0, 2, 0.9), first=(0.9, 0.9, 0.9, 0.9))
    for changed in ({"clue_coef": 0.0}, {"turn": "zoom"}):
        objective = PolicyGradient(config(**changed))
        assert not objective.teaches(scored), "all trajectories end with the same reward"
        assert not np.concatenate(objective.advantages((scored,))).any()
    assert not PolicyGradient(config()).teaches(scored)
    clues_differ = four(*(later(index, 2, 0.9) for index in range(4)), first=(0.1, 0.9, 0.9, 0.9))
    assert PolicyGradient(config()).teaches(clues_differ), "equal ends, but the first clues differ"


def test_penalties_of_all_rounds_are_subtracted_from_the_trajectory() -> None:
    scored = four(later(0, 2, 0.9, tokens=4), later(0, 3, 0.6, tokens=4), later(1, 2, 0.3, tokens=2))
    algorithm = config().algorithm.model_copy(update={"overlong_buffer_tokens": 2, "overlong_penalty": 1.0})
    shaped = shape_rewards((scored,), algorithm, max_tokens=4)
    # 3 tokens use half of the buffer, 4 tokens all of it, 2 none
    np.testing.assert_allclose(scored.rewards - shaped.groups[0].rewards, [2.5, 0.5, 0.5, 0.5], atol=FLOAT32)
    by_kl = config().algorithm.model_copy(update={"kl_coef": 1.0, "kl_in": "reward", "kl_estimator": "k1"})
    reference = [[np.full(rollout.response_ids.size, -1.5) for rollout in group.rollouts] for group in scored.groups]
    shaped = shape_rewards((scored,), by_kl, max_tokens=4, reference=reference)
    # each token's log-prob is 0.5 higher than the reference's
    np.testing.assert_allclose(scored.rewards - shaped.groups[0].rewards, [5.5, 2.5, 1.5, 1.5], atol=FLOAT32)


def test_tokens_of_every_round_must_be_fresh() -> None:
    objective = PolicyGradient(config())
    fresh = four(first=(0.2, 0.4, 0.6, 0.0))
    assert not objective.staleness_problem(fresh, 0)
    assert "updates old" in objective.staleness_problem(four(later(0, 2, 0.9)), 0), "round 2 has tokens of version 2"
