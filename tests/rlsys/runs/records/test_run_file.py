"""`run.json`: what is stored of the config."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlsys.config.run import parse
from rlsys.runs.records.run_file import (
    BEFORE_FILE,
    RUN_FILE,
    Before,
    RunFile,
    read_before,
    read_run_file,
    write_before,
    write_run_file,
)


def test_the_password_of_the_tracking_server_is_not_stored(tmp_path: Path) -> None:
    tree = {"output_dir": tmp_path, "model": {"path": "/model"}, "tracking": {"uri": "http://me:hunter2@mlflow:5000"}}
    write_run_file(RunFile(mlflow_run_id="abc", config=parse(tree, source="test")))
    assert "hunter2" not in (tmp_path / RUN_FILE).read_text()
    found = read_run_file(tmp_path)
    assert (found.mlflow_run_id, found.config.tracking.uri) == ("abc", "http://me:***@mlflow:5000")


def test_the_initial_evaluation_is_read_as_it_was_written(tmp_path: Path) -> None:
    before = Before(mlflow_run_id="abc", step=3, conditions={"seed": "0"}, held_out={"greedy": {"miou": 0.25}})
    write_before(tmp_path, before)
    assert read_before(tmp_path) == before


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"conditions": {}, "held_out": {}}', "[" * 100_000])
def test_a_damaged_initial_evaluation_is_none(tmp_path: Path, text: str) -> None:
    assert read_before(tmp_path) is None
    (tmp_path / BEFORE_FILE).write_text(text)
    assert read_before(tmp_path) is None
