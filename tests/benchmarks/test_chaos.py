"""Who is killed when, and how the time that it costs is reckoned."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from benchmarks.chaos.cluster import descendants, is_stopped, signal_all
from benchmarks.chaos.kills import ALL, KILL, STOP, Deed, Kill, by_kind, median_step_s, plan_kills, spread_losses
from benchmarks.chaos.main import config, main
from benchmarks.chaos.run import StepWatch
from rlsys.config.run import RunConfig
from rlsys.tracking.spool import Spool
from tests.support.pace import patience


def deed(at_s: float, victim: str = "actor", pid: int = 1, step: int = 1) -> Deed:
    return Deed(kill=Kill(victim=victim, signal=KILL, after_step=1, delay_s=0.0), at_s=at_s, pid=pid, step=step)


def test_a_plan_is_a_function_of_its_seed_and_has_every_victim() -> None:
    plan = plan_kills(4, ALL * 2)
    assert plan == plan_kills(4, ALL * 2) != plan_kills(5, ALL * 2)
    assert Counter((kill.victim, kill.signal) for kill in plan) == dict.fromkeys(ALL, 2)
    steps = [kill.after_step for kill in plan]
    assert steps == sorted(steps) and min(steps) == 1
    assert any(a == b for a, b in zip(steps, steps[1:], strict=False))  # some come while the one before is dealt with


def test_what_a_step_took_too_long_goes_to_the_kills_during_it() -> None:
    first, second = deed(2.5), deed(2.8)
    spread_losses([first, second], {1: 1.0, 2: 2.0, 3: 9.0, 4: 10.0}, 1.0)
    assert (first.lost_s, second.lost_s) == (3.0, 3.0)  # 7 s in place of 1
    assert (first.next_step_s, second.next_step_s) == (6.5, pytest.approx(6.2))


def test_a_loss_that_shows_later_goes_to_the_kill_before_it() -> None:
    hung, unrelated = deed(2.5), deed(13.5)
    spread_losses([hung, unrelated], {1: 1.0, 2: 2.0, 3: 3.0, 4: 13.0, 5: 14.0}, 1.0)
    assert (hung.lost_s, unrelated.lost_s) == (9.0, 0.0)


def test_a_kill_without_a_later_step_is_not_recovered_and_one_without_a_victim_is_not_counted() -> None:
    deeds = [deed(1.5), deed(8.0), deed(2.0, pid=0), deed(1.8, victim="driver")]
    spread_losses(deeds, {1: 1.0, 2: 2.0, 3: 3.0}, 1.0)
    rows = {row["victim"]: row for row in by_kind(deeds)}
    assert (rows["actor"]["kills"], rows["actor"]["recovered"], rows["driver"]["recovered"]) == (2, 1, 1)


def test_a_kill_after_the_last_step_is_recovered_when_the_run_has_ended() -> None:
    late = deed(8.0, step=3)
    spread_losses([late], {1: 1.0, 2: 2.0, 3: 3.0}, 1.0)
    assert (late.is_recovered, late.next_step_s, late.lost_s) == (True, None, 0.0)


def test_the_first_steps_do_not_count_for_the_median() -> None:
    assert median_step_s({1: 0.0, 2: 9.0, 3: 12.0, 4: 13.0, 5: 14.0}) == 1.0
    assert median_step_s({1: 0.0, 2: 9.0}) == 9.0


def test_steps_are_told_once_whoever_records_them(tmp_path: Path) -> None:
    watch = StepWatch(tmp_path)
    assert watch.new() == []
    spool = Spool(tmp_path / "tracking" / "run")
    for step in (1, 2):
        spool.append({"kind": "metrics", "step": step, "values": {}})
    spool.append({"kind": "rows", "step": 3})
    assert watch.new() == [1, 2]
    assert watch.new() == []
    spool.append({"kind": "metrics", "step": 3, "values": {}})
    assert watch.new() == [3]
    spool.close()


def test_only_descendants_are_found_and_a_stopped_one_is_known_as_such() -> None:
    program = (
        "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).wait()"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as parent, subprocess.Popen(["sleep", "60"]) as other:
        try:
            deadline = time.monotonic() + patience(30.0)
            while not (found := descendants(parent.pid)):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert other.pid not in [process.pid for process in found]
            signal_all(found, STOP)
            while not is_stopped(found[0]):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            signal_all(found, KILL)
            psutil.wait_procs(found, timeout=patience(30.0))
            signal_all(found, KILL)  # one that is gone is nobody else
        finally:
            parent.kill()
            other.kill()
    assert descendants(parent.pid) == []


def test_the_runs_config_is_one(tmp_path: Path) -> None:
    parsed = RunConfig.model_validate(config(tmp_path, "killed", 5, patience=2.0, pipeline={"max_lag": 1}))
    assert (parsed.pipeline.max_lag, parsed.rollout.timeout_s, parsed.train.num_steps) == (1, 40.0, 5)


def test_the_command_says_what_it_takes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["chaos", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert "--kills" in capsys.readouterr().out
