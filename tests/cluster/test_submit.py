"""Jobs: what is packed, what is refused, and a real one on a real cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster import submit as job
from cluster.launch import ROOT
from cluster.submit import SubmitError, entrypoint, files_to_pack, pack, submit, with_absolute_paths
from rlsys.config.run import parse
from tests.support.cluster import RayHead
from tests.support.pace import patience


def make_tree(root: Path) -> None:
    for name in (
        "rlsys/commands/app.py",
        "configs/demo.yaml",
        ".git/config",
        "runs/demo/mlflow.db",
        "rlsys/runs/train.py",
        ".env",
        "rlsys/.netrc",
        "rlsys/__pycache__/cli.pyc",
        "rlsys.egg-info/PKG-INFO",
        "myenv/pyvenv.cfg",
        "myenv/lib/torch.so",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "videos").symlink_to("/nowhere")


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    file = tmp_path / "my run.yaml"
    file.write_text(yaml.safe_dump({"output_dir": str(tmp_path / "out"), "model": {"path": str(tmp_path / "model")}}))
    return file


def test_code_is_packed_and_environments_outputs_and_links_are_not(tmp_path: Path) -> None:
    make_tree(tmp_path)
    packed = {str(file.relative_to(tmp_path)) for file in files_to_pack(tmp_path)}
    assert packed == {"rlsys/commands/app.py", "rlsys/runs/train.py", "configs/demo.yaml"}


@pytest.mark.parametrize("name", ["id_rsa", "secrets.yaml", "tls.key", "cluster/credentials.json", "core.4711"])
def test_what_looks_like_a_secret_is_refused_by_name(tmp_path: Path, config_file: Path, name: str) -> None:
    root = tmp_path / "tree"
    make_tree(root)
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text("")
    with pytest.raises(SubmitError, match=name):
        pack(root, config_file, tmp_path / "packed")


def test_this_repository_packs_small_and_with_what_a_job_runs(config_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "packed"
    pack(ROOT, config_file, folder)
    assert (folder / "cluster" / "job_python.sh").exists()
    assert (folder / "rlsys" / "config" / "run.py").exists() and (folder / "rlsys" / "runs" / "train.py").exists()
    assert (folder / "submitted" / "my run.yaml").exists()
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 20 << 20


def test_a_tree_with_data_in_it_is_refused_by_name(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "MAX_PACKED_BYTES", 1 << 20)
    make_tree(tmp_path)
    (tmp_path / "videos.tar").write_bytes(bytes(2 << 20))
    with pytest.raises(SubmitError, match=r"2 MiB to send, the limit is 1 MiB.*videos\.tar \(2\.0 MiB\)"):
        pack(tmp_path, config_file, tmp_path / "packed")


def test_relative_paths_mean_what_they_mean_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tree = {"output_dir": "runs/x", "model": {"path": "/models/qwen"}, "data": {"videos": "clips"}}
    overrides = with_absolute_paths(parse(tree, source="test"), ["seed=1"])
    assert overrides == ["seed=1", f"output_dir={tmp_path}/runs/x", f"data.videos={tmp_path}/clips"]


def test_arguments_survive_the_shell() -> None:
    command = entrypoint(Path("/somewhere/my run.yaml"), ["train.betas=[0.9, 0.95]", "tracking.run_name=a'b"])
    words = subprocess.run(
        ["sh", "-c", f"set -- {command.split('rlsys.commands.app train ')[1]}; printf '%s\\n' \"$@\""],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert words == ["submitted/my run.yaml", "train.betas=[0.9, 0.95]", "tracking.run_name=a'b"]


def test_an_address_without_a_cluster_is_named(config_file: Path) -> None:
    with pytest.raises(SubmitError, match="dashboard, for example http"):
        submit(config_file, [], address="127.0.0.1:6379", follow=False)
    with pytest.raises(SubmitError, match="cluster at http://127.0.0.1:9 did not take the job"):
        submit(config_file, [], address="http://127.0.0.1:9", follow=False)


def test_the_jobs_python_can_be_named() -> None:
    command = ["sh", str(ROOT / "cluster" / "job_python.sh")]
    done = subprocess.run(command, env={"RLSYS_PYTHON": "/some/python"}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "/some/python"


WHAT_THE_JOB_SEES = """
import json, os, pathlib, sys
import rlsys.config.run
config = rlsys.config.run.load(next(pathlib.Path("submitted").iterdir()))
found = {"python": sys.executable, "code": rlsys.config.run.__file__, "commit": os.environ["RLSYS_GIT_COMMIT"]}
found |= {"output_dir": str(config.output_dir), "address": os.environ["RAY_ADDRESS"]}
sys.stdout.write("FOUND " + json.dumps(found) + chr(10))
sys.exit(int(sys.argv[1]))
"""


def send(config_file: Path, code: str, ray_head: RayHead, **more: str) -> subprocess.CompletedProcess[str]:
    """`submit` with `code` in place of the training command."""
    sender = (
        "import logging, shlex, sys; from pathlib import Path; from cluster import submit as job\n"
        "logging.basicConfig(level=logging.INFO)\n"
        "file, code, exit_code, address = sys.argv[1:]\n"
        "job.entrypoint = lambda *_: '\"$(sh cluster/job_python.sh)\" -c ' + shlex.join([code, exit_code])\n"
        "sys.exit(job.submit(Path(file), [], address, True))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-c", sender, str(config_file), WHAT_THE_JOB_SEES, code, ray_head.dashboard],
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
    done = send(config_file, str(exit_code), ray_head)
    assert done.returncode == (1 if exit_code else 0), done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    found = json.loads(line.removeprefix("FOUND "))
    assert found["python"] == sys.executable
    assert "_ray_pkg" in found["code"]
    assert found["output_dir"] == str(config_file.parent / "out")
    assert found["address"] == ray_head.address
    assert len(found["commit"]) >= 7
    assert ("FAILED" if exit_code else "SUCCEEDED") in done.stderr


def test_a_cluster_that_wants_a_token_is_explained(ray_head: RayHead, config_file: Path) -> None:
    done = send(config_file, "0", ray_head, RAY_AUTH_MODE="disabled")
    assert done.returncode == 1
    assert "set RAY_AUTH_MODE=token" in done.stderr
