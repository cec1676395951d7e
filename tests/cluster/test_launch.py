"""Starting and attaching: in processes of their own, because a process is connected to one cluster at a time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster import launch
from cluster.launch import ROOT, nodes_of, open_cluster, runtime_env
from cluster.placement import Bundle, Demand, plan_placement
from rlsys.config.run import ClusterConfig, ConfigError, parse
from rlsys.temporary import MAX_TEMP_DIR, short_temp_dir
from tests.support.cluster import RayHead
from tests.support.pace import patience


def probe(config: Mapping[str, Any], cwd: Path, **variables: str) -> tuple[int, dict[str, Any], str]:
    """Exit status, what `cluster_probe.py` found, and its stderr."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
    tree = {"output_dir": "out", "model": {"path": "m"}, **config}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.cluster_probe", json.dumps(tree)],
        cwd=cwd,
        env={**clean, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=patience(200.0),
    )
    return done.returncode, json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}, done.stderr


def still_there(pids: Sequence[int]) -> list[psutil.Process]:
    running = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    return [process for process in running if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.stack
def test_a_cluster_is_started_with_room_for_the_plan_and_leaves_nothing(tmp_path: Path) -> None:
    config = {"rollout": {"num_actors": 2}, "learner": {"num_ranks": 2}, "cluster": {"object_store_mib": 100}}
    status, found, errors = probe(config, tmp_path)
    assert status == 0, errors
    assert found["is_local"] is True
    assert found["cpus"] >= 5  # four processes and room to decode, on a machine with fewer cores too
    assert [worker["code"] for worker in found["workers"]] == [str(ROOT)] * 4
    assert found["workers"][0]["env"] == {"DS_ACCELERATOR": "cpu", "RAY_USAGE_STATS_ENABLED": "0"}
    assert found["workers"][0]["cwd"] == str(tmp_path)
    assert found["folder"].startswith(tempfile.gettempdir())
    assert found["others_may_enter"] is False
    assert not Path(found["folder"]).exists()
    _, alive = psutil.wait_procs(still_there(found["processes"]), timeout=patience(20.0))
    assert not still_there([process.pid for process in alive])


@pytest.mark.stack
def test_the_rank_and_the_actor_of_a_bundle_are_on_one_gpu(tmp_path: Path) -> None:
    config = {
        "rollout": {"num_actors": 2},
        "learner": {"num_ranks": 2},
        "cluster": {"device": "cuda", "colocate": True},
    }
    status, found, errors = probe(config, tmp_path, PROBE_GPUS="2")
    assert status == 0, errors
    ranks, actors = found["workers"][:2], found["workers"][2:]
    assert [one["gpus"] for one in ranks] == [one["gpus"] for one in actors]
    assert [one["visible"] for one in ranks] == [one["visible"] for one in actors]
    assert sorted(one["visible"] for one in ranks) == ["0", "1"]


@pytest.mark.stack
def test_a_failure_keeps_the_logs_and_says_where(tmp_path: Path) -> None:
    status, found, errors = probe({"cluster": {"object_store_mib": 100}}, tmp_path, PROBE_FAILS="1")
    assert status == 1
    assert f"the workers' logs are in {found['folder']}" in errors
    assert (Path(found["folder"]) / "session_latest" / "logs").is_dir()
    shutil.rmtree(found["folder"])


@pytest.mark.stack
def test_attaching_sends_the_code_and_leaves_the_cluster_as_it_was(ray_head: RayHead, tmp_path: Path) -> None:
    status, found, errors = probe({"cluster": {"address": ray_head.address}}, tmp_path, **ray_head.environment)
    assert status == 0, errors
    assert found["is_local"] is False
    assert found["cpus"] == 8
    code = found["workers"][0]["code"]
    assert code != str(ROOT)
    assert "_ray_pkg" in code
    assert found["left_reserved"] == 0


@pytest.mark.stack
def test_a_run_too_big_for_the_cluster_is_refused_with_the_arithmetic(ray_head: RayHead, tmp_path: Path) -> None:
    status, _, errors = probe(
        {"rollout": {"num_actors": 20}}, tmp_path, RAY_ADDRESS=ray_head.address, **ray_head.environment
    )
    assert status == 1
    assert "rollout.num_actors=20 x (1 CPU)" in errors
    assert "The cluster has 8 CPU, 0 GPU" in errors


def test_a_dashboard_is_not_a_cluster_address() -> None:
    tree = {"output_dir": "out", "model": {"path": "m"}, "cluster": {"address": "http://10.0.0.1:8265"}}
    with (
        pytest.raises(ConfigError, match="rlsys submit --address http://10.0.0.1:8265"),
        open_cluster(parse(tree, source="test")),
    ):
        pass


def test_an_address_where_nothing_listens_is_named_at_once() -> None:
    tree = {"output_dir": "out", "model": {"path": "m"}, "cluster": {"address": "127.0.0.1:9"}}
    with (
        pytest.raises(ConfigError, match="no Ray cluster answers at 127.0.0.1:9"),
        open_cluster(parse(tree, source="test")),
    ):
        pass


def test_a_job_brings_its_own_code() -> None:
    assert "py_modules" not in runtime_env(ClusterConfig(), code="there")
    assert "PYTHONPATH" not in runtime_env(ClusterConfig(), code="there")["env_vars"]
    assert "DS_ACCELERATOR" not in runtime_env(ClusterConfig(device="cuda"), code="there")["env_vars"]


def test_nodes_at_one_address_are_different_nodes() -> None:
    def node(address: str, port: int, *, alive: bool = True) -> dict[str, Any]:
        resources = {"CPU": 3.0, "memory": 1e9}
        return {"NodeManagerAddress": address, "NodeManagerPort": port, "Alive": alive, "Resources": resources}

    found = nodes_of([node("a", 1), node("b", 1), node("b", 2), node("a", 2, alive=False)])
    assert [one.name for one in found] == ["a", "b:1", "b:2"]
    ranks = (Bundle(cpus=2.0, gpus=0.0),) * 3
    plan = plan_placement(Demand(learner=ranks, actors=(), other_cpus=0.0), found)
    assert sorted(plan.learner_nodes) == ["a", "b:1", "b:2"]


def test_a_long_temporary_folder_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/scratch/" + "x" * MAX_TEMP_DIR)
    assert short_temp_dir() == Path("/tmp")


SECRETS = {
    "RLSYS_REWARD_TOKEN": "reward-token-1",
    "MY_JUDGE": "judge-key-2",
    "MLFLOW_TRACKING_PASSWORD": "mlflow-password-3",
    "HF_TOKEN": "hub-token-4",
    "MY_SERVICE_API_KEY": "service-key-5",
}


@pytest.mark.stack
@pytest.mark.parametrize("has_custom_scorers", [False, True])
def test_secrets_are_only_where_they_are_used(tiny_model_dir: Path, tmp_path: Path, has_custom_scorers: bool) -> None:
    """The driver alone uses tokens and keys; custom scorers may need the user's own, actors and ranks need none."""
    config = {
        "output_dir": "out",
        "model": {"path": str(tiny_model_dir), "max_model_len": 512},
        "rollout": {"max_tokens": 64},
        "cluster": {"object_store_mib": 100},
        "reward": {
            "judge": {"api_key_env": "MY_JUDGE"},
            **({"scorers": {"mine": "my_rewards:mine"}} if has_custom_scorers else {}),
        },
    }
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "PYTHONPATH"))}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.environment_probe", json.dumps(config), *SECRETS.values()],
        cwd=tmp_path,
        env={**clean, "PYTHONPATH": str(ROOT), **SECRETS},
        capture_output=True,
        text=True,
        timeout=patience(200.0),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    users_own = ["HF_TOKEN", "MY_SERVICE_API_KEY"] if has_custom_scorers else []
    assert found == {"task": users_own, "ray": users_own, "LearnerWorker": [], "RolloutActor": [], "Decoder": []}


@pytest.mark.parametrize(("failures", "starts"), [(0, 1), (1, 2), (2, 2)])
def test_a_start_that_ray_gives_up_on_a_busy_machine_is_tried_once_more(
    failures: int, starts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def init(**settings: Any) -> None:
        calls.append(settings["_temp_dir"])
        if len(calls) <= failures:
            raise Exception("The current node timed out during startup. This could happen because …")

    monkeypatch.setattr(launch.ray, "init", init)
    expected = pytest.raises(Exception, match="timed out during startup") if failures > 1 else nullcontext()
    with expected:
        launch._start(ClusterConfig(), 4, tmp_path)
    assert calls == [str(tmp_path)] * starts


def test_a_start_that_fails_otherwise_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def init(**_: Any) -> None:
        calls.append(1)
        raise RuntimeError("no")

    monkeypatch.setattr(launch.ray, "init", init)
    with pytest.raises(RuntimeError, match="no"):
        launch._start(ClusterConfig(), 4, tmp_path)
    assert len(calls) == 1
