"""A run that is told to end while it starts: one sentence, no stacks, and nothing left that looks alive."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mlflow
import psutil
import pytest

from rlsys.demo.synthetic import SyntheticSet, draw_dataset
from tests.support.pace import patience
from tests.support.paths import REPO

STACKS = ("Traceback", "stack trace", "*** SIG", "Fatal Python error", "@     0x", "Stack (most recent")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSet:
    return draw_dataset(tmp_path_factory.mktemp("clips"), num_clips=4, seed=3)


def titles_of(driver: psutil.Process) -> list[str]:
    found = []
    for one in driver.children(recursive=True):
        try:
            found.append(" ".join(one.cmdline()))
        except psutil.Error:
            continue
    return found


def is_before_ray(driver: psutil.Process, log: Path) -> bool:
    """Whether Ray has been asked to start; its processes may be there, but none that a run uses."""
    return "starting Ray on this machine" in log.read_text()


def is_loading_actors(driver: psutil.Process, log: Path) -> bool:
    return any(title.startswith("ray::RolloutActor") for title in titles_of(driver))


@pytest.mark.long
@pytest.mark.parametrize(
    ("is_time", "number"),
    [
        *((is_before_ray, number) for number in (signal.SIGTERM, signal.SIGHUP)),
        *((is_loading_actors, number) for number in (signal.SIGINT, signal.SIGQUIT)),
    ],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else value.__name__,
)
def test_a_signal_during_the_start_ends_it_in_one_sentence(
    number: signal.Signals,
    is_time: Callable[[psutil.Process, Path], bool],
    clips: SyntheticSet,
    tiny_model_dir: Path,
    tmp_path: Path,
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    settings = {
        "output_dir": out,
        "model.path": tiny_model_dir,
        "data.annotations": clips.annotations,
        "data.videos": clips.videos,
        "rollout.num_actors": 1,
        "learner.num_ranks": 1,
    }
    command = [sys.executable, "-m", "rlsys.commands.app", "train", "configs/demo.yaml"]
    heed = partial(signal.signal, number, signal.SIG_DFL)  # what started the tests may ignore some, as nohup does
    with log.open("w") as output:
        driver = subprocess.Popen(
            [*command, *(f"{key}={value}" for key, value in settings.items())],
            cwd=REPO,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=heed,
        )
    tree = psutil.Process(driver.pid)
    try:
        deadline = time.monotonic() + patience(200.0)
        while not is_time(tree, log):
            assert driver.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        before = log.read_text()
        started = tree.children(recursive=True)
        driver.send_signal(number)
        code = driver.wait(timeout=patience(60.0))
    finally:
        driver.kill()
        driver.wait()
    said = log.read_text()[len(before) :].strip()
    assert code == 128 + number, said
    assert not [mark for mark in STACKS if mark in said], said
    assert said.splitlines()[-1] == f"rlsys: ended by {number.name}."
    _, alive = psutil.wait_procs(started, timeout=patience(30.0))
    assert not alive
    if (out / "mlflow.db").exists():
        client = mlflow.MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
        runs = client.search_runs([one.experiment_id for one in client.search_experiments()])
        assert "RUNNING" not in {run.info.status for run in runs}
