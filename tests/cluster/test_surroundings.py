"""What a run needs of its machine is checked before anything starts, on real small, full and read-only disks."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from cluster.surroundings import problems
from rlsys.config.run import ClusterConfig
from rlsys.temporary import MAX_TEMP_DIR
from tests.support.mounts import run_with_mounts

LISTED = """
import json, logging, sys
from cluster.surroundings import problems
from rlsys.config.run import ClusterConfig
logging.basicConfig(format="%(message)s")
print(json.dumps(list(problems(ClusterConfig(object_store_mib=int(sys.argv[1]))))))
"""


def listed(mounts: Mapping[Path, str], mib: int = 100, **variables: str) -> tuple[list[str], str]:
    """The problems that a process finds, and what it logs."""
    done = run_with_mounts(mounts, [sys.executable, "-c", LISTED, str(mib)], **variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.fixture(autouse=True)
def _no_token_and_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)


def test_a_machine_that_lacks_nothing_has_no_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert list(problems(ClusterConfig(object_store_mib=80))) == []
    assert list(tmp_path.iterdir()) == []


def test_a_home_that_is_not_there_or_a_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for home, why in ((tmp_path / "none", "no such folder"), (tmp_path / "file", "not a folder"), ("/proc", "no file")):
        monkeypatch.setenv("HOME", str(home))
        (found,) = problems(ClusterConfig(object_store_mib=80))
        assert found.startswith(f"HOME={home}: {why}")
        assert "set HOME to a folder that can be written to, or RAY_AUTH_TOKEN" in found


def test_a_home_is_not_needed_where_the_token_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/proc/none")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 32)
    assert list(problems(ClusterConfig(object_store_mib=80))) == []
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0" * 32)
    assert list(problems(ClusterConfig(object_store_mib=80))) == []


def test_a_cluster_without_a_token_is_named_before_it_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    (problem,) = problems(ClusterConfig(object_store_mib=80))
    assert problem.startswith("RAY_AUTH_MODE=disabled: ") and "unset RAY_AUTH_MODE" in problem


@pytest.mark.parametrize(("options", "why"), [("ro", "Read-only file system"), ("size=4k", "No space left on device")])
def test_a_home_that_takes_no_file_is_named(options: str, why: str, tmp_path: Path) -> None:
    found, _ = listed({tmp_path: options}, HOME=str(tmp_path))
    assert len(found) == 1
    assert f"HOME={tmp_path}: no file can be written to {tmp_path} ({why})" in found[0]


@pytest.mark.parametrize(("options", "why"), [("ro", "Read-only file system"), ("size=4k", "No space left on device")])
def test_a_temporary_folder_that_takes_no_file_is_named(options: str, why: str, tmp_path: Path) -> None:
    found, _ = listed({tmp_path: options}, TMPDIR=str(tmp_path))
    assert len(found) == 1
    assert found[0].startswith(f"TMPDIR={tmp_path}: no file can be written to {tmp_path} ({why});")


CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "VLLM_CACHE_ROOT")


@pytest.mark.parametrize("name", CACHES)
def test_a_compilers_cache_that_takes_no_file_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for place, why in (("/proc/none", "No such file or directory"), (str(tmp_path / "file"), "Not a directory")):
        monkeypatch.setenv(name, place)
        (found,) = problems(ClusterConfig(object_store_mib=80))
        assert found.startswith(f"{name}={place}: no file can be written to ") and f"({why})" in found
        assert found.endswith("; set it to a folder that can be written to and has room.")
    monkeypatch.setenv(name, str(tmp_path / "made" / "later"))
    assert list(problems(ClusterConfig(object_store_mib=80))) == []
    (found,), _ = listed({tmp_path: "ro"}, **{name: str(tmp_path)})
    assert found.startswith(f"{name}={tmp_path}: no file can be written to {tmp_path} (Read-only file system)")


def test_a_home_without_room_for_compilers_is_named_where_there_are_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/proc/none")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 32)
    for name in (*CACHES, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    triton, vllm = problems(ClusterConfig(object_store_mib=80, device="cuda"))
    assert triton.startswith("TRITON_CACHE_DIR=~/.triton: ") and vllm.startswith("VLLM_CACHE_ROOT=~/.cache/vllm: ")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert list(problems(ClusterConfig(object_store_mib=80, device="cuda"))) == []


@pytest.mark.parametrize(
    ("options", "free"), [("size=8m", "[78] MiB free, for \\d+ more"), ("nr_inodes=300", "MiB free, for 299 more")]
)
def test_a_temporary_folder_with_little_room_is_named(options: str, free: str) -> None:
    with tempfile.TemporaryDirectory(prefix="tt-", dir="/tmp") as folder:
        (found,), _ = listed({Path(folder): options}, TMPDIR=folder)
    assert found.startswith(f"TMPDIR={folder}: it has ")
    assert re.search(f"{free} files, but Ray's logs and sockets and the workers' temporary files take 16 MiB", found)


def test_a_temporary_folder_that_is_missing_is_named_although_python_would_take_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    (found,) = problems(ClusterConfig(object_store_mib=80))
    assert found == (
        f"TMPDIR={tmp_path}/none: no such folder; give a folder that can be written to and has room, or unset TMPDIR."
    )


def test_a_long_temporary_folder_needs_a_short_one_for_sockets() -> None:
    with tempfile.TemporaryDirectory(prefix="x" * MAX_TEMP_DIR, dir="/dev/shm") as long:
        assert listed({Path("/mnt"): "size=1m"}, TMPDIR=long)[0] == []
        found, _ = listed({Path("/tmp"): "ro"}, TMPDIR=long)
    assert any("characters that sockets leave, and /tmp: no file can be written to /tmp" in one for one in found)


def test_an_object_store_that_shared_memory_cannot_hold_lies_on_disk_or_nowhere(tmp_path: Path) -> None:
    small = {Path("/dev/shm"): "size=64m"}
    found, logged = listed(small)
    assert found == []
    assert "cluster.object_store_mib=100: /dev/shm has only 64 MiB free, so the object store lies in" in logged
    found, _ = listed(small | {tmp_path: "size=20m"}, TMPDIR=str(tmp_path))
    if len(str(tmp_path)) <= MAX_TEMP_DIR:
        assert len(found) == 1
        assert f"{tmp_path}, which would take its place, 20 MiB; free space in /dev/shm" in found[0]
    (found_large,) = listed(small, mib=10_000)[0]
    assert found_large.startswith("cluster.object_store_mib=10000")


def test_an_object_store_above_the_machines_memory_is_refused() -> None:
    (found,) = problems(ClusterConfig(object_store_mib=1 << 30))
    assert "of memory that this machine or container has; lower it." in found


def test_what_is_wrong_with_the_address_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/proc/none")
    (found,) = problems(ClusterConfig(address="10.0.0.1"))
    assert found.startswith("cluster.address=10.0.0.1: not HOST:PORT")
    assert list(problems(ClusterConfig(address="10.0.0.1:6379"))) == [], (
        "a cluster elsewhere has its own token and store"
    )


@pytest.mark.stack
def test_a_run_says_all_of_it_in_a_moment_and_starts_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rlsys.commands.app", "train", "demo.yaml", f"output_dir={tmp_path}/run"]
    done = run_with_mounts({Path("/mnt"): "size=1m"}, command, HOME="/proc/none", TMPDIR="/proc/none")
    assert done.returncode == 2, done.stderr
    assert "HOME=/proc/none: no such folder" in done.stderr
    assert "TMPDIR=/proc/none: no such folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert "starting Ray" not in done.stderr
