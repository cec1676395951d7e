from __future__ import annotations

import pytest
import torch

from learner.loss.schedule import BatchSchedule, rate_factor
from tests.support.learner import train_config


def factors(**changes: object) -> list[float]:
    train = train_config(**changes)
    return [rate_factor(step, train) for step in range(train.num_steps)]


def test_linear_without_warmup_falls_by_equal_steps() -> None:
    assert factors(num_steps=4, schedule="linear") == [1.0, 0.75, 0.5, 0.25]


def test_constant_stays() -> None:
    assert factors(num_steps=3, schedule="constant") == [1.0, 1.0, 1.0]


def test_warmup_rises_to_the_peak_and_wastes_no_update() -> None:
    assert factors(num_steps=5, schedule="constant", warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_linear_after_warmup() -> None:
    assert factors(num_steps=6, schedule="linear", warmup_steps=2) == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_cosine_ends_at_a_tenth() -> None:
    assert factors(num_steps=4, schedule="cosine") == pytest.approx([1.0, 0.868198, 0.55, 0.231802], abs=1e-6)
    assert rate_factor(4, train_config(num_steps=4, schedule="cosine")) == pytest.approx(0.1)


def test_steps_past_the_end_keep_the_last_rate() -> None:
    assert rate_factor(9, train_config(num_steps=4, schedule="linear")) == 0.0
    assert rate_factor(9, train_config(num_steps=4, schedule="cosine")) == pytest.approx(0.1)


def test_warmup_longer_than_the_run_only_warms_up() -> None:
    assert factors(num_steps=2, schedule="linear", warmup_steps=4) == [0.25, 0.5]


def test_updates_inside_a_batch_share_its_rate() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=8.0)
    schedule = BatchSchedule(optimizer, train_config(num_steps=4, schedule="linear"))
    rates = []
    for ends_batch in (False, False, True, True, False, True):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.ends_batch = ends_batch
        schedule.step()
    assert rates == [8.0, 8.0, 8.0, 6.0, 4.0, 4.0]
