from __future__ import annotations

from typing import Any

import pytest

from rlsys.config.perception import PerceptionConfig
from rlsys.config.run import ConfigError, RunConfig, parse
from rlsys.perception.choose import later_data


def config(**sections: Any) -> RunConfig:
    return parse({"output_dir": "out", "model": {"path": "model"}, **sections}, source="test")


def test_one_round_is_the_default() -> None:
    assert config().perception == PerceptionConfig(rounds=1)


@pytest.mark.parametrize(
    ("perception", "message"),
    [
        ({"rounds": 0}, "perception.rounds"),
        ({"rounds": "2,3"}, "perception.rounds=2,3: rounds follow each other"),
        ({"rounds": [1, 3]}, "rounds follow each other"),
        ({"rounds": "1,x"}, "rounds follow each other"),
        ({"max_frames": 7}, "perception.max_frames=7: models merge frames in pairs"),
        ({"key_ratio": 1.0}, "perception.key_ratio"),
        ({"rule": "dense"}, "perception.rule"),
        ({"stop": ["bored"]}, "perception.stop"),
        ({"min_confidence": 1.1}, "perception.min_confidence"),
        ({"min_confidence": 0.5}, "perception.min_confidence=0.5: .* answer_repeated"),
    ],
)
def test_settings_that_cannot_be_are_refused(perception: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(perception=perception)


@pytest.mark.parametrize("rounds", [3, "1,2,3", "1, 2, 3", [1, 2, 3], ["1", "2", "3"]])
def test_a_list_of_rounds_is_its_last_one(rounds: object) -> None:
    assert config(perception={"rounds": rounds}).perception.rounds == 3


def test_controls_of_a_second_look_need_one() -> None:
    evaluation = {"controls": ["oracle_window", "text_only"]}
    with pytest.raises(ConfigError, match="evaluation.controls has oracle_window, .* perception.rounds=1"):
        config(evaluation=evaluation)
    assert config(evaluation=evaluation, perception={"rounds": 2}).evaluation.controls == tuple(evaluation["controls"])


def test_a_training_run_does_not_evaluate_one_round_at_the_tokens_of_several() -> None:
    sets = [{"annotations": "a.json", "videos": "v"}]
    evaluation = {"controls": ["one_round_equal_tokens"], "sets": sets, "every_steps": 5}
    with pytest.raises(ConfigError, match="one_round_equal_tokens with evaluation.every_steps=5"):
        config(evaluation=evaluation, perception={"rounds": 2})


def test_later_rounds_have_their_own_budgets_only_where_there_are_any() -> None:
    data = config().data
    budgets = {"max_frames": 8, "total_pixels": 100_000}
    later = later_data(data, PerceptionConfig(rounds=2, **budgets))
    assert (later.max_frames, later.total_pixels) == (8, 100_000)
    assert later_data(data, PerceptionConfig(**budgets)) == data
    assert later_data(data, PerceptionConfig(rounds=2)) == data
