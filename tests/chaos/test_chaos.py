"""Real runs on two nodes whose processes are killed and stopped: they end as if nothing had happened."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.chaos.cluster import TwoNodes
from benchmarks.chaos.kills import KILL, STOP, Kill, plan_kills
from benchmarks.chaos.main import config, prepare
from benchmarks.chaos.rewards import RewardServers
from benchmarks.chaos.run import ChaosRun, Run, check_run, finish
from tests.support.pace import patience

NUM_STEPS = 8
SILENCE_S = 400.0
PATIENCE = 2.0
"""Other tests may be using the same two cores; a deadline that is too short costs time and changes no result."""

pytestmark = [pytest.mark.timeout(1200), pytest.mark.long]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """With the model and the clips of all runs; it stays when a test fails, as its runs' logs are there."""
    made = Path(tempfile.mkdtemp(prefix="chaos-"))
    prepare(made, judged=False)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[TwoNodes]:
    with TwoNodes(folder / "nodes") as nodes:
        yield nodes


@pytest.fixture(scope="module")
def quiet(folder: Path, cluster: TwoNodes) -> Run:
    """The run that nothing happens to, with one actor: what is sampled does not depend on how many there are."""
    settings = config(folder, "quiet", NUM_STEPS, patience=patience(PATIENCE), rollout={"num_actors": 1})
    return ChaosRun(cluster, settings, (), patience(SILENCE_S)).run()


def test_killed_and_stopped_processes_change_nothing_in_a_synchronous_run(
    folder: Path, cluster: TwoNodes, quiet: Run
) -> None:
    victims = (("actor", KILL), ("rank", KILL), ("driver", KILL), ("actor", STOP), ("rules", KILL))
    kills = plan_kills(11, victims, spread_s=1.0)
    kills = [Kill(victim=k.victim, signal=k.signal, after_step=min(k.after_step, 6), delay_s=k.delay_s) for k in kills]
    run = ChaosRun(
        cluster, config(folder, "killed", NUM_STEPS, patience=patience(PATIENCE)), kills, patience(SILENCE_S)
    ).run()
    done = [deed.kill.victim for deed in run.deeds if deed.pid]
    assert len(done) >= len(victims) - 1 and "driver" in done, run.deeds  # the last may come too late
    assert check_run(finish(run, cluster, 1.0), quiet, NUM_STEPS) == []


def test_a_run_waits_for_reward_servers_that_are_away(folder: Path, cluster: TwoNodes, quiet: Run) -> None:
    servers = RewardServers(folder)
    servers.start()
    away = threading.Event()

    def take_away() -> None:
        while not (folder / "away" / "checkpoints" / "latest").exists():
            time.sleep(0.05)
        servers.kill()
        away.set()
        servers.start()

    thread = threading.Thread(target=take_away, daemon=True)
    try:
        servers.wait_up()
        thread.start()
        settings = config(
            folder,
            "away",
            NUM_STEPS,
            patience=patience(PATIENCE),
            reward={"url": servers.url},
            rollout={"num_actors": 1},
            pipeline={"max_lag": 1},
        )
        run = ChaosRun(cluster, settings, (), patience(SILENCE_S)).run()
        thread.join(timeout=patience(60.0))
    finally:
        servers.kill()
    assert away.is_set()
    assert check_run(run, None, NUM_STEPS) == []
