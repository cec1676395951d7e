"""Checkpoints: whole or absent, whatever moment the process dies at."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from rlsys.errors import CheckpointError
from rlsys.loop.state import RunState
from rlsys.runs.records import checkpoint
from rlsys.runs.records.checkpoint import Best, Checkpoints, find, load_state
from tests.support.deaths import Killed, die_at
from tests.support.mounts import run_with_mounts
from tests.support.pace import patience

OPERATIONS = ((os, "rename"), (os, "replace"), (os, "fsync"), (shutil, "rmtree"), (Path, "mkdir"), (Path, "unlink"))

STATE = RunState(step=50, prompts_consumed=800, seed=3, mlflow_run_id="abc", weights_digest="d50")


def at_step(step: int) -> RunState:
    return replace(STATE, step=step, prompts_consumed=16 * step, weights_digest=f"d{step}")


def weights_of(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "deepspeed").mkdir()
        (folder / "deepspeed" / "rank0.pt").write_text(text)

    return write


def read_weights(folder: Path) -> str:
    return (folder / "deepspeed" / "rank0.pt").read_text()


def test_a_saved_state_is_found_and_loaded_back(tmp_path: Path) -> None:
    saved = Checkpoints(tmp_path / "checkpoints", keep=2).save(STATE, weights_of("w50"))
    assert saved == tmp_path / "checkpoints" / "step_000050"
    for way_to_say_it in (saved, tmp_path / "checkpoints", tmp_path):
        assert find(way_to_say_it) == saved
    assert load_state(saved) == STATE
    assert read_weights(saved) == "w50"


def test_only_the_newest_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (5, 10, 15, 20):
        checkpoints.save(at_step(step), weights_of(f"w{step}"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_000015", "step_000020"]
    assert (tmp_path / "latest").read_text() == "step_000020\n"


def test_the_best_stays_beside_the_newest_until_another_is_better(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (10, 20, 30, 40, 50):
        checkpoints.save(at_step(step), weights_of(f"w{step}"))
        if step in (10, 50):
            checkpoints.mark_best(Best(step=step, metric="set/miou", value=step / 100))
        expected = {10: [10], 20: [10, 20], 30: [10, 20, 30], 40: [10, 30, 40], 50: [10, 40, 50]}[step]
        assert checkpoints.steps() == expected
    checkpoints.save(at_step(60), weights_of("w60"))
    assert checkpoints.steps() == checkpoints.recent_steps() == [50, 60]
    assert checkpoints.best("set/miou") == Best(step=50, metric="set/miou", value=0.5)
    assert checkpoints.best("set/accuracy") is None
    assert find(tmp_path).name == "step_000060"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"step": "x"}', '{"step": 7, "metric": "set/miou", "value": 1.0}'])
def test_a_mark_of_the_best_that_is_damaged_or_dangling_is_none(tmp_path: Path, text: str) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(at_step(10), weights_of("w10"))
    (tmp_path / "best.json").write_text(text)
    assert checkpoints.best("set/miou") is None
    checkpoints.save(at_step(20), weights_of("w20"))
    assert checkpoints.steps() == [20]


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.write_bytes(b"\xff\0")])
def test_a_name_of_the_newest_that_cannot_be_read_is_passed_over(make: Callable[[Path], None], tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        checkpoints.save(at_step(step), lambda folder: None)
    (tmp_path / "latest").unlink()
    make(tmp_path / "latest")
    assert find(tmp_path).name == "step_000002"


def test_a_run_that_went_back_resumes_from_what_it_saved_last(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (50, 100, 75):
        checkpoints.save(at_step(step), weights_of(f"w{step}"))
    assert find(tmp_path).name == "step_000075"
    checkpoints.save(at_step(100), weights_of("w100 again"))
    assert read_weights(find(tmp_path)) == "w100 again"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_000075", "step_000100"]


def test_a_failing_writer_leaves_the_earlier_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(at_step(5), weights_of("w5"))

    def fail(folder: Path) -> None:
        (folder / "half").write_text("…")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(at_step(10), fail)
    assert find(tmp_path).name == "step_000005"
    checkpoints.save(at_step(10), weights_of("w10"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_000010"]


@pytest.mark.parametrize("new_step", [10, 5])
def test_death_at_any_operation_of_a_save_leaves_a_whole_checkpoint(new_step: int, tmp_path: Path) -> None:
    survived = set()
    for call in range(1, 40):
        folder = tmp_path / str(call)
        checkpoints = Checkpoints(folder, keep=1)
        checkpoints.save(at_step(5), weights_of("old"))
        with pytest.MonkeyPatch.context() as monkeypatch:
            die_at(call, monkeypatch, OPERATIONS)
            try:
                checkpoints.save(at_step(new_step), weights_of("new"))
                finished = True
            except Killed:
                finished = False
        survivor = find(folder)
        assert (load_state(survivor), read_weights(survivor)) in [(at_step(5), "old"), (at_step(new_step), "new")]
        survived.add(read_weights(survivor))
        checkpoints.save(at_step(new_step), weights_of("again"))
        assert read_weights(find(folder)) == "again"
        checkpoints.save(at_step(15), weights_of("next"))
        assert sorted(path.name for path in folder.iterdir()) == ["latest", "step_000015"]
        if finished:
            break
    assert finished
    assert survived == {"old", "new"}


def test_a_process_killed_while_writing_leaves_nothing_to_load(tmp_path: Path) -> None:
    code = (
        "import os, signal; from pathlib import Path; from rlsys.runs.records.checkpoint import *\n"
        "def write(folder):\n"
        "    (folder / 'half').write_text('x'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "state = RunState(step=1, prompts_consumed=1, seed=0, mlflow_run_id='', weights_digest='')\n"
        f"Checkpoints(Path({str(tmp_path)!r}), keep=1).save(state, write)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=patience(60.0))
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(CheckpointError, match=r"only unfinished ones \(\.tmp-step_000001\)"):
        find(tmp_path)
    with pytest.raises(CheckpointError):
        find(tmp_path / ".tmp-step_000001")


def test_errors_say_what_was_found_instead(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        find(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="found none"):
        find(tmp_path)
    (tmp_path / "config.json").touch()
    with pytest.raises(CheckpointError, match=f"model folder set model.path={tmp_path}"):
        find(tmp_path)
    with pytest.raises(ValueError, match="keep=0"):
        Checkpoints(tmp_path, keep=0)
    saved = Checkpoints(tmp_path, keep=1).save(STATE, weights_of("w"))
    tree = json.loads((saved / checkpoint.STATE_FILE).read_text())
    (saved / checkpoint.STATE_FILE).write_text(json.dumps({**tree, "format": 99}))
    with pytest.raises(CheckpointError, match="another version"):
        load_state(saved)
    del tree["prompts_consumed"]
    (saved / checkpoint.STATE_FILE).write_text(json.dumps(tree))
    with pytest.raises(CheckpointError, match="has the keys"):
        load_state(saved)
    (saved / checkpoint.STATE_FILE).write_text("{")
    with pytest.raises(CheckpointError, match="not the state"):
        load_state(saved)


SAVED = """
import os, sys
from pathlib import Path
from rlsys.loop.state import RunState
from rlsys.runs.records.checkpoint import Checkpoints

folder = Path(sys.argv[1])
checkpoints = Checkpoints(folder, keep=2)

def write(place):
    for index in range(20):
        (place / str(index)).touch()

for step in (1, 2):
    try:
        state = RunState(step=step, prompts_consumed=step, seed=0, mlflow_run_id="r", weights_digest="d")
        print(checkpoints.save(state, write).name)
    except OSError as error:
        print(error)
    print(sorted(path.name for path in folder.glob("*step*")))
"""


def test_a_disk_without_inodes_for_another_checkpoint_keeps_the_one_it_has(tmp_path: Path) -> None:
    done = run_with_mounts({tmp_path: "nr_inodes=40"}, [sys.executable, "-c", SAVED, str(tmp_path)])
    assert done.returncode == 0, done.stderr
    saved, _, said, left = done.stdout.splitlines()
    assert saved == "step_000001" and left == "['step_000001']"
    assert re.fullmatch(
        rf"\[Errno 28\] a checkpoint has 22 files and the disk can hold only 1\d more \(df -i\): '{tmp_path}'", said
    )
