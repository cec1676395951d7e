"""The whole real stack through the command line, on video files: two steps, checks, resume."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import mlflow
import numpy as np
import pytest
from safetensors.numpy import load_file

from rlsys.weights.manifest import NamedTensor, TensorSpec, digest
from tests.support.artifacts import artifact_text
from tests.support.cluster import RayHead
from tests.support.pace import patience
from tests.support.paths import REPO, TEST_DATA
from tests.support.video_files import SHARED_DATA, make_video

NUM_ROWS = 8  # what two steps train on, so that every clip has its turn


@dataclass(frozen=True, kw_only=True)
class Clips:
    """annotations: in the shape of Charades-STA, one row a clip.  videos: the folder of the clips."""

    annotations: Path
    videos: Path


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    """Numbered clips of 6 s, and in place of half of them the real ones where the shared data are there."""
    folder = tmp_path_factory.mktemp("clips")
    annotations, videos = folder / "annotations.json", folder / "videos"
    videos.mkdir()
    rows: dict[str, dict[str, Any]] = {}
    real = SHARED_DATA / "clips"
    if real.is_dir():
        for name, row in json.loads((TEST_DATA / "real_clips.json").read_text()).items():
            (source,) = real.glob(f"{name.removesuffix('.mp4')}.*")
            shutil.copy(source, videos)
            rows[name] = {key: value[:1] if isinstance(value, list) else value for key, value in row.items()}
    for index in range(NUM_ROWS - len(rows)):
        make_video(videos / f"numbered{index}.mp4", size=(112, 112))
        rows[f"numbered{index}"] = {"duration": 6.0, "timestamps": [[index / 2, 4.0]], "sentences": ["bars appear."]}
    annotations.write_text(json.dumps(rows))
    return Clips(annotations=annotations, videos=videos)


def rlsys(*arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlsys.commands.app", *arguments]
    variables = {**os.environ, **(environment or {})}
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=patience(300.0), env=variables)


def on_clips(clips: Clips, out: Path, **more: object) -> list[str]:
    settings = {
        "output_dir": out,
        "model.path": out.parent / "tiny",
        "data.annotations": clips.annotations,
        "data.videos": clips.videos,
        "train.num_steps": 2,
        "train.prompts_per_step": 4,
        "rollout.group_size": 4,
        "checkpoint.every_steps": 1,
        **more,
    }
    return ["configs/demo.yaml", *(f"{key}={value}" for key, value in settings.items())]


def weights_on_disk(folder: Path) -> Mapping[str, NamedTensor]:
    """The exported weights, read by another library than the one that wrote the digest."""
    return {
        name: NamedTensor(
            spec=TensorSpec(shape=array.shape, dtype=str(array.dtype)),
            data=np.ascontiguousarray(array).reshape(-1).view(np.uint8),
        )
        for name, array in load_file(folder / "model.safetensors").items()
    }


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory, clips: Clips) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("end_to_end") / "run"
    held = {"annotations": str(clips.annotations), "name": "held", "max_frames": 4, "num_prompts": 3}
    evaluation = {
        "evaluation.sets": json.dumps([held]),
        "evaluation.every_steps": 1,
        "evaluation.best": "held/read_frac",
        "evaluation.page_rows": 2,
        "checkpoint.keep": 1,
        "tracking.page_every_steps": 2,
        "tracking.samples_per_step": 3,
        "tracking.registered_model": "demo",
    }
    result = rlsys("train", *on_clips(clips, out, **evaluation))
    assert result.returncode == 0, result.stdout + result.stderr
    return out, json.loads((out / "summary.json").read_text())


@dataclass(frozen=True, kw_only=True)
class RewardServers:
    """A process of `rlsys rewards serve`. url: as in `reward.url`.  log: its output."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path


def heed_interrupts() -> None:
    """Let a child take Ctrl-C although what started the tests ignores it, as a shell's background jobs do."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="module")
def reward_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RewardServers]:
    """Reward servers that run alone, and at which runs that know their URL score."""
    command = [sys.executable, "-m", "rlsys.commands.app", "rewards", "serve"]
    log = tmp_path_factory.mktemp("reward_servers") / "log"
    with log.open("w") as output:
        server = subprocess.Popen(
            command, cwd=REPO, stdout=output, stderr=subprocess.STDOUT, preexec_fn=heed_interrupts
        )
    try:
        deadline = time.monotonic() + patience(120.0)
        while not (found := re.search(r"reward\.url=(\S+)", log.read_text())):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.3)
        yield RewardServers(process=server, url=found[1], log=log)
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGINT)  # which ends what it has started
            server.wait(timeout=patience(60.0))


def test_two_steps_leave_everything_a_person_needs(two_steps: tuple[Path, dict[str, Any]]) -> None:
    out, summary = two_steps
    assert summary["num_steps"] == 2
    assert {"collect", "update", "sync"} <= summary["seconds"].keys()
    assert (out / "reward_curve.png").stat().st_size > 1000
    assert json.loads((out / "checkpoints" / "step_000002" / "state.json").read_text())["step"] == 2


def test_the_summary_names_the_exported_weights_by_their_bytes(two_steps: tuple[Path, dict[str, Any]]) -> None:
    out, summary = two_steps
    tensors = dict(weights_on_disk(out / "checkpoints" / "step_000002" / "model"))
    embedding = next(name for name in tensors if name.endswith("embed_tokens.weight"))
    tensors["lm_head.weight"] = tensors[embedding]  # tied, so the file holds it once
    assert digest(tensors) == summary["weights_digest"]


def test_the_run_is_in_mlflow_with_metrics_and_samples(two_steps: tuple[Path, dict[str, Any]]) -> None:
    out, summary = two_steps
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
    run = client.get_run(summary["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "reward/total/mean")
    assert [metric.step for metric in history] == [1, 2]
    assert run.data.metrics["policy/sampler_logprob_diff/max"] <= 1e-4
    # two steps of 4, two evaluations of 3 prompts, and the 3 held out before and after
    assert run.data.metrics["rollout/groups"] == 2 * 4 + 2 * 3 + 2 * 3
    assert run.data.metrics["data/decodes_per_clip"] == 1.0


def test_resume_on_fewer_ranks_and_with_another_algorithm_goes_on_in_the_same_mlflow_run(
    two_steps: tuple[Path, dict[str, Any]], clips: Clips, reward_servers: RewardServers
) -> None:
    out, summary = two_steps
    changes = {
        "reward.url": reward_servers.url,
        "train.num_steps": 3,
        "rollout.num_actors": 1,
        "learner.num_ranks": 1,  # the checkpoint has two
        "algorithm.advantage": "rloo",
        "algorithm.ratio": "sequence",
        "algorithm.loss_mean": "sequence",
        "algorithm.old_policy": "learner",
        "algorithm.sampler_correction": "tis",
        "algorithm.mini_batches": 2,
        "algorithm.epochs_per_batch": 2,
        "algorithm.kl_coef": 0.05,
        "algorithm.kl_in": "reward",
        "algorithm.kl_estimator": "k1",
        "algorithm.max_extra_groups": 2,
        "algorithm.overlong_buffer_tokens": 8,
    }
    result = rlsys("train", *on_clips(clips, out, **changes), "--resume", str(out))
    assert result.returncode == 0, result.stdout + result.stderr
    resumed = json.loads((out / "summary.json").read_text())
    assert (resumed["num_steps"], resumed["mlflow_run_id"]) == (3, summary["mlflow_run_id"])
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
    history = client.get_metric_history(resumed["mlflow_run_id"], "reward/total/mean")
    assert [metric.step for metric in history] == [1, 2, 3]
    metrics = client.get_run(resumed["mlflow_run_id"]).data.metrics
    assert metrics["optim/updates"] == 4
    assert metrics["policy/correction_capped_frac"] == 0
    assert metrics["reward/overlong_penalty/mean"] > 0.5  # an untrained model rarely stops by itself
    assert abs(metrics["reward/kl_penalty/mean"]) > 0  # two updates away from the reference


def test_every_step_is_evaluated_on_data_sets_and_the_best_checkpoint_is_kept(
    two_steps: tuple[Path, dict[str, Any]],
) -> None:
    out, summary = two_steps
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
    run = client.get_run(summary["mlflow_run_id"])
    history = client.get_metric_history(run.info.run_id, "eval/held/miou")
    assert {metric.step for metric in history} >= {1, 2}
    for step in (1, 2):
        folder = out / "evaluation" / f"step_{step:06d}"
        (results,) = json.loads((folder / "results.json").read_text())["sets"]
        assert (results["num_rows"], results["num_rows_of_file"]) == (3, NUM_ROWS)
        protocols = {one["protocol"]: one for one in results["tasks"]["temporal_grounding"]}
        assert protocols["charades_sta/paper"]["metrics"]["num_rows"]["value"] == 3
        assert (folder / "report.html").read_text().count("data:image/jpeg") >= 2 * 4
        names = [file.path for file in client.list_artifacts(run.info.run_id, f"evaluation/step_{step:06d}")]
        assert names == [f"evaluation/step_{step:06d}/report.html"]
    # an untrained model writes nothing that can be read, so the first step stays the best
    best = json.loads((out / "checkpoints" / "best.json").read_text())
    assert best == {"step": 1, "metric": "held/read_frac", "value": best["value"]}
    assert (out / "checkpoints" / "step_000001" / "state.json").exists()
    assert run.data.tags["rlsys.best_step"] == "1"


def test_a_page_of_sampled_responses_is_written_every_so_many_steps(two_steps: tuple[Path, dict[str, Any]]) -> None:
    out, summary = two_steps
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
    assert [file.path for file in client.list_artifacts(summary["mlflow_run_id"], "pages")] == [
        "pages/step_000002.html"
    ]
    page = artifact_text(client, summary["mlflow_run_id"], "pages/step_000002.html")
    assert page == (out / "pages" / "step_000002.html").read_text()
    found = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    rows = json.loads(found[1])
    assert len(rows) == 3 * 4  # three of the four groups, with all their responses
    for start in range(0, 12, 4):
        first, *others = rows[start : start + 4]
        assert len(first["frames"]) >= 4 and all(
            frame["url"].startswith("data:image/jpeg") for frame in first["frames"]
        )
        assert {row["frames_of"] for row in others} == {first["id"]}
    for row in rows:
        assert len(row["spans"]["true"]) == 1 and len(row["texts"]) == 1
        assert {"reward", "format", "iou"} <= row["scores"].keys() and row["score"] == row["scores"]["iou"]


def test_the_final_model_is_a_registered_version_with_the_figures_of_its_evaluations(
    two_steps: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, summary = two_steps
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{out / 'mlflow.db'}")
    found = [one for one in client.search_model_versions("name = 'demo'") if one.tags["rlsys.step"] == "2"]
    assert [(one.run_id, one.tags["rlsys.weights_digest"]) for one in found] == [
        (summary["mlflow_run_id"], summary["weights_digest"])
    ]
    points = client.get_metric_history(summary["mlflow_run_id"], "eval/held/miou")
    figure = next(point.value for point in points if point.step == 2)
    assert float(found[0].tags["eval/held/miou"]) == pytest.approx(figure, rel=1e-5)
    model = client.download_artifacts(summary["mlflow_run_id"], "models/step_000002", str(tmp_path))
    exported = out / "checkpoints" / "step_000002" / "model"
    assert (Path(model) / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()
    assert found[0].source == f"runs:/{summary['mlflow_run_id']}/models/step_000002"


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of the last change of every file in a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(file.relative_to(folder)): (file.stat().st_size, file.stat().st_mtime_ns) for file in files}


def test_a_fork_is_a_run_of_its_own_with_its_parent_recorded_and_leaves_the_other_as_it_was(
    two_steps: tuple[Path, dict[str, Any]], clips: Clips, reward_servers: RewardServers, tmp_path: Path
) -> None:
    out, _ = two_steps
    parent, before = json.loads((out / "run.json").read_text())["mlflow_run_id"], contents(out)
    checkpoint = out / "checkpoints" / "step_000002"
    rows = {
        **json.loads(clips.annotations.read_text()),
        "gone": {"duration": 6.0, "timestamps": [[1.0, 2.0]], "sentences": ["x"]},
    }
    annotations = tmp_path / "rows.json"
    annotations.write_text(json.dumps(rows))
    changes = {"model.path": out.parent / "tiny", "data.annotations": annotations, "train.num_steps": 3}
    small: dict[str, object] = {
        "rollout.num_actors": 1,
        "learner.num_ranks": 1,
        "rollout.group_size": 2,
        "seed": 7,
        "reward.url": reward_servers.url,
    }
    fork = tmp_path / "fork"
    result = rlsys("train", *on_clips(clips, fork, **changes, **small), "--from", str(checkpoint))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "starting a new run from step 2" in result.stderr
    summary = json.loads((fork / "summary.json").read_text())
    assert summary["num_steps"] == 3
    assert (fork / "checkpoints" / "step_000003" / "model" / "config.json").exists()
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{fork / 'mlflow.db'}")
    run = client.get_run(summary["mlflow_run_id"])
    assert run.info.run_id != parent
    assert run.info.status == "FINISHED"
    assert run.data.tags["rlsys.parent_run_id"] == parent
    assert run.data.tags["rlsys.parent_checkpoint"] == str(checkpoint)
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "reward/total/mean")] == [3]
    table = json.loads(artifact_text(client, run.info.run_id, "tables/missing_videos.json"))
    assert dict(zip(table["columns"], table["data"][0], strict=True))["video"] == "gone"
    assert contents(out) == before


def test_check_config_shows_the_token_arithmetic_of_clips_that_do_not_fit(
    clips: Clips, tiny_model_dir: Path, tmp_path: Path
) -> None:
    changes = {"model.path": tiny_model_dir, "model.max_model_len": 64}
    result = rlsys("check-config", *on_clips(clips, tmp_path / "run", **changes))
    assert result.returncode == 2
    assert "max_model_len=64" in result.stderr and "visual" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_config_error_is_one_clear_message_and_exit_code_2(clips: Clips, tmp_path: Path) -> None:
    result = rlsys("train", *on_clips(clips, tmp_path / "run", **{"train.num_step": 3}))
    assert result.returncode == 2
    assert "train.num_step: unknown key" in result.stderr and "Traceback" not in result.stderr


def test_a_second_run_into_the_same_folder_is_refused(two_steps: tuple[Path, dict[str, Any]], clips: Clips) -> None:
    out, _ = two_steps
    result = rlsys("train", *on_clips(clips, out))
    assert result.returncode == 2
    assert "--resume" in result.stderr


def test_a_submitted_job_trains_two_steps_on_the_cluster_it_finds_itself_in(
    ray_head: RayHead, clips: Clips, tiny_model_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    small = {"model.path": tiny_model_dir, "rollout.num_actors": 1, "learner.num_ranks": 1}
    command = [*on_clips(clips, out, **small), "--address", ray_head.dashboard, "--follow"]
    result = rlsys("submit", *command, environment=ray_head.environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "step 2/2" in result.stdout
    summary = json.loads((out / "summary.json").read_text())
    assert summary["num_steps"] == 2
    assert (out / "checkpoints" / "step_000002" / "model" / "config.json").exists()


def test_reward_servers_run_alone_score_rows_and_end_at_an_interrupt(reward_servers: RewardServers) -> None:
    """Last in this file: the servers are gone after it."""
    row = {"rollout_id": "a", "task": "temporal_grounding", "text": "<think>x</think><answer>1.0 to 2.0</answer>"}
    rows = [{**row, "truth": [1.0, 3.0]}]
    reply = httpx.post(f"{reward_servers.url}/v1/score", json={"rows": rows}, timeout=patience(30.0))
    assert reply.status_code == 200, reply.text
    assert reply.json()[0]["scores"] == {"format": 1.0, "iou": 0.5}
    reward_servers.process.send_signal(signal.SIGINT)
    reward_servers.process.wait(timeout=patience(60.0))
    assert "Traceback" not in reward_servers.log.read_text()
