"""The commit that a run is recorded with."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from rlsys.tracking import provenance


def commit_of(file: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("RLSYS_GIT_COMMIT", raising=False)
    monkeypatch.setattr(provenance, "__file__", str(file))
    return provenance.git_commit()


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    done = subprocess.run(["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A repository that tracks one copy of the module and has another one in an ignored environment."""
    for folder in (tmp_path, tmp_path / ".venv"):
        folder.mkdir(exist_ok=True)
        shutil.copy(provenance.__file__, folder / "provenance.py")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "provenance.py")
    git(tmp_path, "commit", "-q", "-m", "one")
    return tmp_path


def test_the_commit_is_that_of_the_repository_with_changes_marked(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = git(project, "rev-parse", "HEAD")
    assert commit_of(project / "provenance.py", monkeypatch) == commit
    with (project / "provenance.py").open("a") as file:
        file.write("\n")
    assert commit_of(project / "provenance.py", monkeypatch) == f"{commit}-dirty"


def test_an_installed_package_does_not_take_the_commit_of_the_project_around_it(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert commit_of(project / ".venv" / "provenance.py", monkeypatch) == "unknown"
