"""Jobs: what the cluster is sent, and a real one on a real cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster.job_files import SubmitError
from cluster.launch import ROOT
from cluster.submit import entrypoint, submit
from tests.support.cluster import RayHead
from tests.support.pace import patience


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    file = tmp_path / "my run.yaml"
    file.write_text(yaml.safe_dump({"output_dir": str(tmp_path / "out"), "model": {"path": str(tmp_path / "model")}}))
    return file


def test_the_name_of_the_config_survives_the_shell() -> None:
    command = entrypoint(Path("/somewhere/my 'first' $run.yaml"))
    words = subprocess.run(
        ["sh", "-c", f"set -- {command.split('rlsys.commands.app ')[1]}; printf '%s\\n' \"$@\""],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert words == ["train", "submitted/my 'first' $run.yaml"]


@pytest.mark.parametrize("address", ["", "host:8265", "ray://host:1", "http://h:99999", "http://[::1", "http://"])
def test_what_is_no_address_of_a_dashboard_is_refused_before_anything_is_packed(address: str, tmp_path: Path) -> None:
    with pytest.raises(SubmitError, match="give the cluster's dashboard, for example http"):
        submit(tmp_path / "not read.yaml", [], address=address, follow=False)


def test_a_password_in_the_address_of_a_cluster_is_not_shown(config_file: Path) -> None:
    with pytest.raises(SubmitError, match="did not take the job") as error:
        submit(config_file, [], address="http://me:s3cret@127.0.0.1:9", follow=False)
    assert "me:***@127.0.0.1:9" in str(error.value) and "s3cret" not in str(error.value)


def test_an_address_without_a_cluster_is_named(config_file: Path) -> None:
    with pytest.raises(SubmitError, match="dashboard, for example http"):
        submit(config_file, [], address="127.0.0.1:6379", follow=False)
    with pytest.raises(SubmitError, match="cluster at http://127.0.0.1:9 did not take the job"):
        submit(config_file, [], address="http://127.0.0.1:9", follow=False)


def test_the_jobs_python_can_be_named() -> None:
    command = ["sh", str(ROOT / "cluster" / "job_python.sh")]
    done = subprocess.run(command, env={"RLSYS_PYTHON": "/some/python"}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "/some/python"


RUN_NAME = """it's $HOME, a "run" # not: a comment"""

WHAT_THE_JOB_SEES = """
import json, os, pathlib, sys
import rlsys.config.run
config = rlsys.config.run.load(next(pathlib.Path("submitted").iterdir()))
found = {"python": sys.executable, "code": rlsys.config.run.__file__, "commit": os.environ["RLSYS_GIT_COMMIT"]}
store = os.environ.get("MLFLOW_TRACKING_URI", "")[::-1]  # backwards, as this goes to logs
found |= {"run_name": config.tracking.run_name, "store": store}
found |= {"output_dir": str(config.output_dir), "address": os.environ["RAY_ADDRESS"]}
sys.stdout.write("FOUND " + json.dumps(found) + chr(10))
sys.exit(int(sys.argv[1]))
"""


def send(config_file: Path, code: str, ray_head: RayHead, **more: str) -> subprocess.CompletedProcess[str]:
    """`submit` with `code` in place of the training command."""
    sender = (
        "import logging, shlex, sys; from pathlib import Path; from cluster import submit as job\n"
        "logging.basicConfig(level=logging.INFO)\n"
        "file, code, exit_code, address, name = sys.argv[1:]\n"
        "job.entrypoint = lambda *_: '\"$(sh cluster/job_python.sh)\" -c ' + shlex.join([code, exit_code])\n"
        'sys.exit(job.submit(Path(file), [f"tracking.run_name={name}"], address, True))'
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-c", sender, str(config_file), WHAT_THE_JOB_SEES, code, ray_head.dashboard, RUN_NAME],
        cwd=ROOT,
        env={**environment, **ray_head.environment, **more},
        capture_output=True,
        text=True,
        timeout=patience(200.0),
    )


@pytest.mark.parametrize("exit_code", [0, 3])
def test_a_job_runs_the_packed_code_on_the_clusters_python_and_reports_its_status(
    exit_code: int, ray_head: RayHead, config_file: Path
) -> None:
    done = send(config_file, str(exit_code), ray_head, MLFLOW_TRACKING_URI="http://me:hunter2@mlflow:5000")
    assert done.returncode == (1 if exit_code else 0), done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    found = json.loads(line.removeprefix("FOUND "))
    assert found["python"] == sys.executable
    assert "_ray_pkg" in found["code"]
    assert found["output_dir"] == str(config_file.parent / "out")
    assert found["run_name"] == RUN_NAME
    assert found["address"] == ray_head.address
    assert found["store"][::-1] == "http://me:hunter2@mlflow:5000"
    assert "hunter2" not in done.stderr + done.stdout
    assert len(found["commit"]) >= 7
    assert ("FAILED" if exit_code else "SUCCEEDED") in done.stderr


def test_a_cluster_that_wants_a_token_is_explained(ray_head: RayHead, config_file: Path) -> None:
    done = send(config_file, "0", ray_head, RAY_AUTH_MODE="disabled")
    assert done.returncode == 1
    assert "set RAY_AUTH_MODE=token" in done.stderr
