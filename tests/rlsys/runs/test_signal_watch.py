"""A run that learns nothing says so."""

from __future__ import annotations

import pytest

from rlsys.config.train import TrainConfig
from rlsys.runs.signal_watch import NoLearningSignal, SignalWatch
from tests.support.factories import make_group, make_scored

FLAT = make_scored(make_group(), [0.5] * 4)
SPREAD = make_scored(make_group(), [0.5, 0.5, 0.0, 0.5])
FAILED = make_scored(make_group(), [0.5, float("nan"), 0.5, 0.5], [True, False, True, True])


def warned(caplog: pytest.LogCaptureFixture, *steps: list) -> list[int]:
    watch = SignalWatch(TrainConfig(no_signal_steps=2))
    for number, groups in enumerate(steps, start=1):
        watch.observe(number, groups, 0.0)
    return [int(record.getMessage().split(":")[0].removeprefix("step ")) for record in caplog.records]


def test_a_warning_follows_enough_steps_in_a_row_and_shows_responses(caplog: pytest.LogCaptureFixture) -> None:
    assert warned(caplog, [FLAT], [SPREAD], [FLAT], [FAILED, FLAT], [FLAT], [FLAT, FLAT]) == [4, 6]
    assert "the last 2 steps had no learning signal" in caplog.text
    assert f"{FLAT.group.item.prompt_id}: reward 0.5: {FLAT.group.rollouts[0].text!r}" in caplog.text


def test_one_group_with_different_rewards_is_a_signal(caplog: pytest.LogCaptureFixture) -> None:
    assert warned(caplog, *[[FLAT, SPREAD]] * 6) == []


def test_a_gradient_from_elsewhere_is_a_signal(caplog: pytest.LogCaptureFixture) -> None:
    watch = SignalWatch(TrainConfig(no_signal_steps=1))
    watch.observe(1, [FLAT], 0.1)
    assert not caplog.records


def test_the_setting_ends_the_run() -> None:
    watch = SignalWatch(TrainConfig(no_signal_steps=1, stop_without_signal=True))
    with pytest.raises(NoLearningSignal, match="step 1: the last 1 steps had no learning signal"):
        watch.observe(1, [FLAT], 0.0)
