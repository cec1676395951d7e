"""`run.json`: what is stored of the config."""

from __future__ import annotations

from pathlib import Path

from rlsys.config.run import parse
from rlsys.runs.records.run_file import RUN_FILE, RunFile, read_run_file, write_run_file


def test_the_password_of_the_tracking_server_is_not_stored(tmp_path: Path) -> None:
    tree = {"output_dir": tmp_path, "model": {"path": "/model"}, "tracking": {"uri": "http://me:hunter2@mlflow:5000"}}
    write_run_file(RunFile(mlflow_run_id="abc", config=parse(tree, source="test")))
    assert "hunter2" not in (tmp_path / RUN_FILE).read_text()
    found = read_run_file(tmp_path)
    assert (found.mlflow_run_id, found.config.tracking.uri) == ("abc", "http://me:***@mlflow:5000")
