"""A run whose store is lost is made anew whole from its record: nothing is missing, nothing is there twice."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from rlsys.config.run import RunConfig, parse
from rlsys.tracking.spool import POSITION_FILE
from rlsys.tracking.tracker import Tracker
from rlsys.tracking.unsent import current_id
from rlsys.tracking.uploader import Patience
from tests.support.factories import make_group, make_scored
from tests.support.pace import patience
from tests.support.paths import REPO
from tests.support.store_copy import everything_in
from tests.support.tracking_server import TrackingServer

pytestmark = pytest.mark.stack


def make_config(folder: Path, uri: str | None) -> RunConfig:
    tracking = {"uri": uri, "experiment": "mine", "run_name": "first"}
    return parse({"output_dir": str(folder), "model": {"path": "model"}, "tracking": tracking}, source="test")


def log_steps(tracker: Tracker, steps: range) -> None:
    verdict = {"judge": "llm", "model": "m", "recall": [{"event": "A.", "entailed": True, "reason": "r"}]}
    for step in steps:
        scored = make_scored(make_group(f"clips:{step}"), [0.0, 0.5, 1.0, 0.2])
        values = {"reward/total/mean": step / 7, "loss/policy": -float(step), "time/step_s": 1.0}
        tracker.log_step(step, values | ({"loss/kl": float("nan")} if step == 5 else {}))
        tracker.log_samples(step, [replace(scored, evidence=(verdict, None, verdict, None))])


def whole_run(folder: Path, uri: str | None = None) -> str:
    """Record a run of two starts that uses everything a tracker records, and return its id."""
    config, files = make_config(folder, uri), folder.parent / "files"
    (files / "model").mkdir(parents=True)
    (files / "model" / "weights.bin").write_bytes(bytes(range(256)) * 50)
    (files / "curve.txt").write_text("as it was")
    quick = Patience(close_s=patience(60.0), max_pause_s=0.3, together_s=0.1)
    with pytest.raises(ValueError, match="boom"), Tracker(config, patience=quick, tags={"rlsys.note": "a"}) as tracker:
        tracker.log_dataset("clips", "d" * 40, "clips.jsonl", 12, "training")
        log_steps(tracker, range(1, 14))
        tracker.log_table("bad_rows", [{"row": "a", "n": 1}, {"row": "b", "of": None}])
        raise ValueError("boom")
    with Tracker(config, run_id=tracker.run_id, patience=quick) as tracker:
        log_steps(tracker, range(11, 24))  # three of them are recorded already
        tracker.log_tags({"rlsys.note": "b", "rlsys.other": "é" * 300})
        tracker.log_artifact(files / "curve.txt", "plots")
        figures = {"miou": 0.25}
        tracker.log_model_version("tiny", files / "model", step=23, weights_digest="abc", figures=figures)
        tracker.log_table("held_out", [{"stage": "after", "miou": 0.5}])
    shutil.rmtree(files)
    return tracker.run_id


def send(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(sending(folder, *options), capture_output=True, text=True, cwd=REPO, timeout=patience(200.0))


def sending(folder: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "rlsys.commands.app", "tracking", "send", str(folder), *options]


def test_a_server_that_does_not_answer_is_an_error_although_nothing_waits(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with Tracker(make_config(folder, None), patience=Patience(close_s=patience(60.0))) as tracker:
        log_steps(tracker, range(1, 3))
    done = send(folder)
    assert (done.returncode, done.stdout) == (0, f"MLflow run {tracker.run_id}: uploaded 0 records\n")
    done = send(folder, "--uri", "http://127.0.0.1:9", "--wait-s", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{tracker.run_id}: http://127.0.0.1:9 does not say whether it has the run" in done.stderr


def test_a_run_in_a_file_is_made_anew_whole_twice_in_a_row(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    uri, first = f"sqlite:///{folder}/mlflow.db", whole_run(tmp_path / "run")
    before = everything_in(uri, first)
    assert before["num_runs"] == 1 and len(before["metrics"]["loss/policy"]) == 23 and before["info"][1] == "FINISHED"
    assert {"config.yaml", "config_start_2.yaml", "plots/curve.txt"} <= before["artifacts"].keys()
    assert len([name for name in before["artifacts"] if name.startswith("verdicts/")]) == 4
    assert before["versions"] and before["inputs"] and before["tags"]["error"] == "ValueError: boom"
    last = first
    for loss in ("the file", "the file and the artifacts"):
        (folder / "mlflow.db").unlink()
        if "artifacts" in loss:
            shutil.rmtree(folder / "artifacts")
        sent = send(folder)
        assert sent.returncode == 0 and f"MLflow run {last} is not in" in sent.stdout, sent
        last = current_id(folder, first)
        assert everything_in(uri, last) == before, loss
    again = send(folder)
    assert "uploaded 0 records" in again.stdout, again
    assert everything_in(uri, last) == before


@pytest.mark.parametrize("loses_again", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_server_that_dies_while_a_run_is_made_anew_has_it_whole_in_the_end(loses_again: bool, tmp_path: Path) -> None:
    home, folder = tmp_path / "server", tmp_path / "run"
    home.mkdir()
    server = TrackingServer(home)

    def restart(*, empty: bool) -> None:
        server.end(signal.SIGKILL)
        if empty:
            shutil.rmtree(home)
            home.mkdir()
        server.start()

    try:
        server.start()
        first = whole_run(folder, server.uri)
        before = everything_in(server.uri, first)
        restart(empty=True)
        made = subprocess.Popen(sending(folder, "--wait-s", "1"), stderr=subprocess.PIPE, text=True, cwd=REPO)
        wait_for_some_receipts(folder, first, made)
        restart(empty=loses_again)
        _, said = made.communicate(timeout=patience(200.0))
        assert made.returncode == 0 or "records remain" in said, said
        sent = send(folder)
        assert sent.returncode == 0, sent
        assert everything_in(server.uri, current_id(folder, first)) == before
    finally:
        server.end(signal.SIGKILL)


def wait_for_some_receipts(folder: Path, first: str, made: subprocess.Popen[str]) -> None:
    """Wait until the run has a new id and part of its records is acknowledged."""
    deadline = time.monotonic() + patience(100.0)
    while time.monotonic() < deadline and made.poll() is None:
        now = current_id(folder, first)
        if now != first and (folder / "tracking" / now / POSITION_FILE).exists():
            return
        time.sleep(0.01)
    raise AssertionError("nothing was sent")
