"""Training on a mixture whose captions a language model judges, while its servers are killed."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import ray

from benchmarks.judged_step import draw_rows, judged_config, teach
from rlsys.runs.assemble import open_stack
from rlsys.runs.run import Summary
from rlsys.runs.train import train
from tests.support.judge_fault_server import FaultServer, error

TASKS = {"captioning", "multiple_choice"}
NUM_STEPS = 5


def kill_servers(killed: list[str]) -> None:
    """SIGKILL to a replica of the judge, then to the HTTP proxy, once the run scores captions."""
    for kind in ("#JudgeServer#", "SERVE_PROXY_ACTOR"):
        time.sleep(1.0)
        found = [a for a in ray.util.list_named_actors(all_namespaces=True) if kind in a["name"]]
        ray.kill(ray.get_actor(found[0]["name"], namespace=found[0]["namespace"]))
        killed.append(found[0]["name"])


class Run:
    """What a run left behind. killed: names of the servers that died in it."""

    def __init__(self, folder: Path, summary: Summary, endpoint: FaultServer, killed: list[str]) -> None:
        self.summary, self.endpoint, self.killed = summary, endpoint, killed
        self.uri = f"sqlite:///{folder / 'run' / 'mlflow.db'}"
        self._client = mlflow.MlflowClient(self.uri)

    def history(self, name: str) -> list[float]:
        return [metric.value for metric in self._client.get_metric_history(self.summary.mlflow_run_id, name)]

    def verdicts(self, folder: Path) -> list[dict[str, Any]]:
        files = Path(self._client.download_artifacts(self.summary.mlflow_run_id, "verdicts", str(folder))).iterdir()
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("judged")
    clips = draw_rows(folder / "clips", 48, TASKS)
    killed: list[str] = []
    with FaultServer(delay_s=0.05) as endpoint:
        endpoint.rule = lambda seen: error(500) if seen.number % 7 == 3 else None
        config = judged_config(
            folder,
            clips,
            f"train.num_steps={NUM_STEPS}",
            f"reward.judge.urls=[{endpoint.url}]",
            f"reward.judge.cache_path={folder / 'verdicts.sqlite'}",
            "reward.judge.max_concurrency=4",
            "reward.judge.breaker_failures=100",
            "reward.judge.max_attempts=8",
            "rollout.shuffled_group_size=4",
            "pipeline.max_lag=1",
            "reward.weights={multiple_choice: {order_contrast: 0.3}}",
            "tracking.samples_per_step=8",
        )
        os.environ.pop("RLSYS_REWARD_TOKEN", None)
        with open_stack(config, TASKS) as stack:
            taught = teach(stack, config, clips, folder / "taught")
            killer = threading.Thread(target=kill_servers, args=(killed,))
            killer.start()
            summary = train(taught, stack=stack)
            killer.join()
        yield Run(folder, summary, endpoint, killed)


def test_a_run_whose_servers_die_ends_with_every_row_scored_or_counted(run: Run) -> None:
    assert len(run.killed) == 2
    assert run.summary.num_steps == NUM_STEPS
    failed, trained = run.history("reward/failed_frac"), run.history("advantage/trained_frac")
    assert len(failed) == NUM_STEPS
    assert max(failed) < 0.5
    lost = [sum(run.history(f"reward/{status}_frac")) for status in ("infra", "abstain", "malformed")]
    assert sum(lost) == pytest.approx(sum(failed))
    assert all(share <= 1 - lost + 1e-6 for share, lost in zip(trained, failed, strict=True))
    assert run.endpoint.max_concurrency <= 4


def test_both_tasks_of_the_mixture_have_rewards_of_their_own(run: Run) -> None:
    for task in TASKS:
        assert 0 < np.nanmean(run.history(f"reward/by_task/{task}/mean")) < 2.5
    assert 0 <= np.nanmean(run.history("reward/order_contrast/mean")) <= 1
    assert 0 < np.nanmean(run.history("reward/recall/mean")) <= 1


def test_verdicts_reach_mlflow_event_by_event(run: Run, tmp_path: Path) -> None:
    verdicts = run.verdicts(tmp_path)
    assert verdicts and {row["task"] for row in verdicts} == {"captioning"}
    row = next(row for row in verdicts if row["status"] == "ok")
    assert row["evidence"]["judge"] == "llm"
    entailed = [verdict["entailed"] for verdict in row["evidence"]["recall"]]
    assert row["scores"]["recall"] == pytest.approx(sum(entailed) / len(entailed))
