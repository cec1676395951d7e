"""The package as it is installed: a wheel in an environment of its own, used outside of the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.launch import PACKAGES
from rlsys.config import bundled
from rlsys.demo.synthetic import draw_dataset
from tests.support.pace import patience
from tests.support.paths import REPO


@dataclass(frozen=True, kw_only=True)
class Installed:
    """wheel: the file.  python: of the environment.  site: its site-packages.  folder: an empty one to work in."""

    wheel: Path
    python: Path
    site: Path
    folder: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            [str(self.python), *command],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=patience(200.0),
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel of this checkout in a fresh environment, which finds all other packages in the present one."""
    base = tmp_path_factory.mktemp("wheel")
    source, site = base / "source", base / "env/lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    for name in (*PACKAGES, "configs"):
        shutil.copytree(REPO / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(REPO / name, source / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    build = ("wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir", str(base / "dist"), str(source))
    subprocess.run([*pip, *build], check=True, timeout=patience(200.0))
    (wheel,) = (base / "dist").iterdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(base / "env")], check=True)
    python = base / "env" / "bin" / "python"
    install = ("--python", str(python), "install", "-q", "--no-deps", "--no-index", str(wheel))
    subprocess.run([*pip, *install], check=True, timeout=patience(200.0))
    _lend_packages(site)
    folder = base / "elsewhere"
    folder.mkdir()
    return Installed(wheel=wheel, python=python, site=site, folder=folder)


def _lend_packages(site: Path) -> None:
    """Put the present environment behind the new one, without the link to this checkout.

    Python reads the `.pth` files of the new one alone, so those of the present one that do something are copied.
    """
    here = Path(sysconfig.get_path("purelib"))
    for file in here.glob("*.pth"):
        if "__editable__" not in file.name:
            shutil.copy(file, site)
    (site / "a_lent.pth").write_text(f"{here}\n")


def test_the_wheel_holds_the_packages_with_their_data_and_nothing_else(installed: Installed) -> None:
    with zipfile.ZipFile(installed.wheel) as wheel:
        names = wheel.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)
    missing = {
        *(f"rlsys/configs/{file.name}" for file in (REPO / "configs").glob("*.yaml")),
        *(
            f"reward_servers/judging/prompts/{file.name}"
            for file in (REPO / "reward_servers/judging/prompts").iterdir()
        ),
        *("rlsys/py.typed", "cluster/job_python.sh", "cluster/grafana/reward_servers.json"),
        *(str(file.relative_to(REPO)) for package in PACKAGES for file in (REPO / package).rglob("*.py")),
    } - set(names)
    assert {name for name in missing if not name.startswith("cluster/install/")} == set()


def test_the_command_shows_its_version(installed: Installed) -> None:
    done = installed.run(str(installed.python.with_name("rlsys")), "--version")
    assert (done.returncode, done.stdout) == (0, "rlsys 0.2.0\n")


CHECK_ALL = """
import json, sys
from typer.testing import CliRunner
from rlsys.commands.app import app
found = {}
for name in json.loads(sys.argv[1]):
    data = sys.argv[2:] if name == "demo.yaml" else []
    result = CliRunner().invoke(app, ["check-config", name, *data])
    found[name] = [result.exit_code, result.output]
print("FOUND " + json.dumps(found))
"""


def test_every_bundled_config_is_found_and_checked_outside_of_the_checkout(installed: Installed) -> None:
    drawn = draw_dataset(installed.folder / "clips", num_clips=16, seed=0)
    data = (f"data.annotations={drawn.annotations}", f"data.videos={drawn.videos}")
    names = bundled.names()
    done = installed.run("-c", CHECK_ALL, json.dumps(names), *data)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.partition("FOUND ")[2])
    assert set(found) == set(names)
    for name in ("demo.yaml", "judge_72b.yaml", "judge_tiny_cpu.yaml"):
        code, output = found.pop(name)
        assert code == 0 and f"{name}: ok" in output, output
    for name, (code, output) in found.items():  # those that want data sets and models of their own
        assert code == 2 and ("data.annotations" in output or "model.path" in output), f"{name}: {output}"


LIST_FILES = """
import json
from cluster.job_files import code_files
from cluster.launch import runtime_env
from rlsys.config.run import ClusterConfig
from rlsys.tracking.provenance import git_commit
files = {str(target): str(source) for target, source in code_files().items()}
path = runtime_env(ClusterConfig(), code="here")["env_vars"].get("PYTHONPATH")
print(json.dumps({"files": files, "path": path, "commit": git_commit()}))
"""


def test_submit_sends_the_installed_packages(installed: Installed) -> None:
    done = installed.run("-c", LIST_FILES)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    files = found["files"]
    assert {name.split("/")[0] for name in files} == set(PACKAGES)
    assert all(source == str(installed.site / name) for name, source in files.items())
    assert {"rlsys/commands/app.py", "cluster/job_python.sh", "rlsys/configs/demo.yaml"} <= set(files)
    assert (found["path"], found["commit"]) == (None, "unknown")
