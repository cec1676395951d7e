"""A run's record while the disk of its folder, or that of its store, is full: the run continues, nothing is lost."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.support.mounts import run_with_mounts

RECORDED = """
import os, sys, time
from pathlib import Path
from mlflow import MlflowClient
from rlsys.config.run import parse
from rlsys.tracking.tracker import Tracker
from rlsys.tracking.uploader import Patience

disk, uri, stays_full = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "stays full"
config = parse({"model": {"path": "unused"}, "output_dir": str(disk / "run"), "tracking": {"uri": uri}}, source="test")

def fill():
    file = os.open(disk / "fill", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        while True:
            os.write(file, bytes(4096))
    except OSError:
        os.close(file)

with Tracker(config, patience=Patience(close_s=2 if stays_full else 30, max_pause_s=0.1, together_s=0.05)) as tracker:
    for step in range(1, 31):
        if step == 5:
            fill()
        if step == 20:
            try:
                tracker.sync()
            except OSError as error:
                print("no checkpoint of these steps:", error)
            if not stays_full:
                os.unlink(disk / "fill")
        tracker.log_step(step, {f"reward/{index}/mean": float(step) for index in range(50)})
        tracker._put({"kind": "rows", "step": step, "samples": [{"step": step, "text": "a" * 3000}], "verdicts": []})
        time.sleep(0.05)  # so that the uploader meets the full disk too
client = MlflowClient(tracker.uri)
points = client.get_metric_history(tracker.run_id, "reward/7/mean")
print(client.get_run(tracker.run_id).info.status, [point.value for point in points] == [*map(float, range(1, 31))])
print(sorted(file.path for file in client.list_artifacts(tracker.run_id, "samples")))
"""


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_what_a_full_disk_does_not_take_is_recorded_once_there_is_room(is_elsewhere: bool, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    uri = f"sqlite:///{tmp_path if is_elsewhere else disk}/mlflow.db"
    done = run_with_mounts({disk: "size=8m"}, [sys.executable, "-c", RECORDED, str(disk), uri, ""])
    assert done.returncode == 0, done.stderr
    failed, recorded, samples = done.stdout.splitlines()[-3:]
    assert failed.startswith("no checkpoint of these steps: [Errno 28]")
    assert recorded == "FINISHED True"
    assert samples.count(".json") == 4  # steps 1 to 9, 10 to 19, 20 to 29, 30
    assert re.search(rf"kept in memory: \[Errno 28\] No space left on device: '{disk}/run/tracking/\w+'", done.stderr)
    assert "Traceback" not in done.stderr


def test_what_a_disk_never_takes_is_in_a_store_elsewhere_and_so_is_the_end_of_the_run(tmp_path: Path) -> None:
    disk, uri = tmp_path / "disk", f"sqlite:///{tmp_path}/mlflow.db"
    disk.mkdir()
    done = run_with_mounts({disk: "size=8m"}, [sys.executable, "-c", RECORDED, str(disk), uri, "stays full"])
    assert done.returncode == 0, done.stderr
    failed, recorded, samples = done.stdout.splitlines()[-3:]
    assert failed.startswith("no checkpoint of these steps: [Errno 28]")
    assert recorded == "FINISHED True"
    parts = [(int(first), int(last)) for first, last in re.findall(r"step_(\d+)_to_(\d+)\.json", samples)]
    assert [step for first, last in sorted(parts) for step in range(first, last + 1)] == list(range(1, 31))
    assert "are in MLflow alone" in done.stderr and "are lost" not in done.stderr
    assert "Traceback" not in done.stderr


def test_what_neither_disk_nor_store_takes_is_said_to_be_lost(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    uri = f"sqlite:///{disk}/mlflow.db"
    done = run_with_mounts({disk: "size=8m"}, [sys.executable, "-c", RECORDED, str(disk), uri, "stays full"])
    assert done.returncode == 1
    *_, said = done.stderr.splitlines()
    assert "rlsys.tracking.store_address.TrackingError: " in said
    assert "records of the run could not be written (No space left on device) or sent to MLflow" in said
    assert said.endswith("are lost; free space there and resume the run.")


OPENED = """
import sys
from pathlib import Path
from mlflow import MlflowClient
from rlsys.config.run import parse
from rlsys.tracking.tracker import Tracker

folder, uri = Path(sys.argv[1]), sys.argv[2]
config = parse({"model": {"path": "unused"}, "output_dir": str(folder), "tracking": {"uri": uri}}, source="test")
try:
    with Tracker(config):
        print("opened")
except OSError as error:
    (run,) = MlflowClient(uri).search_runs([MlflowClient(uri).get_experiment_by_name("rlsys").experiment_id])
    print(error)
    print(run.info.status, run.data.tags["error"] == str(error))
"""


@pytest.mark.parametrize(("disk", "why"), [("nr_inodes=2", "No space left on device"), ("ro", "Read-only file system")])
def test_a_run_whose_spool_cannot_be_opened_has_failed_in_mlflow(disk: str, why: str, tmp_path: Path) -> None:
    folder, uri = tmp_path / "run", f"sqlite:///{tmp_path}/mlflow.db"
    (folder / "tracking").mkdir(parents=True)
    done = run_with_mounts({folder / "tracking": disk}, [sys.executable, "-c", OPENED, str(folder), uri])
    said, status = done.stdout.splitlines()
    assert why in said and f"{folder}/tracking/" in said
    assert status == "FAILED True"


KEPT = """
import os, sys, time
from pathlib import Path
from mlflow import MlflowClient
from rlsys.config.run import parse
from rlsys.tracking.tracker import Tracker
from rlsys.tracking.uploader import Patience

disk, uri = Path(sys.argv[1]), sys.argv[2]
config = parse({"model": {"path": "unused"}, "output_dir": str(disk / "run"), "tracking": {"uri": uri}}, source="test")

def recorded(resumed, first, last, is_full):
    with Tracker(config, run_id=resumed, patience=Patience(close_s=2, max_pause_s=0.1, together_s=0.05)) as tracker:
        if is_full:
            with open(disk / "fill", "ab", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError:
                    pass
        for step in range(first, last + 1):
            tracker.log_step(step, {"reward/total/mean": float(step), "time/step_s": 1.0})
            tracker.log_table("t", [{"step": step, "padding": "x" * 4096}])
        return tracker.run_id

run_id = recorded(None, 1, 10, is_full=True)
os.unlink(disk / "fill")
recorded(run_id, 4, 12, is_full=False)
client = MlflowClient(uri)
for name in ("reward/total/mean", "time/step_s"):
    print([point.step for point in client.get_metric_history(run_id, name)] == list(range(1, 13)))
print(client.get_run(run_id).info.status)
"""


def test_steps_that_are_in_a_store_elsewhere_alone_are_not_recorded_again_by_a_resumed_run(tmp_path: Path) -> None:
    disk, uri = tmp_path / "disk", f"sqlite:///{tmp_path}/mlflow.db"
    disk.mkdir()
    done = run_with_mounts({disk: "size=1m"}, [sys.executable, "-c", KEPT, str(disk), uri])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == ["True", "True", "FINISHED"]
    assert "are in MLflow alone" in done.stderr
