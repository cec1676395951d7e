"""T-GRPO's second group with shuffled frames: which prompts need one, and how it changes rewards."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rlsys.algorithm.order_contrast import wants_contrast, with_order_contrast
from rlsys.config.run import ConfigError, RewardConfig, parse
from rlsys.types import ScoredGroup
from tests.support.factories import make_group, make_scored
from tests.support.rounding import FLOAT32

REWARD = RewardConfig(weights={"multiple_choice": {"order_contrast": 0.3}})


def scored(accuracies: list[float], is_valid: list[bool] | None = None) -> ScoredGroup:
    group = make_group(num_rollouts=len(accuracies))
    group = replace(group, item=replace(group.item, task="multiple_choice"))
    return replace(make_scored(group, accuracies, is_valid), score_names=("accuracy",))


def test_correct_answers_get_the_bonus_when_shuffled_frames_do_no_better() -> None:
    found = with_order_contrast(scored([1, 0, 1, 0]), scored([0, 1]), REWARD)
    assert found.score_names == ("accuracy", "order_contrast")
    np.testing.assert_allclose(found.rewards, [1.3, 0, 1.3, 0], rtol=FLOAT32)


def test_no_answer_gets_the_bonus_when_shuffled_frames_do_better() -> None:
    found = with_order_contrast(scored([1, 0, 0, 0]), scored([1, 1]), REWARD)
    np.testing.assert_allclose(found.rewards, [1, 0, 0, 0])


def test_a_contrast_that_could_not_be_scored_is_missing_and_not_zero() -> None:
    found = with_order_contrast(scored([1, 0, 1, 0]), scored([0, 0], [False, False]), REWARD)
    assert not found.is_valid.any() and np.isnan(found.rewards).all()
    assert all(reason.startswith("infra") for reason in found.reasons)


def test_a_response_that_failed_to_be_scored_keeps_its_own_reason() -> None:
    found = with_order_contrast(scored([1, 0, 1, 0], [True, False, True, True]), scored([0, 0]), REWARD)
    assert found.is_valid.tolist() == [True, False, True, True]
    assert found.reasons[1] == "judge timed out"


def test_only_tasks_that_weight_the_contrast_need_a_second_group() -> None:
    assert wants_contrast("multiple_choice", REWARD)
    assert not wants_contrast("captioning", REWARD)


@pytest.mark.parametrize(
    "changes",
    [{"rollout": {"shuffled_group_size": 4}}, {"reward": {"weights": {"multiple_choice": {"order_contrast": 0.3}}}}],
)
def test_the_score_and_the_second_group_need_each_other(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="shuffled_group_size"):
        parse({"output_dir": "out", "model": {"path": "m"}, **changes}, source="test")
