"""Sends a run to a Ray cluster as a job: the code and the config travel, data and models do not."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from cluster.launch import PACKAGES, ROOT, TOKEN_REMEDY
from rlsys import env
from rlsys.config import run as run_config
from rlsys.config.run import RunConfig
from rlsys.errors import UserError
from rlsys.tracking.provenance import git_commit

env.be_quiet()  # ray reads some of these when it is imported

from ray._private.authentication.authentication_token_setup import (  # noqa: E402
    maybe_enable_token_auth_if_token_available,
)
from ray.exceptions import AuthenticationError  # noqa: E402
from ray.job_submission import JobStatus, JobSubmissionClient  # noqa: E402

log = logging.getLogger(__name__)

MAX_PACKED_BYTES = 64 << 20
OUTPUTS = {"runs", "mlruns", "build", "dist"}
"""Folders of the checkout that no job needs; a package may have a room of that name."""
SECRETS = ("id_rsa*", "id_ed25519*", "id_ecdsa*", "*.pem", "*.key", "*.p12", "secret*.*", "credentials*", "core.[0-9]*")
"""Names of files that nobody means to send; hidden ones, such as .env and .netrc, are never sent."""
SUBMITTED = "submitted"
"""Folder of the packed tree that holds the config."""


class SubmitError(UserError):
    """The job could not be sent; the message names the reason and the remedy."""


Command = Literal["train", "sft"]


def submit(config_path: Path, overrides: Sequence[str], address: str, follow: bool, command: Command = "train") -> int:
    """Exit status: 0 when the job was accepted or, with `follow`, when it succeeded; 1 when it did not.

    command: of `rlsys`, what the job runs.
    address: the cluster's dashboard, http://HOST:8265.  follow: write the job's log to stdout until it ends.
    Raises ConfigError on a config that cannot run there and SubmitError when the cluster does not take the job.
    """
    overrides = with_absolute_paths(run_config.load(config_path, overrides), overrides)
    with tempfile.TemporaryDirectory(prefix="rlsys-submit-") as scratch:
        folder = Path(scratch) / "rlsys"
        pack(ROOT, config_path, folder)
        client, job_id = _send(entrypoint(config_path, overrides, command), folder, address)
    log.info("job %s is on %s", job_id, address)
    if not follow:
        log.info("its log: ray job logs --follow --address %s %s", address, job_id)
        return 0
    asyncio.run(_write_log(client, job_id))
    status = client.get_job_status(job_id)
    message = client.get_job_info(job_id).message
    log.info("job %s: %s%s", job_id, status.value, f" ({message})" if message else "")
    return 0 if status == JobStatus.SUCCEEDED else 1


def with_absolute_paths(config: RunConfig, overrides: Sequence[str]) -> list[str]:
    """`overrides` and, behind them, every relative path of the config as seen from here.

    A job runs in a folder of its own, which Ray removes afterwards: nothing may be written or looked for there.
    The paths must mean the same on the cluster's nodes, as they do on one machine or a shared file system.
    """
    paths: dict[str, Path | None] = {"output_dir": config.output_dir, "model.path": config.model.path}
    paths |= {"data.annotations": config.data.annotations, "data.videos": config.data.videos}
    paths |= {"evaluation.annotations": config.evaluation.annotations, "evaluation.videos": config.evaluation.videos}
    paths["sft.responses"] = config.sft.responses
    relative = {name: path for name, path in paths.items() if path is not None and not path.is_absolute()}
    return [*overrides, *(f"{name}={path.resolve()}" for name, path in relative.items())]


def entrypoint(config_path: Path, overrides: Sequence[str], command: Command = "train") -> str:
    """The job's shell command, run in the packed tree by the interpreter that the cluster's workers run on."""
    arguments = [f"{SUBMITTED}/{config_path.name}", *overrides]
    return f'"$(sh cluster/job_python.sh)" -m rlsys.commands.app {command} {shlex.join(arguments)}'


def pack(root: Path, config_path: Path, folder: Path) -> None:
    """Copy the code in `root` and the config to `folder`.

    Raises SubmitError when it is more than a job should carry, naming what is big.
    """
    files = list(files_to_pack(root))
    secrets = [file for file in files if any(fnmatch(file.name.lower(), pattern) for pattern in SECRETS)]
    if secrets:
        raise SubmitError(f"{secrets[0]} looks like a secret, and a job's files are read on the cluster; move it away.")
    sizes = {file: file.stat().st_size for file in files}
    if sum(sizes.values()) > MAX_PACKED_BYTES:
        biggest = sorted(files, key=lambda file: sizes[file], reverse=True)[:5]
        raise SubmitError(
            f"{root} holds {sum(sizes.values()) / 2**20:.0f} MiB to send, the limit is {MAX_PACKED_BYTES >> 20} MiB. "
            "Keep data, models and outputs outside of it (folders named runs are not sent). Biggest: "
            + ", ".join(f"{file.relative_to(root)} ({sizes[file] / 2**20:.1f} MiB)" for file in biggest)
        )
    for file in files:
        target = folder / file.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, target)
    (folder / SUBMITTED).mkdir()
    shutil.copy2(config_path, folder / SUBMITTED / config_path.name)


def files_to_pack(root: Path) -> Iterable[Path]:
    """The files of the working tree that a job needs: nothing hidden, no environments, outputs or links."""
    for parent, folders, names in os.walk(root):
        here = Path(parent)
        folders[:] = sorted(name for name in folders if _is_packed(here / name, is_top=here == root))
        yield from (here / name for name in sorted(names) if name[0] != "." and not (here / name).is_symlink())


def _is_packed(folder: Path, *, is_top: bool) -> bool:
    name = folder.name
    is_environment = (folder / "pyvenv.cfg").exists()
    is_output = (is_top and name in OUTPUTS) or name in ("__pycache__", "node_modules")
    return not (name.startswith(".") or is_output or name.endswith(".egg-info") or is_environment)


def _send(command: str, folder: Path, address: str) -> tuple[JobSubmissionClient, str]:
    if not address.startswith("http"):
        raise SubmitError(f"--address {address}: give the cluster's dashboard, for example http://HOST:8265.")
    missing = [package for package in PACKAGES if not (folder / package).is_dir()]
    if missing:
        raise SubmitError(f"{ROOT} has no {', '.join(missing)}: submit from a checkout of the repository.")
    variables = {"RLSYS_GIT_COMMIT": git_commit()}
    # `ray start` and ray.init turn tokens on where this user has one; Ray 2.60's job client forgets to
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    try:
        client = JobSubmissionClient(address)
        job_id = client.submit_job(
            entrypoint=command, runtime_env={"working_dir": str(folder), "env_vars": variables}, metadata=variables
        )
    except AuthenticationError as error:
        raise SubmitError(f"the cluster at {address} wants a token. {TOKEN_REMEDY}") from error
    except (ConnectionError, RuntimeError) as error:
        raise SubmitError(f"the cluster at {address} did not take the job: {error}") from error
    return client, job_id


async def _write_log(client: JobSubmissionClient, job_id: str) -> None:
    async for lines in client.tail_job_logs(job_id):
        sys.stdout.write(lines)
        sys.stdout.flush()
