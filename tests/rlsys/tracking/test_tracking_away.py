"""A tracking server that hangs, dies and comes back while runs go on: nothing is lost, nothing is there twice."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from rlsys.commands.app import app
from rlsys.config.run import RunConfig, parse
from rlsys.tracking.spool import SpoolInUseError
from rlsys.tracking.store_address import TrackingError
from rlsys.tracking.tracker import Tracker
from rlsys.tracking.uploader import Patience
from tests.support.artifacts import artifact_text
from tests.support.factories import make_group, make_scored
from tests.support.pace import patience
from tests.support.paths import REPO
from tests.support.tracking_server import TrackingServer

pytestmark = pytest.mark.stack


def quick() -> Patience:
    """Short pauses between attempts, and time enough at the end."""
    return Patience(close_s=patience(20.0), max_pause_s=0.3, together_s=0.1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    server = TrackingServer(tmp_path_factory.mktemp("mlflow_server"))
    try:
        server.start()
        yield server
    finally:
        server.end(signal.SIGKILL)


def make_config(folder: Path, uri: str) -> RunConfig:
    tree = {"output_dir": str(folder), "model": {"path": "model"}, "tracking": {"uri": uri}}
    return parse(tree, source="test")


def say(tracker: Tracker, steps: range) -> float:
    """Seconds that the slowest of these steps took to record."""
    slowest = 0.0
    for step in steps:
        started = time.perf_counter()
        tracker.log_step(step, {"reward/total/mean": step / 7, "loss/policy": -step, "time/step_s": 1.0})
        tracker.log_samples(step, [make_scored(make_group(f"clips:{step}"), [0.0, 0.5, 1.0, 0.2])])
        slowest = max(slowest, time.perf_counter() - started)
    return slowest


def check_once_and_whole(uri: str, run_id: str, num_steps: int) -> None:
    """Every step's metrics and samples are there, in order, one time each."""
    client = MlflowClient(uri)
    for name, factor in (("reward/total/mean", 1 / 7), ("loss/policy", -1)):
        history = client.get_metric_history(run_id, name)
        assert [point.step for point in history] == list(range(1, num_steps + 1))
        assert [point.value for point in history] == pytest.approx([point.step * factor for point in history])
    tables = [file.path for file in client.list_artifacts(run_id, "samples")]
    rows = [row for path in tables for row in table(client, run_id, path)]
    assert [row["step"] for row in rows] == [step for step in range(1, num_steps + 1) for _ in range(4)]


def table(client: MlflowClient, run_id: str, path: str) -> list[dict[str, Any]]:
    tree = json.loads(artifact_text(client, run_id, path))
    return [dict(zip(tree["columns"], row, strict=True)) for row in tree["data"]]


def wait_until_sent(tracker: Tracker) -> None:
    deadline = time.monotonic() + patience(20.0)
    while tracker.num_unsent and time.monotonic() < deadline:
        time.sleep(0.05)
    assert tracker.num_unsent == 0


def test_a_hanging_server_costs_a_step_nothing_and_gets_all_once(
    tmp_path: Path, server: TrackingServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # calls give up before the server continues, which then carries out both them and their repetition
    call_s = math.ceil(patience(1.0))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(call_s))
    caplog.set_level(logging.INFO)
    with Tracker(make_config(tmp_path / "run", server.uri), patience=quick()) as tracker:
        say(tracker, range(1, 6))
        wait_until_sent(tracker)
        server.send_signal(signal.SIGSTOP)
        try:
            assert say(tracker, range(6, 36)) < call_s  # a step that waited for the server would take that long
            tracker.log_table("held_out", [{"miou": 0.5}])
            time.sleep(3.5 * call_s)
            assert tracker.num_unsent == 61
        finally:
            server.send_signal(signal.SIGCONT)
    check_once_and_whole(server.uri, tracker.run_id, 35)
    assert MlflowClient(server.uri).get_run(tracker.run_id).info.status == "FINISHED"
    said = [record.getMessage() for record in caplog.records if record.name == "rlsys.tracking.uploader"]
    assert len(said) == 2, said
    assert server.uri in said[0] and "timed out" in said[0] and "the run continues" in said[0]
    assert "is back after" in said[1]


def test_what_a_dead_server_did_not_take_is_sent_by_the_command(
    tmp_path: Path, server: TrackingServer, caplog: pytest.LogCaptureFixture
) -> None:
    folder, model = tmp_path / "run", tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    curve = tmp_path / "curve.txt"
    with Tracker(make_config(folder, server.uri), patience=Patience(close_s=0.5, max_pause_s=0.2)) as tracker:
        say(tracker, range(1, 4))
        wait_until_sent(tracker)
        server.end(signal.SIGKILL)
        say(tracker, range(4, 13))
        curve.write_text("as it was")
        tracker.log_artifact(curve)
        curve.write_text("as it is now")
        tracker.log_model_folder(model)
        (model / "config.json").unlink()
    assert f"upload them with: rlsys tracking send {folder}" in caplog.text
    failed = CliRunner().invoke(app, ["tracking", "send", str(folder), "--wait-s", "0"])
    assert failed.exit_code == 2 and "records remain" in failed.output
    server.start()
    sent = CliRunner().invoke(app, ["tracking", "send", str(folder)])
    assert sent.exit_code == 0, sent.output
    check_once_and_whole(server.uri, tracker.run_id, 12)
    client = MlflowClient(server.uri)
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert artifact_text(client, tracker.run_id, "curve.txt") == "as it was"
    assert artifact_text(client, tracker.run_id, "model/config.json") == "{}"
    assert "uploaded 0 records" in CliRunner().invoke(app, ["tracking", "send", str(folder)]).output


def test_records_whose_receipt_was_lost_are_sent_again_and_are_there_once(
    tmp_path: Path, server: TrackingServer
) -> None:
    folder = tmp_path / "run"
    with Tracker(make_config(folder, server.uri), patience=quick()) as tracker:
        say(tracker, range(1, 25))
    (folder / "tracking" / tracker.run_id / "position").unlink()
    sent = CliRunner().invoke(app, ["tracking", "send", str(folder)])
    assert "uploaded 50 records" in sent.output  # the start, metrics and rows of 24 steps, and the end
    check_once_and_whole(server.uri, tracker.run_id, 24)


def test_a_killed_drivers_records_are_sent_when_it_goes_on(tmp_path: Path, server: TrackingServer) -> None:
    config = make_config(tmp_path / "run", server.uri)
    code = (
        "import sys, time; from tests.rlsys.tracking.test_tracking_away import *\n"
        f"with Tracker(make_config(Path({str(config.output_dir)!r}), {server.uri!r}), patience=quick()) as tracker:\n"
        "    say(tracker, range(1, 6)); wait_until_sent(tracker)\n"
        "    sys.stdout.write(tracker.run_id + '\\n'); sys.stdout.flush(); sys.stdin.readline()\n"
        "    say(tracker, range(6, 26)); sys.stdout.write('said\\n'); sys.stdout.flush(); time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
    ) as driver:
        assert driver.stdin is not None and driver.stdout is not None
        run_id = driver.stdout.readline().strip()
        with (
            pytest.raises(SpoolInUseError, match="still running"),
            Tracker(config, run_id=run_id, patience=quick()),
        ):
            pass
        server.send_signal(signal.SIGSTOP)
        try:
            driver.stdin.write("\n")
            driver.stdin.flush()
            assert driver.stdout.readline() == "said\n"
            driver.kill()
        finally:
            server.send_signal(signal.SIGCONT)
    # the newest checkpoint is of step 20: five steps are run again, and their record stays as it is
    with Tracker(config, run_id=run_id, patience=quick()) as tracker:
        say(tracker, range(21, 31))
    check_once_and_whole(server.uri, run_id, 30)
    assert MlflowClient(server.uri).get_run(run_id).info.status == "FINISHED"


def test_a_run_that_goes_on_without_its_folder_asks_the_server_for_its_last_step(
    tmp_path: Path, server: TrackingServer
) -> None:
    with Tracker(make_config(tmp_path / "run", server.uri), patience=quick()) as tracker:
        say(tracker, range(1, 10))
    with Tracker(make_config(tmp_path / "copy", server.uri), run_id=tracker.run_id, patience=quick()) as copy:
        say(copy, range(5, 13))
    check_once_and_whole(server.uri, tracker.run_id, 12)


def test_a_refused_record_is_set_aside_and_the_rest_is_sent(tmp_path: Path, server: TrackingServer) -> None:
    folder = tmp_path / "run"
    with Tracker(make_config(folder, server.uri), patience=quick()) as tracker:
        say(tracker, range(1, 3))
        tracker._names.add = lambda names: None  # type: ignore[method-assign]
        tracker.log_step(3, {"reward/total/mean": 3 / 7, "loss/policy": -3, "loss/*": 1.0})
        say(tracker, range(4, 6))
    points = MlflowClient(server.uri).get_metric_history(tracker.run_id, "loss/policy")
    assert [point.step for point in points] == [1, 2, 4, 5]
    (refused,) = folder.glob("tracking/*/refused.jsonl")
    assert '"step":3' in refused.read_text()
    sent = CliRunner().invoke(app, ["tracking", "send", str(folder), "--wait-s", "0"])  # it is offered once more
    assert sent.exit_code == 2 and "1 records remain" in sent.output, sent.output
    assert '"step":3' in refused.read_text()


def test_a_run_that_is_deleted_and_restored_has_all_of_its_record(tmp_path: Path, server: TrackingServer) -> None:
    client = MlflowClient(server.uri)
    with Tracker(make_config(tmp_path / "run", server.uri), patience=quick()) as tracker:
        say(tracker, range(1, 3))
        wait_until_sent(tracker)
        client.delete_run(tracker.run_id)
        say(tracker, range(3, 12))
        time.sleep(0.5)
        assert tracker.num_unsent == 18
        client.restore_run(tracker.run_id)
    check_once_and_whole(server.uri, tracker.run_id, 11)


def test_a_server_that_never_answers_is_named_before_the_run_starts(tmp_path: Path) -> None:
    config = make_config(tmp_path / "run", "http://127.0.0.1:9")
    with pytest.raises(TrackingError, match="http://127.0.0.1:9"), Tracker(config, patience=Patience(close_s=0.5)):
        pass
