from __future__ import annotations

from typing import Any

import pytest
import torch

from learner.loss.schedule import BatchSchedule, rate_factor
from rlsys.config.run import TrainConfig
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


def run(train: TrainConfig, steps: int) -> tuple[torch.optim.AdamW, BatchSchedule]:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=train.learning_rate, betas=train.betas, weight_decay=train.weight_decay)
    schedule = BatchSchedule(optimizer, train)
    for _ in range(steps):
        weight.grad = torch.ones(3)
        optimizer.step()
        schedule.step()
    return optimizer, schedule


def restored(train: TrainConfig, optimizer: torch.optim.AdamW, schedule: BatchSchedule) -> dict[str, Any]:
    """Return the settings of a new optimizer that loaded the state of another, in DeepSpeed's order."""
    new_optimizer, new_schedule = run(train, 0)
    new_schedule.load_state_dict(schedule.state_dict())
    new_optimizer.load_state_dict(optimizer.state_dict())
    new_schedule.apply_settings(train)
    return new_optimizer.param_groups[0]


def test_an_unchanged_config_is_restored_to_the_last_bit() -> None:
    train = train_config(num_steps=7, schedule="cosine", warmup_steps=2, learning_rate=3e-4)
    optimizer, schedule = run(train, 4)
    before = {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}
    assert {name: value for name, value in restored(train, optimizer, schedule).items() if name != "params"} == before


def test_changes_of_the_config_take_effect_on_a_resume() -> None:
    optimizer, schedule = run(train_config(num_steps=8, schedule="linear", learning_rate=1e-3), 4)
    changed = {"learning_rate": 2e-5, "betas": (0.8, 0.99), "weight_decay": 0.25, "num_steps": 16}
    group = restored(train_config(schedule="linear", **changed), optimizer, schedule)
    assert group["lr"] == pytest.approx(2e-5 * 0.75)  # 4 of 16 steps are done
    assert (group["initial_lr"], group["betas"], group["weight_decay"]) == (2e-5, (0.8, 0.99), 0.25)
