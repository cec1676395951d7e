"""A run whose captions a language model judges, while its servers are killed, and `rlsys eval` of its model."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import psutil
import pytest
import ray
import yaml

from benchmarks.judged_step import draw_rows, judged_config, teach
from rlsys.config.run import load
from rlsys.data.annotations.vtts import VttsEntry
from rlsys.demo.synthetic import SyntheticSet
from rlsys.runs.assemble import open_stack
from rlsys.runs.evaluating import evaluate
from rlsys.runs.evaluating.evaluate import EvalOptions, run_evaluation
from rlsys.runs.run import Summary
from rlsys.runs.train import train
from tests.stack.test_end_to_end import rlsys
from tests.support.judge_fault_server import Fault, FaultServer, error
from tests.support.pace import patience
from tests.support.paths import REPO
from tests.support.rounding import FLOAT64

TASKS = {"captioning", "multiple_choice", "temporal_grounding"}
HELD_OUT = ("multiple_choice", "temporal_grounding")
NUM_HELD_OUT = 24
NUM_STEPS = 5
PROTOCOLS = ["temporal_grounding/strict", "charades_sta/paper", "multiple_choice/strict"]


def write_held_out(clips: SyntheticSet) -> Path:
    """Write a file of rows whose answers need no judge, and one like it with a lost and a broken video."""
    lines = clips.annotations.read_text().splitlines()
    rows = [line for line in lines if VttsEntry.model_validate_json(line).row("").task in HELD_OUT][:NUM_HELD_OUT]
    held_out, damaged = (clips.annotations.with_name(f"{name}.jsonl") for name in ("held_out", "damaged"))
    held_out.write_text("\n".join(rows) + "\n")
    (clips.videos / "broken.mp4").write_bytes(b"no video")
    bad = [json.dumps({**json.loads(rows[0]), "video": name}) for name in ("lost.mp4", "broken.mp4")]
    damaged.write_text("\n".join([rows[0], *bad, rows[1]]) + "\n")
    return held_out


def kill_servers(killed: list[str]) -> None:
    """SIGKILL to a replica of the judge, then to the HTTP proxy, once the run scores captions."""
    for kind in ("#JudgeServer#", "SERVE_PROXY_ACTOR"):
        time.sleep(1.0)
        found = [a for a in ray.util.list_named_actors(all_namespaces=True) if kind in a["name"]]
        ray.kill(ray.get_actor(found[0]["name"], namespace=found[0]["namespace"]))
        killed.append(found[0]["name"])


class Run:
    """What a run left behind. model: what it began with.  killed: names of the servers that died in it."""

    def __init__(self, folder: Path, summary: Summary, model: Path, endpoint: FaultServer, killed: list[str]) -> None:
        self.folder, self.summary, self.endpoint, self.killed = folder, summary, endpoint, killed
        self.clips, self.model = folder / "clips", model
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
    held_out = write_held_out(clips)
    killed: list[str] = []
    with FaultServer(delay_s=0.05) as endpoint:
        endpoint.rule = lambda seen: error(500) if seen.number % 7 == 3 else None
        config = judged_config(
            folder,
            clips,
            f"train.num_steps={NUM_STEPS}",
            f"reward.judge.urls=[{endpoint.url}]",
            f"reward.judge.cache_path={folder / 'verdicts.sqlite'}",
            "rollout.num_actors=1",
            "learner.num_ranks=1",  # `test_end_to_end.py` has two of each
            "reward.judge.max_concurrency=4",
            "reward.judge.breaker_failures=100",
            "reward.judge.max_attempts=8",
            "rollout.shuffled_group_size=4",
            "pipeline.max_lag=1",
            "reward.weights={multiple_choice: {order_contrast: 0.3}}",
            "tracking.samples_per_step=8",
            f"tracking.page_every_steps={NUM_STEPS}",
            "tracking.log_model=true",
            "tracking.registered_model=judged",
            f"evaluation.annotations={held_out}",
        )
        os.environ.pop("RLSYS_REWARD_TOKEN", None)
        with open_stack(config, TASKS) as stack:
            taught = teach(stack, config, clips, folder / "taught")
            killer = threading.Thread(target=kill_servers, args=(killed,))
            killer.start()
            summary = train(taught, stack=stack)
            killer.join()
        yield Run(folder, summary, taught.model.path, endpoint, killed)


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
    for task in ("captioning", "multiple_choice"):
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


def test_the_page_of_a_step_shows_the_verdicts_on_its_captions(run: Run) -> None:
    (page,) = (run.folder / "run" / "pages").iterdir()
    found = re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    judged = [row for row in json.loads(found[1]) if row["verdicts"]]
    assert {row["task"] for row in judged} == {"captioning"}
    row = next(row for row in judged if row["scores"])
    entailed = [verdict["entailed"] for verdict in row["verdicts"]["recall"]]
    assert row["scores"]["recall"] == pytest.approx(sum(entailed) / len(entailed))


@pytest.fixture(scope="module")
def eval_config(run: Run) -> Path:
    """The config of an evaluation of the run's held-out rows, with their protocols, and of damaged rows."""
    clips = run.folder / "clips"
    sets = [
        {"name": "held_out", "annotations": str(clips / "held_out.jsonl"), "protocols": PROTOCOLS},
        {"name": "damaged", "annotations": str(clips / "damaged.jsonl")},
    ]
    config = {
        "output_dir": str(run.folder / "eval"),
        "model": {"path": str(run.folder / "untrained"), "dtype": "float32", "max_model_len": 512},
        "answers": {"reading": "strict"},
        "data": {
            "format": "vtts",
            "videos": str(clips / "videos"),
            "prompt_style": "terse",
            "min_frames": 4,
            "max_frames": 12,
            "min_pixels": 784,
            "max_pixels": 7056,
            "cache_bytes": 1 << 28,
        },
        "rollout": {"num_actors": 1, "max_tokens": 40},
        "evaluation": {"sets": sets, "control_prompts": 4, "page_rows": 2},
    }
    file = run.folder / "eval.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.fixture(scope="module")
def evaluated(run: Run, eval_config: Path) -> dict[str, Any]:
    """The results of `rlsys eval` of the run's last checkpoint, by data set."""
    result = rlsys("eval", str(eval_config), "--run", str(run.folder / "run"), "--step", str(NUM_STEPS))
    assert result.returncode == 0, result.stdout + result.stderr
    results = json.loads((run.folder / "eval" / "evaluation" / "results.json").read_text())
    return {one["name"]: one for one in results["sets"]}


def test_rlsys_eval_of_the_last_checkpoint_gives_the_figures_of_the_runs_own_held_out_rows(
    run: Run, evaluated: dict[str, Any]
) -> None:
    after = run.summary.held_out["after"]
    tasks = evaluated["held_out"]["tasks"]
    found = {one["protocol"]: one["metrics"] for by_task in tasks.values() for one in by_task}
    for name in ("miou", "r_at_0.3", "r_at_0.5", "r_at_0.7"):
        figure = after["greedy/temporal_grounding"][name]
        assert found["temporal_grounding/strict"][name]["value"] == pytest.approx(figure, abs=FLOAT64)
        assert found["charades_sta/paper"][name]["value"] >= figure - FLOAT64, "it also reads answers in a wrong format"
    figure = after["greedy/multiple_choice"]["accuracy"]
    assert found["multiple_choice/strict"]["accuracy"]["value"] == pytest.approx(figure, abs=FLOAT64)
    assert after["greedy/temporal_grounding"]["miou"] > 0 < figure, "two zeros would be equal for any reason"


def test_rows_of_lost_and_broken_videos_count_as_wrong_and_are_listed(run: Run, evaluated: dict[str, Any]) -> None:
    damaged = evaluated["damaged"]
    assert (damaged["num_rows"], damaged["num_unanswered"]) == (4, 2)
    assert [one["row"] for one in damaged["unanswered"]] == ["damaged:2", "damaged:3"]
    assert [name in one["reason"] for name, one in zip(("lost", "broken"), damaged["unanswered"], strict=True)]
    (first, *_), *_ = damaged["tasks"].values()
    assert first["metrics"]["num_rows"]["value"] >= 2
    folder = run.folder / "eval" / "evaluation"
    for file in ("report.md", "report.html"):
        text = (folder / file).read_text()
        assert "damaged:2" in text and "damaged:3" in text


def test_mlflow_has_the_evaluation_with_its_data_sets_beside_the_run_that_it_is_of(
    run: Run, evaluated: dict[str, Any]
) -> None:
    client = mlflow.MlflowClient(run.uri)
    folder = run.folder / "eval" / "evaluation"
    found = client.get_run((folder / "mlflow_run_id").read_text().strip())
    assert found.data.tags["rlsys.evaluated_run_id"] == run.summary.mlflow_run_id
    inputs = {one.dataset.name: {tag.value for tag in one.tags} for one in found.inputs.dataset_inputs}
    assert inputs == {"held_out": {"evaluation"}, "damaged": {"evaluation"}}
    (choice,) = evaluated["held_out"]["tasks"]["multiple_choice"]
    assert found.data.metrics["eval/held_out/accuracy"] == choice["metrics"]["accuracy"]["value"]
    (version,) = client.search_model_versions("name = 'judged'")
    assert found.data.tags["rlsys.model_version"] == "judged/1"
    assert version.tags[f"rlsys.evaluation.{found.info.run_id}"] == "evaluation/report.html"
    accuracy = choice["metrics"]["accuracy"]["value"]
    assert float(version.tags["eval/held_out/accuracy"]) == pytest.approx(accuracy, rel=1e-5)
    own = run.summary.held_out["after"]["greedy/multiple_choice"]["accuracy"]
    assert float(version.tags["held_out/greedy/multiple_choice/accuracy"]) == pytest.approx(own, rel=1e-5)
    files = {file.path for file in client.list_artifacts(found.info.run_id, "evaluation")}
    assert files == {f"evaluation/{name}" for name in ("results.json", "report.md", "report.html")}


def test_an_evaluation_that_is_complete_asks_nothing_and_starts_nothing(
    run: Run, eval_config: Path, evaluated: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def starts(*_: object) -> None:
        raise AssertionError("a responder was started")

    monkeypatch.setattr(evaluate, "open_responder", starts)
    out = run.folder / "eval" / "evaluation"
    before = {file: file.read_bytes() for file in (out / "answers").rglob("*.jsonl")}
    assert len(before) >= 4
    run_evaluation(load(eval_config, []), EvalOptions(run=run.folder / "run", step=NUM_STEPS))
    assert not ray.is_initialized()
    assert {file: file.read_bytes() for file in (out / "answers").rglob("*.jsonl")} == before
    again = json.loads((out / "results.json").read_text())
    assert {one["name"]: one for one in again["sets"]} == evaluated


QUOTA = "You exceeded your current quota, please check your plan and billing details."
OPEN_TO_OTHERS = {
    "ray::ServeReplica:": "Ray Serve 2.60 lets replicas listen on all addresses for each other, whatever the cluster's "
    "own one is; only the cluster's token gets past them, see `tests/reward_servers/server/test_app.py`.",
}
"""Processes, by how their titles begin, whose listeners cannot be bound to loopback, and what stands before them."""


@dataclass(frozen=True)
class Listener:
    """process: its title or command.  address: where it listens."""

    process: str
    address: str

    @property
    def is_on_loopback(self) -> bool:
        parsed = ipaddress.ip_address(self.address)
        mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
        return (mapped or parsed).is_loopback


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """A run on a cluster of its own whose judge's quota ends in its third step, and how it was resumed.

    ended, resumed: exit codes.  said, said_then: the ends of their output.  steps: finished when it ended.
    status, error: of the MLflow run when it ended.  listeners: of all its processes, as long as it lived.
    """

    out: Path
    ended: int
    said: str
    steps: int
    checkpoints: Sequence[str]
    status: str
    error: str
    listeners: frozenset[Listener]
    resumed: int
    said_then: str


def listeners_of(driver: subprocess.Popen[str]) -> Iterator[Listener]:
    """Every TCP listener of the process and of all that it has started."""
    try:
        root = psutil.Process(driver.pid)
        tree = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in tree:
        try:
            title = " ".join(process.cmdline())
            found = process.net_connections("tcp")
        except psutil.Error:
            continue  # it has just ended
        if not title:
            continue  # it is about to
        yield from (Listener(title, one.laddr.ip) for one in found if one.status == psutil.CONN_LISTEN)


def run_to_its_end(command: Sequence[str], log: Path) -> tuple[int, frozenset[Listener]]:
    """Run `rlsys`, output in `log`, and return the exit code and all listeners that it had at any time."""
    found: set[Listener] = set()
    deadline = time.monotonic() + patience(400.0)
    with log.open("w") as output:
        driver = subprocess.Popen(
            [sys.executable, "-m", "rlsys.commands.app", *command],
            cwd=REPO,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            while driver.poll() is None:
                assert time.monotonic() < deadline, log.read_text()
                found.update(listeners_of(driver))
                time.sleep(0.5)
        finally:
            driver.kill()
            driver.wait()
    return driver.returncode, frozenset(found)


def steps_of(out: Path) -> int:
    file = out / "ledger.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


@pytest.fixture(scope="module")
def stopped(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    folder = tmp_path_factory.mktemp("quota")
    out, rows = folder / "run", folder / "captions.jsonl"
    lines = (run.clips / "annotations.jsonl").read_text().splitlines()
    rows.write_text("\n".join(line for line in lines if "caption" in json.loads(line)) + "\n")
    spent = Fault(status=429, body=json.dumps({"error": {"message": QUOTA, "code": "insufficient_quota"}}).encode())
    with FaultServer() as endpoint:
        endpoint.rule = lambda _: spent if steps_of(out) >= 2 else None
        settings = {
            "output_dir": out,
            "model.path": run.model,
            "data.format": "vtts",
            "data.annotations": rows,
            "data.videos": run.clips / "videos",
            "rollout.num_actors": 1,
            "rollout.group_size": 4,
            "rollout.max_tokens": 40,
            "train.num_steps": 4,
            "train.prompts_per_step": 2,
            "checkpoint.every_steps": 0,  # so that the only one is that of the end
            "tracking.log_model": False,
            "reward.judge.urls": f"[{endpoint.url}]",
            "reward.judge.cache_path": folder / "verdicts.sqlite",
        }
        command = ["train", "configs/demo.yaml", *(f"{key}={value}" for key, value in settings.items())]
        ended, listeners = run_to_its_end(command, folder / "ended.log")
        steps, client = steps_of(out), mlflow.MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
        record = client.get_run(json.loads((out / "run.json").read_text())["mlflow_run_id"])
        checkpoints = sorted(path.name for path in (out / "checkpoints").glob("step_*"))
        endpoint.rule = lambda _: None
        resumed, _ = run_to_its_end([*command, "learner.num_ranks=1", "--resume", str(out)], folder / "resumed.log")
    return Stopped(
        out=out,
        ended=ended,
        said=(folder / "ended.log").read_text(),
        steps=steps,
        checkpoints=checkpoints,
        status=record.info.status,
        error=record.data.tags.get("error", ""),
        listeners=listeners,
        resumed=resumed,
        said_then=(folder / "resumed.log").read_text(),
    )


@pytest.mark.long
def test_a_quota_that_ends_amid_a_run_ends_it_with_the_endpoints_words_and_a_checkpoint(stopped: Stopped) -> None:
    assert stopped.ended == 2, stopped.said
    assert "Traceback" not in stopped.said
    last = stopped.said.splitlines()[-1]
    assert last.startswith("rlsys: the judge cannot be used: ") and QUOTA in last and "--resume" in last
    assert (stopped.status, QUOTA in stopped.error) == ("FAILED", True)
    assert stopped.steps in (2, 3)  # what was judged already may be enough for one more
    assert stopped.checkpoints == [f"step_{stopped.steps:06d}"]


@pytest.mark.long
def test_it_goes_on_where_it_was_once_the_endpoint_answers_again(stopped: Stopped) -> None:
    assert stopped.resumed == 0, stopped.said_then
    assert f"resuming from step {stopped.steps}" in stopped.said_then
    summary = json.loads((stopped.out / "summary.json").read_text())
    assert (summary["num_steps"], summary["ledger"]["problems"]) == (4, [])
    client = mlflow.MlflowClient(f"sqlite:///{stopped.out / 'mlflow.db'}")
    (record,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert record.info.status == "FINISHED"
    steps = [metric.step for metric in client.get_metric_history(record.info.run_id, "reward/recall/mean")]
    assert steps == [1, 2, 3, 4]


@pytest.mark.long
def test_everything_that_a_run_starts_listens_on_loopback_or_wants_the_clusters_token(stopped: Stopped) -> None:
    titles = {listener.process for listener in stopped.listeners}
    for part in ("gcs_server", "raylet", "ray::ServeReplica", "ray::ProxyActor", "ray::LearnerWorker"):
        assert any(part in title for title in titles), (part, sorted(titles))
    outside = {listener for listener in stopped.listeners if not listener.is_on_loopback}
    unlisted = {listener for listener in outside if not listener.process.startswith(tuple(OPEN_TO_OTHERS))}
    assert not unlisted, sorted(unlisted, key=str)
    for name in OPEN_TO_OTHERS:
        assert any(listener.process.startswith(name) for listener in outside), f"{name} can be taken off the list"
