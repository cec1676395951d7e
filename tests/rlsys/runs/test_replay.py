"""Which steps can be done again, and what is said of the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlsys.config.run import parse
from rlsys.loop.state import RunState
from rlsys.runs.records.checkpoint import Checkpoints
from rlsys.runs.records.rollout_store import step_file
from rlsys.runs.records.run_file import RunFile, write_run_file
from rlsys.runs.records.saved_group import FOLDER
from rlsys.runs.replay import Compared, Replayed, ReplayError, possible_steps, replay


def run_folder(tmp_path: Path, *, saved: list[int], checkpoints: list[int]) -> Path:
    (tmp_path / FOLDER).mkdir()
    for step in saved:
        step_file(tmp_path / FOLDER, step).touch()
    keeper = Checkpoints(tmp_path / "checkpoints", keep=9)
    for step in checkpoints:
        state = RunState(step=step, prompts_consumed=step, seed=0, mlflow_run_id="", weights_digest="")
        keeper.save(state, lambda folder: None)
    write_run_file(
        RunFile(mlflow_run_id="abc", config=parse({"output_dir": tmp_path, "model": {"path": "model"}}, source="test"))
    )
    return tmp_path


def test_a_step_starts_from_the_newest_checkpoint_that_rollouts_lead_on_from(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, saved=[3, 4, 5, 6, 8], checkpoints=[2, 4])
    older, newer = (folder / "checkpoints" / name for name in ("step_000002", "step_000004"))
    assert possible_steps(folder) == {3: older, 4: older, 5: newer, 6: newer}


def test_before_the_first_checkpoint_the_model_is_where_to_start(tmp_path: Path) -> None:
    assert possible_steps(run_folder(tmp_path, saved=[1, 2], checkpoints=[])) == {1: None, 2: None}


def test_a_step_that_is_gone_is_refused_with_those_that_are_there(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, saved=[3, 4], checkpoints=[2])
    with pytest.raises(ReplayError, match=r"step 2 cannot be replayed: .* Possible steps: 3, 4\."):
        replay(folder, 2)


def test_a_run_that_the_store_has_lost_is_named_before_anything_is_replayed(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, saved=[3], checkpoints=[2])
    with pytest.raises(ReplayError, match=f"abc not found.*rlsys tracking send {folder}"):
        replay(folder, 3)


def test_a_difference_is_shown_where_there_is_one() -> None:
    nan = float("nan")
    metrics = {
        "loss/total": Compared(recorded=0.5, replayed=0.25),
        "optim/lr": Compared(recorded=1.0, replayed=1.0),
        "policy/x": Compared(recorded=nan, replayed=nan),
    }
    lines = Replayed(step=3, from_step=2, digests=("aa", "bb"), metrics=metrics).lines()
    assert [line.endswith("differs") for line in lines[2:5]] == [True, False, False]
    assert lines[-1] == "weights after the step: DIFFERENT (recorded aa, replayed bb)"
