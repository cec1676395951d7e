"""What a run needs of the machine that it starts on: a home folder, temporary files, shared memory, an address.

Everything is checked in a moment and before any process starts, because Ray and the libraries would fail late, in
workers, or with a traceback.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import psutil

from cluster.access_token import mode_problem
from cluster.address import cluster_address
from rlsys import env
from rlsys.config.run import ClusterConfig, ConfigError
from rlsys.files import free_files, why_no_temporary_folder, why_not_writable
from rlsys.temporary import MAX_TEMP_DIR, short_temp_dir

SHARED_MEMORY = Path("/dev/shm")
MIN_TEMP_BYTES, MIN_TEMP_FILES = 16 << 20, 400
"""Room for temporary files without which no run is started: the shortest of them leave 1 MiB of logs in 130 files."""
MAX_SLOW_STORE_BYTES = 10_000_000_000
"""Ray refuses to keep a larger object store outside of shared memory, unless RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE."""

CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Files with the memory limit of a container."""

log = logging.getLogger(__name__)


def problems(config: ClusterConfig) -> Iterator[str]:
    """Yield a sentence for each thing that keeps a run from starting on this machine."""
    try:
        address = cluster_address(config)
    except ConfigError as error:
        yield str(error)
        return
    found = list(_temporary_problems(starts_cluster=address is None))
    yield from found
    if address is None:
        yield from _home_problems()
        yield from _compiler_problems(config.device)
        if not found:
            yield from _store_problems(config.object_store_mib)


def _temporary_problems(*, starts_cluster: bool) -> Iterator[str]:
    named = env.read("TMPDIR")
    if named and (why := why_not_writable(Path(named), must_exist=True)):
        yield f"TMPDIR={named}: {why}; give a folder that can be written to and has room, or unset TMPDIR."
        return
    try:
        folder = short_temp_dir()
    except FileNotFoundError as error:
        yield why_no_temporary_folder(error)
        return
    if why := why_not_writable(folder, must_exist=True):
        reason = f"TMPDIR is longer than the {MAX_TEMP_DIR} characters that sockets leave, and " if named else ""
        yield f"{reason}{folder}: {why}; set TMPDIR to a short path that can be written to and has room."
    elif starts_cluster:
        free, files = shutil.disk_usage(folder).free, free_files(folder)
        if free < MIN_TEMP_BYTES or files < MIN_TEMP_FILES:
            yield (
                f"{'TMPDIR=' if named else ''}{folder}: it has {free >> 20} MiB free, for {files:.0f} more files, but "
                f"Ray's logs and sockets and the workers' temporary files take {MIN_TEMP_BYTES >> 20} MiB and "
                f"{MIN_TEMP_FILES} files; free space there, or set TMPDIR to a short path on another disk."
            )


def _home_problems() -> Iterator[str]:
    """Yield why the cluster could have no token, or why Ray could not store it unless there is one."""
    if problem := mode_problem():
        yield problem
        return
    if env.read("RAY_AUTH_TOKEN") or env.read("RAY_AUTH_TOKEN_PATH"):
        return
    try:
        home = Path.home()
    except RuntimeError:
        yield "this user has no home folder, where Ray keeps the token of its cluster; set HOME or RAY_AUTH_TOKEN."
        return
    folder = home / ".ray"
    if os.access(folder / "auth_token", os.R_OK):
        return
    why = why_not_writable(home, must_exist=True) or why_not_writable(folder)
    if why:
        yield (
            f"HOME={home}: {why}, and Ray keeps the token of its cluster in {folder}; set HOME to a folder that can be "
            "written to, or RAY_AUTH_TOKEN to a token of your own."
        )


def _compiler_problems(device: Literal["cpu", "cuda"]) -> Iterator[str]:
    """Yield the caches of compilers that cannot be written: torch ends at its import, vLLM and Triton on GPUs later."""
    of_user = env.read("XDG_CACHE_HOME") or "~/.cache"
    caches = {"TORCHINDUCTOR_CACHE_DIR": "", "TRITON_CACHE_DIR": "~/.triton", "VLLM_CACHE_ROOT": f"{of_user}/vllm"}
    for name, usual in caches.items():
        place = env.read(name) or (usual if device == "cuda" else "")
        if place and (why := why_not_writable(Path(place).expanduser())):
            yield f"{name}={place}: {why}; set it to a folder that can be written to and has room."


def _store_problems(object_store_mib: int) -> Iterator[str]:
    wanted, key = object_store_mib << 20, f"cluster.object_store_mib={object_store_mib}"
    memory = _memory_bytes()
    if wanted > memory:
        yield f"{key} is more than the {memory >> 20} MiB of memory that this machine or container has; lower it."
        return
    shared = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else 0
    if shared >= wanted:
        return
    folder = short_temp_dir()
    lacks = f"{key}: {SHARED_MEMORY} has only {shared >> 20} MiB free"
    remedy = f"free space in {SHARED_MEMORY}, start the container with --shm-size, or lower cluster.object_store_mib"
    if wanted > MAX_SLOW_STORE_BYTES and not env.read("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE"):
        yield f"{lacks}, and Ray keeps so large an object store nowhere else; {remedy}."
    elif (free := shutil.disk_usage(folder).free) < wanted:
        yield f"{lacks}, and {folder}, which would take its place, {free >> 20} MiB; {remedy}."
    else:
        log.warning("%s, so the object store lies in %s and is slow; %s", lacks, folder, remedy)


def _memory_bytes() -> int:
    """Return the bytes of memory of this machine, or of the container if that has less."""
    limits = [psutil.virtual_memory().total]
    for file in CGROUP_LIMITS:
        try:
            limits.append(int(file.read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(limits)
