"""The real stack, whose driver is killed at random instants and resumed, ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import psutil
import pytest
import torch

from rlsys.demo.synthetic import draw_dataset
from rlsys.runs.records import ledger
from rlsys.runs.records.saved_group import FOLDER
from tests.support.pace import patience
from tests.support.paths import REPO
from tests.support.plain_reward_server import plain_reward_server

NUM_STEPS = 6
DEADLINE_S = 400.0  # on the reference machine, see `tests.support.pace`
OF_THE_PROCESS = (
    *("time/", "perf/", "cluster/"),
    *("rollout/generate_s", "rollout/groups", "rollout/ready_actors", "weights/updates"),
    *("weights/gather_s", "weights/checksum_s", "weights/encode_s", "weights/store_s", "weights/load_s"),
    *("weights/transfer_s", "weights/engine_load_s", "weights/verify_s"),
    "weights/bytes",  # a process that begins sends everything
    *("rollout/resampled_groups", "rollout/stale_groups"),  # begun by a process that died
    *("reward/requests", "reward/retries", "reward/unanswered_groups", "reward/paused_s"),
    *("data/decode", "data/hit", "data/miss", "data/evictions", "data/bytes_", "data/bad_clips"),
)
"""Metrics, by how they begin, that tell of a process and its times, and not of the training."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What runs share. held_out: settings of those that evaluate.  temp: where their Ray has its files."""

    settings: tuple[str, ...]
    held_out: tuple[str, ...]
    temp: Path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Inputs]:
    clips = draw_dataset(tmp_path_factory.mktemp("clips"), num_clips=7, seed=3)
    temp = Path(tempfile.mkdtemp(prefix="xr-", dir="/tmp"))  # short: Ray's sockets go below it
    with plain_reward_server() as url:
        settings = {
            "model.path": tiny_model_dir,
            "data.annotations": clips.annotations,
            "data.videos": clips.videos,
            "data.decode_workers": 1,
            "reward.url": url,
            "reward.scorers": "{checksum: 'tests.support.plain_reward_server:checksum'}",
            "reward.weights": "{temporal_grounding: {checksum: 1.0}}",
            "rollout.num_actors": 1,
            "rollout.group_size": 4,
            "rollout.max_tokens": 8,
            "perception.rounds": 2,  # an untrained model points nowhere, and looks evenly again
            "learner.num_ranks": 1,
            "train.num_steps": NUM_STEPS,
            "train.prompts_per_step": 2,
            "train.schedule": "linear",
            "checkpoint.every_steps": 2,
            "tracking.log_model": "false",
        }
        held_out = (f"evaluation.annotations={clips.annotations}", "evaluation.num_samples=16")
        yield Inputs(settings=tuple(f"{key}={value}" for key, value in settings.items()), held_out=held_out, temp=temp)
    shutil.rmtree(temp, ignore_errors=True)


@pytest.fixture(scope="module")
def whole(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happens to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with running(inputs, out, *inputs.held_out) as driver:
        assert driver.wait(patience(DEADLINE_S)) == 0, said(out)
    steps = ledger.read(out)
    assert len({step.weights_digest for step in steps}) == NUM_STEPS, "every step must change the weights"
    return out


def start(inputs: Inputs, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "rlsys.commands.app",
        "train",
        "configs/demo.yaml",
        f"output_dir={out}",
        *inputs.settings,
    ]
    environment = {**os.environ, "TMPDIR": str(inputs.temp), "OMP_NUM_THREADS": "1"}
    log = out.with_suffix(".log").open("a")
    return subprocess.Popen(
        [*command, *more], cwd=REPO, stdout=log, stderr=subprocess.STDOUT, text=True, env=environment
    )


def said(out: Path) -> str:
    return out.with_suffix(".log").read_text()


@contextmanager
def running(inputs: Inputs, out: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """A run, killed at the end of the block if it still goes on."""
    process = start(inputs, out, *more)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_until(process: subprocess.Popen[str], out: Path, is_time: Callable[[], bool]) -> None:
    deadline = time.monotonic() + patience(DEADLINE_S)
    while not is_time():
        assert process.poll() is None and time.monotonic() < deadline, said(out)
        time.sleep(0.002)


def training_metrics(out: Path, run_id: str) -> dict[str, list[tuple[int, float]]]:
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
    names = client.get_run(run_id).data.metrics
    return {
        name: [(metric.step, metric.value) for metric in client.get_metric_history(run_id, name)]
        for name in names
        if not (name.startswith(OF_THE_PROCESS) or name.endswith(("_actors", "waiting_groups")))
    }


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """What a DeepSpeed file holds, by where it is, tensors as bytes."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves(value, f"{path}/{key}")
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from leaves(value, f"{path}/{index}")
    elif isinstance(tree, torch.Tensor):
        yield path, (tree.dtype, tuple(tree.shape), np.ascontiguousarray(tree.detach().numpy()).tobytes())
    elif isinstance(tree, int | float | str | bool | None):
        yield path, tree


def learner_state(out: Path) -> dict[str, Any]:
    """All weights, moments and counters of the last checkpoint."""
    folder = out / "checkpoints" / f"step_{NUM_STEPS:06d}" / "deepspeed"
    return {
        f"{file.relative_to(folder)}{path}": value
        for file in sorted(folder.rglob("*.pt"))
        for path, value in leaves(torch.load(file, map_location="cpu", weights_only=False))
    }


def assert_as_if_nothing_had_happened(out: Path, whole: Path) -> None:
    ended, expected = (json.loads((folder / "summary.json").read_text()) for folder in (out, whole))
    assert ended["weights_digest"] == expected["weights_digest"]
    assert ended["ledger"] == expected["ledger"]
    assert ended["held_out"] == expected["held_out"]
    assert set(expected["held_out"]) == {"before", "after"}
    assert expected["ledger"]["problems"] == []
    assert ledger.read(out) == ledger.read(whole)
    state, wanted = learner_state(out), learner_state(whole)
    assert any("exp_avg_sq" in name for name in wanted)
    assert {name for name in wanted.keys() | state.keys() if state.get(name) != wanted.get(name)} == set()
    metrics = training_metrics(out, ended["mlflow_run_id"])
    assert metrics == training_metrics(whole, expected["mlflow_run_id"])
    assert [step for step, _ in metrics["reward/total/mean"]] == list(range(1, NUM_STEPS + 1))
    assert [step for step, _ in metrics["optim/lr"]] == list(range(1, NUM_STEPS + 1))


def has_steps(out: Path, count: int) -> Callable[[], bool]:
    file = out / "ledger.jsonl"
    return lambda: file.exists() and file.read_text().count("\n") >= count


def is_saving(out: Path, step: int) -> Callable[[], bool]:
    return (out / "checkpoints" / f".tmp-step_{step:06d}").exists


def kill(driver: subprocess.Popen[str], out: Path, title: str) -> None:
    """End the run's one process of this title, as soon as it is there."""
    found: list[psutil.Process] = []

    def is_there() -> bool:
        found[:] = [one for one in psutil.Process(driver.pid).children(recursive=True) if title in title_of(one)]
        return len(found) == 1

    wait_until(driver, out, is_there)
    found[0].kill()


def kill_all_holders_of_weights(driver: subprocess.Popen[str], out: Path) -> None:
    """End the only actor, and the rank from which the next one would have them."""
    lost = said(out).count("rollout actor 0 is lost")
    kill(driver, out, "RolloutActor")
    wait_until(driver, out, lambda: said(out).count("rollout actor 0 is lost") > lost)
    kill(driver, out, "LearnerWorker")


def title_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def test_a_run_whose_driver_and_learner_are_killed_ends_with_the_bits_of_one_that_was_left_alone(
    inputs: Inputs, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    command = (*inputs.held_out, "--resume", str(out))
    with running(inputs, out, *inputs.held_out) as driver:
        wait_until(driver, out, has_steps(out, 1))
    assert not list((out / "checkpoints").glob("step_*")), "killed before the first checkpoint"
    run_id = json.loads((out / "run.json").read_text())["mlflow_run_id"]
    with running(inputs, out, *command) as driver:
        kill(driver, out, "LearnerWorker")  # while it starts
        wait_until(driver, out, lambda: not has_steps(out, 1)())  # it has begun anew
        wait_until(driver, out, has_steps(out, 1))
        kill(driver, out, "LearnerWorker")  # there is no checkpoint yet
        wait_until(driver, out, is_saving(out, 4))
    assert "reusing the saved rollouts" in said(out)
    assert (out / "checkpoints" / "step_000002").exists()
    shutil.rmtree(out / FOLDER)  # what was sampled is sampled again then
    with running(inputs, out, *command) as driver:
        wait_until(driver, out, has_steps(out, 5))
        kill_all_holders_of_weights(driver, out)
        wait_until(driver, out, lambda: said(out).count("evaluating on") == 2)  # in its first life, and now
        kill_all_holders_of_weights(driver, out)
        assert driver.wait(patience(DEADLINE_S)) == 0, said(out)
    assert said(out).count("were lost with the learner") == 2
    assert said(out).count("the learner recovered after") == 4
    assert json.loads((out / "summary.json").read_text())["mlflow_run_id"] == run_id
    assert_as_if_nothing_had_happened(out, whole)
    with running(inputs, out, *command) as driver:
        assert driver.wait(patience(DEADLINE_S)) == 0, said(out)
    assert f"the run is complete with {NUM_STEPS} steps" in said(out)


def held_gpus(out: Path) -> list[tuple[float, float, str]]:
    """The turns of a colocated run's processes, by start."""
    found = re.findall(r"(actor|rank) \d+ held its GPU from ([\d.]+) s to ([\d.]+) s", said(out))
    return sorted((float(start), float(end), holder) for holder, start, end in found)


@pytest.mark.long
def test_a_colocated_run_whose_parts_are_killed_takes_turns_and_ends_with_the_bits_of_one_with_gpus_for_each(
    inputs: Inputs, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "colocated"
    command = (*inputs.held_out, "cluster.colocate=true")
    with running(inputs, out, *command) as driver:
        wait_until(driver, out, has_steps(out, 1))
        kill(driver, out, "RolloutActor")  # awake, or asleep if it is late
        wait_until(driver, out, has_steps(out, 2))
        turns = said(out).count("actor 0 held")
        wait_until(driver, out, lambda: said(out).count("actor 0 held") > turns)
        kill(driver, out, "RolloutActor")  # asleep
        wait_until(driver, out, has_steps(out, 3))
        turns = said(out).count("actor 0 held")
        wait_until(driver, out, lambda: said(out).count("actor 0 held") > turns)
        kill(driver, out, "LearnerWorker")  # while the engine sleeps
        wait_until(driver, out, has_steps(out, 4))
        turns = said(out).count("rank 0 held")
        wait_until(driver, out, lambda: said(out).count("rank 0 held") > turns)
    assert said(out).count("actor 0 is lost") >= 2 and "the learner recovered after" in said(out)
    with running(inputs, out, *command, "--resume", str(out)) as driver:
        assert driver.wait(patience(DEADLINE_S)) == 0, said(out)
    turns_held = held_gpus(out)
    assert {holder for _, _, holder in turns_held} == {"actor", "rank"} and len(turns_held) > 2 * NUM_STEPS
    assert all(end <= start for (_, end, _), (start, _, _) in pairwise(turns_held)), "one holder at a time"
    assert_as_if_nothing_had_happened(out, whole)


@pytest.mark.long
def test_an_asynchronous_run_whose_driver_is_killed_repeats_its_steps_with_the_rollouts_it_had(
    inputs: Inputs, tmp_path: Path
) -> None:
    settings = ("pipeline.max_lag=1", "pipeline.weight_update=keep", "rollout.max_tokens=24")
    out = tmp_path / "lagged"
    with running(inputs, out, *settings) as driver:
        wait_until(driver, out, has_steps(out, 3))
    before = ledger.read(out)
    with running(inputs, out, *settings, "--resume", str(out)) as driver:
        assert driver.wait(patience(DEADLINE_S)) == 0, said(out)
    assert "reusing the saved rollouts" in said(out)
    after = ledger.read(out)
    assert after[: len(before)] == before, "the same rollouts and weights, bit for bit"
    drawn = json.loads((out / "checkpoints" / f"step_{NUM_STEPS:06d}" / "state.json").read_text())["prompts_consumed"]
    assert (len(after), ledger.problems(after, drawn)) == (NUM_STEPS, [])
    lags = [one.step - 1 - one.versions[0] for one in after]
    assert (min(lags), max(lags)) == (0, 1), "no rollout is older than the bound, and there are such of the last update"


def test_a_recorded_step_that_is_done_again_without_actors_has_the_same_numbers_weights_and_scores(
    inputs: Inputs, whole: Path, tmp_path: Path
) -> None:
    def rlsys(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rlsys.commands.app", "replay", str(whole), *arguments]
        environment = {**os.environ, "TMPDIR": str(inputs.temp), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            command,
            cwd=REPO,
            capture_output=True,
            text=True,
            timeout=patience(DEADLINE_S),
            env=environment,
            check=False,
        )

    done = rlsys(str(NUM_STEPS), "--output", str(tmp_path / "replayed.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "replayed.json").read_text())
    assert found["from_step"] == NUM_STEPS - 2
    recorded, replayed = found["digests"]
    assert recorded == replayed != ""
    assert {name: values for name, values in found["metrics"].items() if values[0] != values[1]} == {}
    assert {"optim/grad_norm", "reward/checksum/mean", "advantage/abs/mean"} <= found["metrics"].keys()
    scored = rlsys(str(NUM_STEPS), "--scores")
    assert scored.returncode == 0, scored.stdout + scored.stderr
    assert f"16 responses of step {NUM_STEPS} were rescored; 0 changed" in scored.stdout, "of both rounds"
    gone = rlsys("2")
    assert gone.returncode == 2
    assert f"Possible steps: {NUM_STEPS - 1}, {NUM_STEPS}." in gone.stderr
