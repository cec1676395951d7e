"""Runs as MLflow keeps them: in the SQLite file of a run's folder, and on a real server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from rlsys.config.run import RunConfig, parse
from rlsys.tracking.mlflow_store import MlflowRun, flatten, table_json
from rlsys.tracking.sample_rows import choose_samples
from rlsys.tracking.store_address import TrackingError
from rlsys.tracking.tracker import Tracker, status_of
from tests.support.artifacts import artifact_text
from tests.support.factories import make_group, make_scored
from tests.support.pace import patience
from tests.support.tracking_server import TrackingServer

pytestmark = pytest.mark.stack


def make_config(folder: Path, **tracking: object) -> RunConfig:
    tree = {"output_dir": str(folder), "model": {"path": "model"}, "tracking": tracking}
    return parse(tree, source="test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tracking")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real `mlflow server` on loopback."""
    server = TrackingServer(tmp_path_factory.mktemp("mlflow_server"))
    try:
        server.start()
        yield server.uri
    finally:
        server.end()


def artifact(tracker: Tracker, path: str) -> str:
    return artifact_text(MlflowClient(tracker.uri), tracker.run_id, path)


def table(tracker: Tracker, path: str) -> list[Mapping[str, Any]]:
    tree = json.loads(artifact(tracker, path))
    return [dict(zip(tree["columns"], row, strict=True)) for row in tree["data"]]


def record_a_small_run(config: RunConfig) -> Tracker:
    with Tracker(config) as tracker:
        for step in range(1, 13):
            tracker.log_step(step, {"reward/total/mean": step / 10, "time/step_s": 1.0})
            tracker.log_samples(step, [make_scored(make_group(f"clips:{step}"), [0.0, 0.5, 1.0, 0.2])])
        tracker.log_table("held_out", [{"stage": "before", "miou": 0.1}, {"stage": "after", "miou": 0.3, "n": 8}])
        file = config.output_dir / "curve.txt"
        file.write_text("curve")
        tracker.log_artifact(file, "plots")
        model = config.output_dir / "model"
        model.mkdir()
        (model / "config.json").write_text("{}")
        tracker.log_model_folder(model)
    return tracker


def check_a_small_run(tracker: Tracker) -> None:
    client = MlflowClient(tracker.uri)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(tracker.run_id, "reward/total/mean")
    assert [(metric.step, metric.value) for metric in history] == [(step, step / 10) for step in range(1, 13)]
    assert run.data.params["train.num_steps"] == "100"
    assert run.data.params["model.dtype"] == "bfloat16"
    assert run.data.tags["version.ray"]
    assert len(run.data.tags["mlflow.source.git.commit"]) >= 7
    assert "num_steps: 100" in artifact(tracker, "config.yaml")
    assert table(tracker, "tables/held_out.json")[1] == {"stage": "after", "miou": 0.3, "n": 8}
    assert table(tracker, "tables/held_out.json")[0]["n"] is None
    samples = table(tracker, "samples/step_000001_to_000009.json")
    assert len(samples) == 9 * 4
    assert len(table(tracker, "samples/step_000010_to_000012.json")) == 3 * 4
    assert samples[1]["prompt_id"] == "clips:1"
    assert (samples[1]["reward"], samples[1]["score/iou"]) == (0.5, 0.5)
    assert artifact(tracker, "plots/curve.txt") == "curve"
    assert artifact(tracker, "model/config.json") == "{}"
    # MLflow's own reader finds the tables, by the tag that its pages go by as well
    mlflow.set_tracking_uri(tracker.uri)
    loaded = client.load_table(run.info.experiment_id, "tables/held_out.json", [tracker.run_id])
    assert list(loaded["miou"]) == pytest.approx([0.1, 0.3])


def test_a_run_is_kept_in_the_sqlite_file_of_its_folder(folder: Path) -> None:
    tracker = record_a_small_run(make_config(folder / "small"))
    check_a_small_run(tracker)
    assert (folder / "small" / "mlflow.db").exists()
    assert (folder / "small" / "artifacts" / tracker.run_id).is_dir()
    assert MlflowClient(tracker.uri).get_run(tracker.run_id).info.run_name == "small"


def test_a_moved_run_keeps_its_files_beside_its_store(folder: Path) -> None:
    before = record_a_small_run(make_config(folder / "old_place"))
    (folder / "old_place").rename(folder / "new_place")
    note = folder / "note.txt"
    note.write_text("after the move")
    code = (  # in another process, as MLflow remembers where a run's files are
        "from pathlib import Path; from rlsys.config.run import parse; from rlsys.tracking.tracker import Tracker\n"
        f"tree = {{'output_dir': {str(folder / 'new_place')!r}, 'model': {{'path': 'model'}}}}\n"
        f"with Tracker(parse(tree, source='test'), run_id={before.run_id!r}) as tracker:\n"
        f"    tracker.log_artifact(Path({str(note)!r}))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=patience(120.0))
    assert not (folder / "old_place").exists()
    files = folder / "new_place" / "artifacts" / before.run_id / "artifacts"
    assert (files / "note.txt").read_text() == "after the move"
    assert (files / "plots" / "curve.txt").read_text() == "curve"


def test_records_that_wait_in_a_moved_run_go_to_the_store_that_moved_with_it(folder: Path) -> None:
    before = record_a_small_run(make_config(folder / "waiting"))
    (folder / "waiting").rename(folder / "moved_waiting")
    command = [sys.executable, "-m", "rlsys.commands.app", "tracking", "send", str(folder / "moved_waiting"), "--all"]
    sent = subprocess.run(command, check=True, timeout=patience(120.0), capture_output=True, text=True)
    assert f"MLflow run {before.run_id}: uploaded " in sent.stdout + sent.stderr
    assert not (folder / "waiting").exists()


@pytest.mark.stack
def test_a_run_is_kept_on_a_real_server(folder: Path, server: str) -> None:
    config = make_config(folder / "remote", uri=server, experiment="remote", run_name="first")
    check_a_small_run(record_a_small_run(config))
    assert not (folder / "remote" / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("boom"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(143), "KILLED")]
)
def test_the_run_says_how_it_ended(error: BaseException, status: str, folder: Path) -> None:
    with pytest.raises(type(error)), Tracker(make_config(folder / "endings")) as tracker:
        tracker.log_step(1, {"loss/policy": 1.0})
        raise error
    run = MlflowClient(tracker.uri).get_run(tracker.run_id)
    assert run.info.status == status
    assert run.data.metrics == {"loss/policy": 1.0}
    assert run.data.tags.get("error") == ("ValueError: boom" if status == "FAILED" else None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_ends_the_run_as_killed(number: signal.Signals, folder: Path) -> None:
    code = (
        "import sys, time; from rlsys.config.run import parse; from rlsys.tracking.tracker import Tracker\n"
        f"tree = {{'output_dir': {str(folder / 'endings')!r}, 'model': {{'path': 'model'}}}}\n"
        "with Tracker(parse(tree, source='test')) as tracker:\n"
        "    tracker.log_step(1, {'loss/policy': 1.0}); sys.stdout.write(tracker.run_id + '\\n'); sys.stdout.flush()\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code]
    heed = partial(signal.signal, number, signal.SIG_DFL)  # what started the tests may ignore some, as nohup does
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        assert process.stdout is not None
        run_id = process.stdout.readline().strip()
        process.send_signal(number)
        assert process.wait(timeout=patience(60.0)) == 128 + number
    run = MlflowClient(f"sqlite:///{folder / 'endings' / 'mlflow.db'}").get_run(run_id)
    assert (run.info.status, run.data.metrics) == ("KILLED", {"loss/policy": 1.0})


def test_a_resumed_run_goes_on_under_its_id(folder: Path) -> None:
    config = make_config(folder / "resumed")
    with pytest.raises(ValueError, match="crash"), Tracker(config) as first:
        first.log_step(1, {"loss/policy": 1.0})
        first.log_table("one", [{"a": 1}])
        raise ValueError("crash")
    longer = config.model_copy(update={"train": config.train.model_copy(update={"num_steps": 200})})
    with Tracker(longer, run_id=first.run_id) as second:
        assert MlflowClient(second.uri).get_run(second.run_id).info.status == "RUNNING"
        second.log_step(2, {"loss/policy": 0.5})
        second.log_table("two", [{"a": 2}])
    client = MlflowClient(second.uri)
    run = client.get_run(first.run_id)
    assert [metric.step for metric in client.get_metric_history(first.run_id, "loss/policy")] == [1, 2]
    assert (run.info.status, run.data.params["train.num_steps"]) == ("FINISHED", "100")
    assert "num_steps: 200" in artifact(second, "config_start_2.yaml")
    listed = json.loads(run.data.tags["mlflow.loggedArtifacts"])
    assert [entry["path"] for entry in listed] == ["tables/one.json", "tables/two.json"]


def test_an_unknown_run_or_store_is_named(folder: Path) -> None:
    with (
        pytest.raises(TrackingError, match="mlflow.db: Run .*no-such-run"),
        Tracker(make_config(folder / "endings"), run_id="no-such-run"),
    ):
        pass


def test_opening_again_after_a_lost_answer_finds_the_run_that_was_made(folder: Path) -> None:
    store = MlflowRun(f"sqlite:///{folder / 'endings' / 'mlflow.db'}")
    store.create("lost answers", "a run")
    made = store.run_id
    store.create("lost answers", "a run")
    another = MlflowRun(store.uri)
    another.create("lost answers", "a run")
    assert store.run_id == made != another.run_id


def test_numbers_that_are_not_finite_are_skipped_and_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Tracker(make_config(folder / "endings")) as tracker:
        for step in (1, 2):
            tracker.log_step(step, {"loss/policy": float("nan"), "loss/kl": float("inf"), "optim/lr": 0.1})
    metrics = MlflowClient(tracker.uri).get_run(tracker.run_id).data.metrics
    assert metrics == {"optim/lr": 0.1, "perf/nonfinite_metrics": 2.0}
    assert sum("metrics that are not finite" in message for message in caplog.messages) == 1


def test_a_name_that_mlflow_would_mix_up_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="a metric and a folder"), Tracker(make_config(folder / "endings")) as tracker:
        tracker.log_step(1, {"loss/kl": 1.0})
        tracker.log_step(2, {"loss/kl/mean": 1.0})


def test_a_failed_call_surfaces_at_the_latest_when_the_run_ends(folder: Path) -> None:
    with pytest.raises(OSError, match="no_such_file"), Tracker(make_config(folder / "endings")) as tracker:
        tracker.log_artifact(folder / "no_such_file")
    assert MlflowClient(tracker.uri).get_run(tracker.run_id).info.status == "FAILED"


def test_long_config_values_fit_mlflows_limit(folder: Path) -> None:
    weights = {f"task_{index:04d}": {"iou": 1.0} for index in range(3)}
    tree = {"output_dir": str(folder / "endings"), "model": {"path": "m" * 7000}, "reward": {"weights": weights}}
    with Tracker(parse(tree, source="test")) as tracker:
        pass
    params = MlflowClient(tracker.uri).get_run(tracker.run_id).data.params
    assert len(params["model.path"]) == 6000
    assert params["reward.weights.task_0001.iou"] == "1.0"
    assert "m" * 7000 in artifact(tracker, "config.yaml")


def test_recording_a_step_makes_no_call_to_the_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step costs what writing its records to the disk costs: the calls are made by the uploader's thread."""
    callers: list[str] = []
    client_of = MlflowRun._client.fget
    assert client_of is not None
    counted = property(lambda store: callers.append(threading.current_thread().name) or client_of(store))
    metrics = {f"perf/quantity_{index}/mean": float(index) for index in range(70)}
    groups = [make_scored(make_group(f"clips:{index}", num_rollouts=8), [0.5] * 8) for index in range(16)]
    with Tracker(make_config(folder / "endings")) as tracker:
        monkeypatch.setattr(MlflowRun, "_client", counted)
        for step in range(1, 31):
            tracker.log_step(step, metrics)
            tracker.log_samples(step, groups)
        assert threading.current_thread().name not in callers
    assert any(name.startswith("tracking") for name in callers)


@pytest.mark.parametrize("kind", ["sqlite", "server"])
def test_a_model_is_registered_once_and_its_evaluations_are_tags_of_its_version(
    kind: str, folder: Path, server: str
) -> None:
    uri = server if kind == "server" else f"sqlite:///{folder}/registry/mlflow.db"
    model = folder / f"{kind}_model"
    model.mkdir()
    (model / "weights").write_text("first")
    name = f"grounding {kind}"
    config = make_config(folder / f"{kind}_registered", uri=uri, registered_model=name)
    first = {"step": 4, "weights_digest": "sum128-a"}
    with Tracker(config) as run:
        run.log_model_version(name, model, **first, figures={"eval/held/miou": 0.25, "odd": float("nan")})
    (model / "weights").write_text("second")
    with Tracker(config, run_id=run.run_id) as again:
        again.log_model_version(name, model, step=8, weights_digest="sum128-b", figures={})
        again.log_model_version(name, model, step=8, weights_digest="sum128-b", figures={"eval/held/miou": 0.5})
    with Tracker(make_config(folder / f"{kind}_eval", uri=uri)) as evaluation:
        evaluation.log_evaluated(
            run.run_id, **first, figures={"eval/other/miou": 0.75}, report="evaluation/report.html"
        )
        evaluation.log_evaluated(run.run_id, step=5, weights_digest="sum128-a", figures={"x": 1.0}, report="r")
    client = MlflowClient(uri)
    versions = {one.version: one for one in client.search_model_versions(f"name = '{name}'")}
    assert {str(number) for number in versions} == {"1", "2"}
    tags = {str(number): dict(one.tags) for number, one in versions.items()}
    assert tags["1"] == {
        "rlsys.step": "4",
        "rlsys.weights_digest": "sum128-a",
        "eval/held/miou": "0.25",
        "eval/other/miou": "0.75",
        f"rlsys.evaluation.{evaluation.run_id}": "evaluation/report.html",
    }
    assert (tags["2"]["rlsys.step"], tags["2"]["eval/held/miou"]) == ("8", "0.5")
    assert {one.run_id for one in versions.values()} == {run.run_id}
    assert client.get_run(evaluation.run_id).data.tags["rlsys.model_version"] == f"{name}/1"
    assert client.get_run(run.run_id).data.tags["rlsys.model_version"] == f"{name}/2"
    # both versions keep the files that they were made of
    mlflow.set_tracking_uri(uri)
    for number, text in (("1", "first"), ("2", "second")):
        place = mlflow.artifacts.download_artifacts(
            f"models:/{name}/{number}", dst_path=str(folder / f"{kind}{number}")
        )
        assert (Path(place) / "weights").read_text() == text


def test_samples_show_every_prompt_before_a_second_answer_to_one() -> None:
    groups = [
        make_scored(make_group(f"clips:{index}"), [0.0, 1.0, 0.5, 0.5], [False, True, True, True]) for index in (0, 1)
    ]
    rows = choose_samples(3, groups, 3)
    assert [(row["prompt_id"], row["sample_index"]) for row in rows] == [("clips:0", 0), ("clips:1", 0), ("clips:0", 1)]
    assert (rows[0]["reward"], rows[0]["score/iou"], rows[0]["valid"]) == (None, None, False)
    assert (rows[0]["reason"], rows[2]["reward"]) == ("judge timed out", 1.0)
    assert choose_samples(3, groups, 0) == []


def test_flattened_config_and_tables_are_plain() -> None:
    assert flatten({"a": {"b": [1, 2], "c": None}, "d": "x", "e": {}}) == {
        "a.b": "[1, 2]",
        "a.c": "null",
        "d": "x",
        "e": "{}",
    }
    assert json.loads(table_json([{"a": float("nan")}, {"b": 1}])) == {
        "columns": ["a", "b"],
        "data": [[None, None], [None, 1]],
    }
    assert status_of(SystemExit(0)) == "FINISHED"
