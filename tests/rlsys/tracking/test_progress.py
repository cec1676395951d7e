"""What people see of a run: numbers worked out by hand, and the log of a job."""

from __future__ import annotations

import io
import logging
import math

import pytest
import rich
from rich.console import Console

from rlsys.tracking import progress
from rlsys.tracking.progress import (
    FINE_TUNING,
    TRAINING,
    Pace,
    Progress,
    RunSummary,
    clock_time,
    duration,
    line,
    phases,
)


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def metrics(reward: float, lag: float = 0.0, failed: float = 0.0) -> dict[str, float]:
    return {
        "reward/total/mean": reward,
        "perf/rollouts_per_s": 23.4,
        "weights/lag_updates/max": lag,
        "weights/lag_updates/mean": lag / 2,
        "reward/failed_frac": failed,
        "time/collect_s": 1.5,
        "time/update_s": 0.4,
        "time/step_s": 1.9,
        "time/group_score_s/mean": 0.1,
    }


def test_the_time_that_is_left_follows_the_newest_steps() -> None:
    pace = Pace()
    assert math.isnan(pace.seconds_for(5))
    pace.add(10.0)
    pace.add(20.0)
    assert pace.seconds_for(4) == 60.0
    for _ in range(progress.PACE_STEPS):
        pace.add(1.0)
    assert pace.seconds_for(4) == 4.0


def test_times_read_as_clocks_do() -> None:
    assert [clock_time(seconds) for seconds in (0, 59.6, 200, 7500, 100_000)] == [
        "0:00",
        "1:00",
        "3:20",
        "2:05:00",
        "1d 3:46:40",
    ]
    assert (duration(12.34), duration(3600)) == ("12.3 s", "1:00:00")


def test_the_line_says_what_matters_most_first_and_leaves_out_what_is_not_known() -> None:
    full = line(TRAINING, 57, 100, metrics(0.512, lag=1), left_s=200, gauges={"judge queue": 12})
    assert full == "step 57/100  ETA 3:20  reward 0.512  rollouts/s 23.4  staleness 1  judge queue 12"
    assert len(full.removeprefix("step ")) < 80
    assert line(TRAINING, 0, 100, {}, left_s=math.nan, gauges={}) == "step 0/100"
    assert line(TRAINING, 100, 100, {"reward/total/mean": math.nan}, left_s=0, gauges={}) == "step 100/100"
    supervised = {"loss/nll": 1.25, "data/epochs": 0.5, "perf/learner_tokens_per_s": 1234.5}
    assert line(FINE_TUNING, 1, 9, supervised, left_s=8, gauges={}) == (
        "step 1/9  ETA 0:08  loss 1.250  epoch 0.50  tokens/s 1234"
    )
    assert phases(metrics(0.5)) == "collect 1.50s update 0.40s"


def test_the_table_at_the_end_tells_both_ends_and_the_shares_of_time() -> None:
    summary = RunSummary(TRAINING, first_step=51)
    for step in range(20):
        summary.add(metrics(step / 20, lag=step % 3, failed=0.25 if step < 4 else math.nan), count=16)
    assert summary.rows({"collect": 30.0, "update": 9.0, "sync": 1.0, "load": 0.0}) == [
        ("steps", "20 (51 to 70)"),
        ("reward", "0.025 in the first 10 %, 0.925 in the last"),
        ("rollouts", "320"),
        ("mean staleness", "0.47"),
        ("failed rewards", "25.0%"),
        ("largest staleness", "2"),
        ("time", "40.0 s"),
        ("  collect", "30.0 s  75%"),
        ("  update", "9.0 s  22%"),
        ("  sync", "1.0 s  2%"),
    ]
    assert RunSummary(TRAINING, first_step=1).rows({}) == [("steps", "none")]


def test_the_table_at_the_end_counts_what_went_wrong_where_anything_did() -> None:
    summary = RunSummary(TRAINING, first_step=1)
    for step in range(4):
        troubles = {
            "rollout/stale_groups": float(step == 2),
            "rollout/lost_actors": float(step),
            "cluster/learner_restarts": 0.0,
            "data/bad_draws": 2.0,
        }
        summary.add({**metrics(0.5), **troubles}, count=8)
    rows = dict(summary.rows({"collect": 1.0}))
    assert (rows["stale groups"], rows["bad clips"], rows["lost actors"]) == ("1", "8", "3")
    assert not {"learner restarts", "quarantined rows"} & rows.keys()


def drive(num_steps: int) -> None:
    with Progress(TRAINING, 0, num_steps, {"judge queue": lambda: 3}) as told:
        for step in range(1, num_steps + 1):
            told.step(step, metrics(step / num_steps), 8)


def test_without_a_terminal_some_steps_are_lines_of_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rich, "_console", Console(file=io.StringIO(), force_terminal=False))
    caplog.set_level(logging.INFO, "rlsys.tracking.progress")
    drive(35)
    told = [message.split()[1] for message in caplog.messages]
    assert told == ["1/35", "2/35", "3/35", "10/35", "20/35", "30/35", "35/35"]
    assert caplog.messages[-1] == (
        "step 35/35  reward 1.000  rollouts/s 23.4  staleness 0  judge queue 3  collect 1.50s update 0.40s"
    )


def test_colours_asked_for_in_ci_do_not_make_a_terminal(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(rich, "_console", Console(file=screen, force_terminal=True))
    caplog.set_level(logging.INFO, "rlsys.tracking.progress")
    drive(3)
    progress.show_table("Trained", [("steps", "3")])
    assert screen.getvalue() == ""
    assert len(caplog.messages) == 5


def test_a_slow_run_is_not_silent_for_long(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rich, "_console", Console(file=io.StringIO(), force_terminal=False))
    monkeypatch.setattr(progress, "LONGEST_SILENCE_S", -1.0)
    caplog.set_level(logging.INFO, "rlsys.tracking.progress")
    drive(12)
    assert len(caplog.messages) == 12


@pytest.mark.parametrize("width", [80, 160])
def test_on_a_terminal_one_line_stays_at_the_bottom(
    width: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Screen()
    monkeypatch.setattr(rich, "_console", Console(file=screen, force_terminal=True, width=width, color_system=None))
    caplog.set_level(logging.INFO, "rlsys.tracking.progress")
    with Progress(TRAINING, 0, 5, {"judge queue": lambda: 3}) as told:
        told.step(1, metrics(0.5, lag=1), 8)
        told._live.refresh()  # type: ignore[union-attr]
    shown = screen.getvalue()
    assert "1/5  ETA 0:00  reward 0.500" in shown and "judge queue 3" in shown
    assert ("━" in shown) == (width == 160)
    assert len(caplog.messages) == 1  # where the run stood when the line went
