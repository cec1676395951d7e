"""All environment variables that rlsys reads or sets, with name, default and purpose."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Variable:
    """An environment variable. default: the value if it is unset; None if there is none."""

    name: str
    default: str | None
    why: str


READ = {
    variable.name: variable
    for variable in (
        Variable(
            name="RLSYS_REWARD_TOKEN",
            default=None,
            why="Bearer token of the reward servers (`reward.token_env` may name another variable); unset: no token.",
        ),
        Variable(
            name="RLSYS_JUDGE_API_KEY",
            default=None,
            why="Key of the judge's endpoints (`reward.judge.api_key_env` may name another variable); unset: none.",
        ),
        Variable(
            name="RLSYS_GIT_COMMIT",
            default=None,
            why="Commit of the code where there is no repository to ask: a submitted job runs from an unpacked copy.",
        ),
        Variable(
            name="RLSYS_PYTHON",
            default=None,
            why="Interpreter that a submitted job runs on; unset: the one that the cluster's workers run on.",
        ),
        Variable(
            name="RLSYS_WORKER_LOGS",
            default=None,
            why="Set to 1 to see what the workers of a cluster print; unset: their logs stay in files.",
        ),
        Variable(
            name="PYTHONPATH",
            default=None,
            why="Kept for workers on this machine, behind the folder of our own code.",
        ),
        Variable(
            name="RAY_JOB_CONFIG_JSON_ENV_VAR",
            default=None,
            why="Set by Ray inside a submitted job, whose working directory brings the code along.",
        ),
        Variable(
            name="MLFLOW_HTTP_REQUEST_TIMEOUT",
            default=None,
            why="Seconds of a call to the tracking server; unset: as `TRACKING_CALLS` says, and more for a file.",
        ),
        Variable(
            name="MLFLOW_TRACKING_URI",
            default=None,
            why="MLflow's own variable: the store of a run whose `tracking.uri` is null; unset: a file of the run.",
        ),
        Variable(
            name="MLFLOW_ALLOW_FILE_STORE",
            default=None,
            why="MLflow's own variable: true where a plain folder may be the store; unset: `tracking.uri` names none.",
        ),
        Variable(
            name="MLFLOW_TRACKING_USERNAME",
            default=None,
            why="MLflow's own variable: the user of its server; `rlsys submit` passes it on to the job.",
        ),
        Variable(
            name="MLFLOW_TRACKING_PASSWORD",
            default=None,
            why="MLflow's own variable: the user's password; `rlsys submit` passes it on to the job.",
        ),
        Variable(
            name="MLFLOW_TRACKING_TOKEN",
            default=None,
            why="MLflow's own variable: a token of its server; `rlsys submit` passes it on to the job.",
        ),
        Variable(
            name="no_proxy",
            default=None,
            why="Hosts that are reached without `http_proxy`; an MLflow server on loopback is added to them.",
        ),
        Variable(
            name="NO_PROXY",
            default=None,
            why="Lower-case spelling of NO_PROXY, which other programs read.",
        ),
        Variable(
            name="XDG_CACHE_HOME",
            default=None,
            why="The user's cache folder, where verdicts of the judge are kept by default; unset: ~/.cache.",
        ),
        Variable(
            name="TORCHINDUCTOR_CACHE_DIR",
            default=None,
            why="Folder of what torch has compiled; unset: in the folder of temporary files.",
        ),
        Variable(
            name="TRITON_CACHE_DIR",
            default=None,
            why="Folder of what Triton has compiled for GPUs; unset: ~/.triton.",
        ),
        Variable(
            name="VLLM_CACHE_ROOT",
            default=None,
            why="Folder of what vLLM keeps between starts; unset: vllm in the user's cache folder.",
        ),
        Variable(
            name="GLOO_SOCKET_IFNAME",
            default=None,
            why="Network interface of gloo; unset: loopback for learner ranks that share a node.",
        ),
        Variable(
            name="NCCL_SOCKET_IFNAME",
            default=None,
            why="Network interface of NCCL; unset: loopback if all that ever join share a node, else the node's.",
        ),
        Variable(
            name="CUDA_VISIBLE_DEVICES",
            default=None,
            why="GPUs that `benchmarks.gpu_check` gives its learner ranks, one each; unset: all of the machine.",
        ),
        Variable(
            name="RAY_ADDRESS",
            default=None,
            why="Cluster to attach to when `cluster.address` is null (HOST:PORT, or auto for one on this machine); "
            "unset or local: one is started. Ray sets it inside a submitted job.",
        ),
        Variable(
            name="RAY_USE_TLS",
            default=None,
            why="Set to 1 where Ray's processes talk through TLS; only Ray can then tell whether a cluster answers.",
        ),
        Variable(
            name="RAY_AUTH_MODE",
            default=None,
            why="Ray's own variable: token, or disabled for a cluster without one; unset: a token is used.",
        ),
        Variable(
            name="RAY_AUTH_TOKEN",
            default=None,
            why="Token of the Ray cluster; unset: the one of `RAY_AUTH_TOKEN_PATH` or of ~/.ray/auth_token.",
        ),
        Variable(
            name="RAY_AUTH_TOKEN_PATH",
            default=None,
            why="File with the token of the Ray cluster.",
        ),
        Variable(
            name="RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE",
            default=None,
            why="Set to 1 to let an object store of over 10 GB lie on a disk where shared memory is too small.",
        ),
        Variable(
            name="TMPDIR",
            default=None,
            why="Folder of temporary files, Ray's logs and sockets among them; unset: /tmp. Workers of a cluster "
            "that is started here get one in it that is removed with the run.",
        ),
    )
}

# Set before Ray, MLflow or vLLM are imported: no usage reports leave the machine, and they log less.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's future default; without it every start warns
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # a bar per checkpoint file, each over in a blink
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "TOKENIZERS_PARALLELISM": "false",  # its threads do not survive the forks of worker processes
}

# Set for every process of a Ray cluster, for the proxy of Ray Serve.
SERVE_PROXY = {
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # on a busy machine it starts in more than the 5 s it is given
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "reward_servers.server.intake.middlewares",  # bounds half-sent ones
}

# Set where calls go to a tracking server: what fails is tried again by `rlsys.tracking.uploader`,
# which can say so and stop.
TRACKING_CALLS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # MLflow's own attempts take four minutes altogether
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}

# Set for every Ray worker of a run on CPU. Engines and learner choose their own thread counts.
CPU_WORKERS = {
    "DS_ACCELERATOR": "cpu",  # DeepSpeed otherwise looks for an accelerator and warns
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine lives in its actor's own process
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # binding to cores makes engines on one machine share them
}

# Set in the process of an engine on CPU alone.
CPU_ENGINE = {
    "TORCHDYNAMO_DISABLE": "1",  # vLLM compiles one small sampling function at its first step, for half a minute
    "VLLM_LOGGING_LEVEL": "ERROR",  # else a dozen warnings at every start, and one for every prompt
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # else a warning about memory binding at every start
    "PYTHONWARNINGS": "ignore::FutureWarning",  # vLLM looks at deprecated names of torch while it is imported
}

# Set for a judge's model that Ray Serve LLM serves on CPU.
CPU_SERVED_MODEL = {
    "OMP_NUM_THREADS": "1",  # more threads than cores make it several times slower
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCHDYNAMO_DISABLE": "1",
}

# Set by each learner rank for itself.
LEARNER_RANK = {"LOCAL_RANK": "0"}  # DeepSpeed asks for it; Ray shows each rank its own device as the first
# The interfaces on which ranks and engines listen depend on where they run: `rlsys.weights.sockets`.


def read(name: str) -> str | None:
    """Return a variable's value, or its default if it is unset or empty. Raises KeyError for an unlisted one."""
    return os.environ.get(name) or READ[name].default


def secret(name: str) -> str | None:
    """Return the secret in a variable that the config names; None if it is unset or empty."""
    return os.environ.get(name, "").strip() or None


def named_cluster(address: str | None) -> str | None:
    """Return the address of the Ray cluster to attach to, None if one is to be started.

    address: the config's; None means what RAY_ADDRESS says. An empty text or "local" asks for a cluster of one's own.
    """
    named = (address if address is not None else read("RAY_ADDRESS") or "").strip()
    return None if named in ("", "local") else named


OWN_SECRETS = frozenset(
    (
        "RLSYS_REWARD_TOKEN",
        "RLSYS_JUDGE_API_KEY",
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
    )
)
"""Secrets that only the driver of a run uses: it passes on what reward servers need."""
_SECRET = re.compile(
    r"(?!RAY_).*(?<![A-Z0-9])(?:API_?KEY|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(?![A-Z0-9])", re.I
)
"""Names of variables with secrets. Ray's own stay: its processes need the cluster's token."""


def secrets() -> frozenset[str]:
    """Return the names of this process's variables that hold secrets, by their names."""
    return frozenset(name for name in os.environ if name in OWN_SECRETS or _SECRET.match(name))


def no_secrets() -> dict[str, str]:
    """Return empty values for `secrets`, for the environment of a process that needs none of them."""
    return dict.fromkeys(sorted(secrets()), "")


@contextmanager
def hidden(names: Iterable[str]) -> Iterator[None]:
    """Take variables out of this process's environment while the processes that inherit it are started."""
    taken = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(taken)


def be_quiet() -> None:
    """Set `QUIET` and `SERVE_PROXY` in this process, except for variables that the user has set.

    Where there is no NVIDIA driver, DeepSpeed is told so: transformers imports it, and its own search warns. Decord
    cannot be imported without PATH.
    """
    os.environ.setdefault("PATH", os.defpath)
    has_driver = Path("/dev/nvidiactl").exists()
    _set_defaults(QUIET | SERVE_PROXY | ({} if has_driver else {"DS_ACCELERATOR": CPU_WORKERS["DS_ACCELERATOR"]}))


def bound_tracking_calls() -> None:
    """Set `TRACKING_CALLS` in this process, except for variables that the user has set."""
    _set_defaults(TRACKING_CALLS)


def _set_defaults(values: Mapping[str, str]) -> None:
    for name, value in values.items():
        os.environ.setdefault(name, value)
