"""Rows that are too easy or too hard are not sampled again, and a resumed run decides as one that was not stopped."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from rlsys.config.data import PassRateConfig
from rlsys.config.run import RunConfig, parse
from rlsys.errors import PassRateOutside, UserError
from rlsys.loop.collect import Collected, InFlightGroups, collect
from rlsys.loop.objective import PolicyGradient
from rlsys.loop.staleness import groups_under_way
from rlsys.loop.state import RunState
from rlsys.runs.inputs.items import order_of
from rlsys.runs.records import ledger
from rlsys.runs.records.ledger import Entry, Ledger
from rlsys.runs.records.pass_rates import PassRates
from rlsys.types import ScoredGroup
from tests.support.factories import make_group, make_item, make_scored

NUM_ROWS = 12


def config(max_lag: int, num_steps: int, curriculum: str = "none", **pass_rate: float) -> RunConfig:
    tree = {
        "output_dir": "out",
        "model": {"path": "m"},
        "data": {"pass_rate": pass_rate, "decode_ahead": 5, "curriculum": curriculum},
        "train": {"num_steps": num_steps, "prompts_per_step": 3},
        "pipeline": {"max_lag": max_lag},
        "rollout": {"max_tokens": 4},
        "algorithm": {"max_extra_groups": 1},
    }
    return parse(tree, source="test")


class Groups:
    """Groups whose scores are a function of row and prompt index: rows 0 to 2 always wrong, 3 to 5 always right."""

    def __init__(self, settings: RunConfig, entries: list[Entry], folder: Path) -> None:
        self.ledger = Ledger(folder, entries)
        in_flight = groups_under_way(collected=0, prompts_per_step=3, max_lag=settings.pipeline.max_lag)
        self.pass_rates = PassRates(settings.data.pass_rate, self.ledger, in_flight)
        self._order = order_of(settings, [make_item(f"rows:{row}") for row in range(NUM_ROWS)], self.pass_rates)

    def start(self, prompt_index: int) -> Future[ScoredGroup]:
        future: Future[ScoredGroup] = Future()
        row = self._order.index_at(prompt_index)
        try:
            self.pass_rates.require_inside(prompt_index, f"rows:{row}")
        except PassRateOutside as error:
            future.set_exception(error)
            return future
        random = np.random.default_rng(prompt_index).integers(0, 2, 4).tolist()
        scores = [0.0] * 4 if row < 3 else [1.0] * 4 if row < 6 else random
        future.set_result(make_scored(make_group(f"rows:{row}"), scores))
        return future

    def prefetch(self, prompt_index: int) -> None:
        """Look ahead as a run does, before all is known that decides the order, and decode nothing."""
        self._order.index_at(prompt_index)

    def check(self) -> None:
        """Do nothing."""


def run(settings: RunConfig, folder: Path, entries: list[Entry]) -> list[Entry]:
    """Continue after `entries` as the loop does, and return the whole ledger."""
    groups, objective = Groups(settings, entries, folder), PolicyGradient(settings)
    objective.staleness_problem = lambda scored, step: ""  # type: ignore[method-assign]
    in_flight = InFlightGroups(groups)
    consumed = sum(len(one.prompt_indices) for one in entries)
    for step in range(len(entries), settings.train.num_steps):
        state = RunState(step=step, prompts_consumed=consumed, seed=0, mlflow_run_id="", weights_digest="")
        collected = collect(in_flight, objective, settings, state)
        consumed += collected.num_consumed
        groups.ledger.add(ledger.entry(step + 1, collected, reward=0.0, weights_digest=""))
        in_flight.forget_before(consumed)
    return groups.ledger.entries


@pytest.mark.parametrize("max_lag", [0, 1, 3])
def test_a_run_resumed_after_any_step_skips_the_rows_that_one_left_alone_skips(tmp_path: Path, max_lag: int) -> None:
    settings = config(max_lag, 14, min=0.1, max=0.9)
    whole = run(settings, tmp_path / "whole", [])
    skipped = [len(one.skipped) for one in whole]
    assert sum(skipped) > 20 and not any(skipped[:3])
    assert not ledger.problems(whole, 1 + max(whole[-1].prompt_indices))
    for done in range(1, 14):
        assert run(settings, tmp_path / str(done), whole[:done]) == whole


def test_rows_that_are_always_right_or_wrong_are_sampled_in_the_first_epoch_only(tmp_path: Path) -> None:
    entries = run(config(0, 20, min=0.01, max=0.99), tmp_path, [])
    used = {prompt_index: name for one in entries for prompt_index, name in (one.trained | one.replaced).items()}
    assert {used[prompt_index] for prompt_index in range(NUM_ROWS)} == {f"rows:{row}" for row in range(NUM_ROWS)}
    later = {name for prompt_index, name in used.items() if prompt_index >= NUM_ROWS}
    assert later and not later & {f"rows:{row}" for row in range(6)}
    assert all("pass_rate: rows:" in reason for one in entries for reason in one.skipped.values())


@pytest.mark.parametrize("max_lag", [0, 1, 3])
def test_a_curriculum_goes_from_easy_to_hard_and_a_resumed_run_goes_on_in_its_order(
    tmp_path: Path, max_lag: int
) -> None:
    settings = config(max_lag, 16, curriculum="easy_first")
    whole = run(settings, tmp_path / "whole", [])
    used = {index: name for one in whole for index, name in (one.trained | one.replaced).items()}
    order = [int(used[index].partition(":")[2]) for index in range(3 * NUM_ROWS)]
    for epoch in range(3):
        assert sorted(order[epoch * NUM_ROWS : (epoch + 1) * NUM_ROWS]) == list(range(NUM_ROWS))
    if max_lag == 0:  # every row of an epoch has its rates when the next one begins
        rates: dict[int, float] = {}
        for one in whole:
            rates |= {index: rate for index, rate in one.pass_rates.items() if index < NUM_ROWS}
        first = {int(used[index].partition(":")[2]): rate for index, rate in rates.items()}
        second = [first[row] for row in order[NUM_ROWS : 2 * NUM_ROWS]]
        assert second == sorted(second, reverse=True) and len(set(second)) > 2
    for done in range(1, 16):
        assert run(settings, tmp_path / str(done), whole[:done]) == whole


def test_nothing_is_skipped_by_default_and_the_ledger_has_the_pass_rates(tmp_path: Path) -> None:
    entries = run(config(0, 8), tmp_path, [])
    assert not any(one.skipped for one in entries)
    assert ledger.read(tmp_path) == entries
    for one in entries:
        names = one.trained | one.replaced
        assert one.pass_rates.keys() == names.keys()
        assert all(one.pass_rates[n] == 0.0 for n, name in names.items() if name in ("rows:0", "rows:1", "rows:2"))


def test_a_pass_rate_is_the_mean_over_all_groups_of_the_row_and_needs_enough_of_them(tmp_path: Path) -> None:
    def entry(step: int, rate: float) -> Entry:
        return Entry(
            step=step,
            trained={step - 1: "rows:0"},
            replaced={},
            skipped={},
            versions=(0, 0),
            reward=0.0,
            weights_digest="",
            pass_rates={step - 1: rate},
        )

    book = Ledger(tmp_path, [entry(1, 1.0), entry(2, 0.0)])
    one, two, three = (PassRates(PassRateConfig(min=0.6, min_groups=n), book, 1) for n in (1, 2, 3))
    with pytest.raises(
        PassRateOutside, match=r"rows:0: pass rate 0\.500 over 2 groups, data\.pass_rate allows 0\.6 to 1"
    ):
        two.require_inside(2, "rows:0")
    three.require_inside(2, "rows:0")
    one.require_inside(1, "rows:0")  # judged by the first step alone, whose group was right
    one.require_inside(2, "rows:9")
    book.go_back(1)
    book.add(entry(2, 0.9))
    two.require_inside(2, "rows:0")


def test_a_step_whose_rows_are_all_filtered_ends_the_run_with_the_remedy(tmp_path: Path) -> None:
    settings = config(0, 9, min=0.4, max=0.45)
    with pytest.raises(UserError, match=r"lower data\.pass_rate\.min or raise data\.pass_rate\.max"):
        run(settings, tmp_path, [])


def test_groups_without_valid_scores_have_no_pass_rate() -> None:
    groups = (
        make_scored(make_group("rows:0"), [1, 0, 1, 1], [True, True, False, False]),
        make_scored(make_group("rows:1"), [1, 0, 1, 1], [False] * 4),
    )
    collected = Collected(
        prompt_indices=(0, 1), groups=groups, replaced_indices=(), replaced=(), skipped=(), num_stale=0
    )
    assert ledger.entry(1, collected, reward=0.0, weights_digest="").pass_rates == {0: 0.5}
