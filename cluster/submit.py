"""Submit a run to a Ray cluster as a job: the code and the config travel, data and models do not."""

from __future__ import annotations

import asyncio
import logging
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from cluster.job_config import as_yaml, job_config, tracking_variables
from cluster.job_files import SubmitError, code_files, pack, scorer_files
from cluster.launch import TOKEN_REMEDY
from rlsys import env
from rlsys.config import run as run_config
from rlsys.tracking.provenance import git_commit
from rlsys.urls import masked_url, why_not_http

env.be_quiet()  # ray reads some of these when it is imported

from ray._private.authentication.authentication_token_setup import (  # noqa: E402
    maybe_enable_token_auth_if_token_available,
)
from ray.exceptions import AuthenticationError  # noqa: E402
from ray.job_submission import JobStatus, JobSubmissionClient  # noqa: E402

log = logging.getLogger(__name__)

SUBMITTED = "submitted"
"""Folder of the packed tree that holds the config."""


Command = Literal["train", "sft"]


def submit(config_path: Path, overrides: Sequence[str], address: str, follow: bool, command: Command = "train") -> int:
    """Submit a run as a job; return 0 if it was accepted or, with `follow`, if it succeeded, and 1 otherwise.

    command: of `rlsys`, what the job runs.
    address: the cluster's dashboard, http://HOST:8265.  follow: write the job's log to stdout until it ends.
    The overrides become part of the config that is sent, so that no shell reads them.
    Raises ConfigError on a config that cannot run there and SubmitError when the cluster does not take the job.
    """
    if why := why_not_http(address):
        raise SubmitError(
            f"--address {masked_url(address)} {why}; give the cluster's dashboard, for example http://HOST:8265."
        )
    shown = masked_url(address)
    config = job_config(run_config.load(config_path, overrides))
    with tempfile.TemporaryDirectory(prefix="rlsys-submit-") as scratch:
        folder = Path(scratch) / "rlsys"
        scorers = {} if config.reward.url else config.reward.scorers  # running servers import their own
        pack(code_files() | scorer_files(scorers), folder)
        (folder / SUBMITTED).mkdir()
        (folder / SUBMITTED / config_path.name).write_text(as_yaml(config), encoding="utf-8")
        client, job_id = _send(entrypoint(config_path, command), folder, address, tracking_variables(config))
    log.info("job %s is on %s", job_id, shown)
    if not follow:
        log.info("its log: ray job logs --follow --address %s %s", shown, job_id)
        return 0
    asyncio.run(_write_log(client, job_id))
    status = client.get_job_status(job_id)
    message = client.get_job_info(job_id).message
    log.info("job %s: %s%s", job_id, status.value, f" ({message})" if message else "")
    return 0 if status == JobStatus.SUCCEEDED else 1


def entrypoint(config_path: Path, command: Command = "train") -> str:
    """Return the job's shell command, run in the packed tree by the interpreter of the cluster's workers."""
    file = shlex.quote(f"{SUBMITTED}/{config_path.name}")
    return f'"$(sh cluster/job_python.sh)" -m rlsys.commands.app {command} {file}'


def _send(command: str, folder: Path, address: str, tracking: Mapping[str, str]) -> tuple[JobSubmissionClient, str]:
    commit = {"RLSYS_GIT_COMMIT": git_commit()}
    # `ray start` and ray.init turn tokens on where this user has one; Ray 2.60's job client forgets to
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    try:
        client = JobSubmissionClient(address)
        job_id = client.submit_job(
            entrypoint=command,
            runtime_env={"working_dir": str(folder), "env_vars": {**commit, **tracking}},
            metadata=commit,
        )
    except AuthenticationError as error:
        raise SubmitError(f"the cluster at {masked_url(address)} wants a token. {TOKEN_REMEDY}") from error
    except (ConnectionError, RuntimeError) as error:
        raise SubmitError(masked_url(f"the cluster at {address} did not take the job: {error}")) from error
    return client, job_id


async def _write_log(client: JobSubmissionClient, job_id: str) -> None:
    async for lines in client.tail_job_logs(job_id):
        sys.stdout.write(lines)
        sys.stdout.flush()
