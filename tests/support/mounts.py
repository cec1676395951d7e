"""Commands that see other file systems than the tests do: small disks, full ones, read-only ones."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.support.pace import patience
from tests.support.paths import REPO


def run_with_mounts(
    mounts: Mapping[Path, str], command: Sequence[str], **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in a mount namespace of its own, with a tmpfs of these options at each path.

    A path with "ro" alone keeps its content, which may be this checkout, and takes no more. Skips the test where that
    is not permitted. Nothing is left mounted: the namespace ends with the command.
    """
    lines = [_mount(shlex.quote(str(path)), options) for path, options in mounts.items()]
    try:
        probe = subprocess.run(
            ["unshare", "-m", "sh", "-c", "mount -t tmpfs none /mnt"], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare, with which disks of any size are made")
    if probe.returncode:
        pytest.skip(f"mounting is not permitted here: {probe.stderr.strip()}")
    script = " && ".join([*lines, 'exec "$@"'])
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *command],
        cwd=REPO,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=patience(120.0),
    )


def _mount(path: str, options: str) -> str:
    if options == "ro":
        return f"mount --bind {path} {path} && mount -o remount,bind,ro {path}"
    return f"mount -t tmpfs -o {shlex.quote(options)} none {path}"
