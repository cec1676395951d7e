"""`rlsys check-config`: what it accepts, and that it leaves no trace."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rlsys.commands.app import app
from rlsys.config import bundled
from rlsys.demo.synthetic import draw_dataset
from tests.support.pace import patience


def files_in(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_tiny_model_that_a_run_would_make_is_checked_and_not_left_behind(empty_folder: Path) -> None:
    clips = draw_dataset(empty_folder / "clips", num_clips=2, seed=0)
    before = files_in(empty_folder)
    given = [f"data.annotations={clips.annotations}", f"data.videos={clips.videos}"]
    done = CliRunner().invoke(app, ["check-config", "demo.yaml", *given])
    assert done.exit_code == 0, done.output
    assert "training rows: " in done.output
    planned = CliRunner().invoke(app, ["plan", "demo.yaml", *given])
    assert planned.exit_code == 0, planned.output
    assert files_in(empty_folder) == before


def test_an_engine_that_cannot_hold_its_longest_sequence_is_a_problem(empty_folder: Path) -> None:
    clips = draw_dataset(empty_folder / "clips", num_clips=2, seed=0)
    given = [f"data.annotations={clips.annotations}", f"data.videos={clips.videos}", "model.max_model_len=8000"]
    done = CliRunner().invoke(app, ["check-config", "demo.yaml", *given, "rollout.kv_cache_mib=8"])
    assert done.exit_code == 2
    said = " ".join(done.output.split())
    found = re.search(r"rollout.kv_cache_mib=8 cannot hold .* model.max_model_len=8000 tokens; raise it to (\d+)", said)
    assert found
    enough = CliRunner().invoke(app, ["check-config", "demo.yaml", *given, f"rollout.kv_cache_mib={found[1]}"])
    assert enough.exit_code == 0, enough.output


@pytest.mark.parametrize("name", ["judge_72b.yaml", "judge_tiny_cpu.yaml"])
def test_a_config_of_reward_servers_alone_can_be_checked(name: str, empty_folder: Path) -> None:
    done = CliRunner().invoke(app, ["check-config", name])
    assert done.exit_code == 0, done.output
    assert f"{name}: ok" in done.output
    assert "judge: " in done.output


def test_problems_of_reward_servers_are_found(empty_folder: Path) -> None:
    done = CliRunner().invoke(app, ["check-config", "judge_72b.yaml", "reward.weights={captoning: {format: 1}}"])
    assert done.exit_code == 2
    assert "reward.weights.captoning: no such task" in done.output


def test_a_custom_scorer_that_cannot_be_imported_is_a_problem(empty_folder: Path) -> None:
    scorer = "reward.scorers={polite: no_such_module:polite}"
    done = CliRunner().invoke(app, ["check-config", "judge_72b.yaml", scorer])
    assert done.exit_code == 2
    assert "module 'no_such_module' cannot be imported" in done.output


def test_custom_scorers_of_servers_that_run_elsewhere_are_not_imported(empty_folder: Path) -> None:
    given = ["reward.scorers={polite: no_such_module:polite}", "reward.url=http://rewards:8000/rewards"]
    done = CliRunner().invoke(app, ["check-config", "judge_72b.yaml", *given])
    assert done.exit_code == 0, done.output


def test_help_and_the_error_list_the_bundled_configs(empty_folder: Path) -> None:
    shown = " ".join(CliRunner().invoke(app, ["check-config", "--help"]).output.split())
    assert all(name in shown for name in bundled.names())
    done = CliRunner().invoke(app, ["check-config", "none.yaml"])
    assert done.exit_code == 2
    assert all(name in done.output for name in bundled.names())


@pytest.mark.parametrize(
    "command",
    [
        ["rewards", "status", "http://me:hunter2@host:8000"],
        ["check-config", "demo.yaml", "reward.url=http://me:hunter2@host"],
        ["check-config", "demo.yaml", "http://me:hunter2@host"],
    ],
)
def test_no_command_shows_the_secret_of_a_url(command: list[str], empty_folder: Path) -> None:
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    assert "hunter2" not in done.output


def test_a_machine_on_which_no_run_can_start_is_a_problem_of_the_config_there(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1")
    done = CliRunner().invoke(app, ["check-config", "judge_72b.yaml"])
    assert done.exit_code == 2
    assert "RAY_ADDRESS=10.0.0.1: not HOST:PORT" in done.output


def test_an_output_folder_behind_a_file_is_a_problem(empty_folder: Path) -> None:
    clips = draw_dataset(empty_folder / "clips", num_clips=2, seed=0)
    (empty_folder / "file").touch()
    given = [f"data.annotations={clips.annotations}", f"data.videos={clips.videos}", "output_dir=file/run"]
    done = CliRunner().invoke(app, ["check-config", "demo.yaml", *given])
    assert done.exit_code == 2
    assert "output_dir=file/run: no file can be written to file" in done.output


def test_a_demo_into_a_folder_that_cannot_be_written_is_refused_at_once(empty_folder: Path) -> None:
    (empty_folder / "file").touch()
    done = CliRunner().invoke(app, ["demo", "--out", "file/demo"])
    assert done.exit_code == 2
    assert "--out file/demo: no file can be written to file" in done.output


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000])
def test_an_output_folder_whose_name_is_too_long_is_a_problem(name: str, empty_folder: Path) -> None:
    clips = draw_dataset(empty_folder / "clips", num_clips=2, seed=0)
    given = [f"data.annotations={clips.annotations}", f"data.videos={clips.videos}", f"output_dir={name}"]
    done = CliRunner().invoke(app, ["check-config", "demo.yaml", *given])
    assert done.exit_code == 2
    assert "File name too long" in done.output


def test_annotations_in_a_fifo_are_refused_and_not_waited_for(empty_folder: Path) -> None:
    clips = draw_dataset(empty_folder / "clips", num_clips=2, seed=0)
    for name in ("fifo.json", "fifo.jsonl", "fifo.csv", "fifo.parquet", "fifo.txt"):
        os.mkfifo(empty_folder / name)
        given = [f"data.annotations={name}", f"data.videos={clips.videos}"]
        done = CliRunner().invoke(app, ["check-config", "demo.yaml", *given])
        assert done.exit_code == 2
        assert f"{name}: cannot be read (not a regular file)" in done.output


def test_a_sequence_longer_than_the_models_positions_is_a_problem(empty_folder: Path) -> None:
    clips = draw_dataset(empty_folder / "clips", num_clips=2, seed=0)
    given = [f"data.annotations={clips.annotations}", f"data.videos={clips.videos}", "rollout.kv_cache_mib=9000"]
    done = CliRunner().invoke(app, ["check-config", "demo.yaml", *given, "model.max_model_len=900000"])
    assert done.exit_code == 2
    assert "model.max_model_len=900000 is above the 8192 positions of the model" in " ".join(done.output.split())


@pytest.mark.parametrize("url", ["http://me:hunter2@host:8000", "host:8000"])
def test_a_judge_that_no_row_needs_is_checked_too(url: str, empty_folder: Path) -> None:
    clips = draw_dataset(empty_folder / "clips", num_clips=2, seed=0)
    given = [f"data.annotations={clips.annotations}", f"data.videos={clips.videos}", f"reward.judge.urls=[{url}]"]
    done = CliRunner().invoke(app, ["check-config", "demo.yaml", *given])
    assert done.exit_code == 2
    assert "reward.judge.urls" in done.output
    assert "hunter2" not in done.output


def test_a_folder_is_no_cache_of_verdicts(empty_folder: Path) -> None:
    given = ["reward.judge.urls=[]", "reward.judge.serve_model=null", "reward.judge.cache_path=."]
    done = CliRunner().invoke(app, ["check-config", "judge_72b.yaml", *given])
    assert done.exit_code == 2
    assert "reward.judge.cache_path=.: it is a folder" in done.output


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="with a driver DeepSpeed finds its accelerator itself")
def test_a_plan_prints_no_warnings_of_libraries(empty_folder: Path) -> None:
    given = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    command = [sys.executable, "-m", "rlsys.commands.app", "plan", str(bundled.FOLDER / "demo.yaml")]
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=patience(300.0), check=True)
    assert done.stdout.startswith("clips and prompts") and not done.stderr
