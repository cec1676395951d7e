"""The Ray cluster of a run: attach to one or start one, reserve its bundles, leave it as it was found."""

from __future__ import annotations

import logging
import os
import sysconfig
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.access_token import require_token
from cluster.address import Address, cluster_address, require_cluster
from cluster.placement import (
    EVERYTHING,
    Bundle,
    Demand,
    Node,
    Parts,
    PlacementError,
    demand,
    explain,
    logical_cpus,
    plan_placement,
)
from cluster.surroundings import SHARED_MEMORY
from rlsys import env
from rlsys.config.run import ClusterConfig, ConfigError, RunConfig
from rlsys.end_signals import defer_signals
from rlsys.files import why_not_writable
from rlsys.temporary import claim_folder, end_processes_in, variables_for

env.be_quiet()  # ray reads some of these when it is imported

import ray  # noqa: E402
from ray._private import ray_constants  # noqa: E402
from ray._private import utils as ray_utils  # noqa: E402
from ray.exceptions import AuthenticationError, GetTimeoutError  # noqa: E402
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group  # noqa: E402
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy  # noqa: E402

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("rlsys", "actors", "learner", "reward_servers", "cluster")
TOKEN_REMEDY = (
    "To give it one, set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token to the cluster's token."
)
RESERVE_TIMEOUT_S = 120.0
RAY_FOLDER = "r"
"""Inside the run's temporary folder, which only its user can enter: Ray opens its own to everyone."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Cluster:
    """A cluster with room reserved for one run.

    learner_options, actor_options: Ray actor options (resources, scheduling strategy), one mapping a process.
    nodes: the machines as they were when the run was planned.
    """

    nodes: tuple[Node, ...]
    is_local: bool
    learner_options: tuple[dict[str, Any], ...]
    actor_options: tuple[dict[str, Any], ...]


@contextmanager
def open_cluster(config: RunConfig, *, parts: Parts = EVERYTHING) -> Iterator[Cluster]:
    """Open the cluster that `cluster.address` or RAY_ADDRESS names, else one started here on loopback.

    Inside a submitted job Ray itself sets RAY_ADDRESS. A process that is connected already stays so.
    On the way out the reservations go, and the cluster too when it was started here.
    parts: what will run there, and gets room reserved.
    Raises PlacementError when the run does not fit, ConfigError when the address is not one of a cluster.
    """
    wanted = demand(config, parts=parts)
    with _connected(config, wanted) as is_local:
        nodes = living_nodes()
        plan = plan_placement(wanted, nodes)
        if wanted.learner or wanted.actors:
            log.info("room for learner ranks: %s; actors: %s", _counted(plan.learner_nodes), _counted(plan.actor_nodes))
        # the learner first: its ranks talk to each other all the time, so they get first choice of a node
        with _reserved(wanted.learner, "PACK", wanted) as learner, _reserved(wanted.actors, "SPREAD", wanted) as actors:
            if wanted.actor_share:
                learner, actors = (_resized(learner, one) for one in (wanted.rank_share, wanted.actor_share))
            yield Cluster(nodes=nodes, is_local=is_local, learner_options=learner, actor_options=actors)


def living_nodes() -> tuple[Node, ...]:
    """Return the nodes of the connected cluster that are up."""
    return nodes_of(ray.nodes())


def nodes_of(found: Sequence[Mapping[str, Any]]) -> tuple[Node, ...]:
    """Return the nodes that are up of what `ray.nodes` returns, each with a name of its own."""
    alive = [node for node in found if node["Alive"]]
    addresses = [node["NodeManagerAddress"] for node in alive]
    return tuple(
        Node(
            name=address if addresses.count(address) == 1 else f"{address}:{node['NodeManagerPort']}",
            cpus=node["Resources"].get("CPU", 0.0),
            gpus=node["Resources"].get("GPU", 0.0),
        )
        for node, address in zip(alive, addresses, strict=True)
    )


@contextmanager
def _connected(config: RunConfig, wanted: Demand) -> Iterator[bool]:
    """Connect this process; the value says whether the cluster was started here."""
    address = cluster_address(config.cluster)
    if ray.is_initialized():
        yield False
    elif address:
        _attach(config.cluster, address)
        store = ray.cluster_resources().get("object_store_memory", 0.0)
        log.info("its object stores hold %.3g GiB; `rlsys plan` says what a run needs of them", store / 2**30)
        try:
            yield False
        finally:
            ray.shutdown()
    else:
        with _started_here(config.cluster, wanted, unneeded_secrets(config)):
            yield True


def _attach(config: ClusterConfig, address: Address) -> None:
    log.info("attaching to the Ray cluster at %s", address.value)
    require_cluster(address)
    try:
        with _undisturbed():
            ray.init(
                address=address.value,
                logging_level=logging.WARNING,
                log_to_driver=_shows_worker_logs(),
                runtime_env=runtime_env(config, code="there" if env.read("RAY_JOB_CONFIG_JSON_ENV_VAR") else "send"),
            )
    except (AuthenticationError, ConnectionError) as error:  # Ray does not tell a wrong token from a wrong port
        raise ConfigError(
            f"the Ray cluster at {address.value} does not let this process in: {error}\n"
            f"It may want a token. {TOKEN_REMEDY}"
        ) from error
    except RuntimeError as error:
        if "Version mismatch" not in str(error):
            raise
        versions = " ".join(str(error).split())
        raise ConfigError(
            f"{address}: this cluster runs another version of Ray or Python ({versions}); install the same versions "
            "here, or start the cluster from this environment."
        ) from error


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold signals back while Ray starts or is attached to.

    An exception of a signal in one of its callbacks is printed and lost, and its own SIGTERM handler, which is not set
    here, raises one too.
    """
    own = ray_utils.set_sigterm_handler
    ray_utils.set_sigterm_handler = lambda handler: None
    try:
        with defer_signals():
            yield
    finally:
        ray_utils.set_sigterm_handler = own


@contextmanager
def on_loopback() -> Iterator[None]:
    """Keep a cluster that is started inside on loopback.

    Ray 2.60 replaces 127.0.0.1 by the machine's outward address unless it believes in no other machines.
    """
    believed = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = believed


def unneeded_secrets(config: RunConfig) -> frozenset[str]:
    """Return the variables with secrets that no process of the run's own cluster needs.

    The driver passes tokens and keys on itself. Others, such as a key of the user's own service or the token of a
    model hub, stay for custom scorers and for a model that is served beside the judge.
    """
    ours = {*env.OWN_SECRETS, config.reward.token_env, config.reward.judge.api_key_env}
    others_needed = config.reward.scorers or config.reward.judge.serve_model
    return frozenset(ours if others_needed else ours | env.secrets())


@contextmanager
def _started_here(config: ClusterConfig, wanted: Demand, secrets: Collection[str]) -> Iterator[None]:
    require_token()
    folder = claim_folder()
    num_cpus = logical_cpus(wanted, os.cpu_count() or 1)
    # it warns at every start that the cluster asks for a token, which this process has
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    log.info("starting Ray on this machine: %d logical CPUs, %d MiB shared memory", num_cpus, config.object_store_mib)
    failed = True
    try:
        with on_loopback(), env.hidden(secrets):
            _start(config, num_cpus, folder.path / RAY_FOLDER)
        yield
        failed = False
    except (KeyboardInterrupt, SystemExit):  # somebody ended the run, which is no failure of a worker
        failed = False
        raise
    finally:
        # workers look whether their raylet lives, as which one counts that was killed and not waited for
        ray.shutdown(wait_for_processes=True)
        if failed:
            log.warning("the workers' logs are in %s", folder.path / RAY_FOLDER / "session_latest" / "logs")
            for place in (folder.path.parent, SHARED_MEMORY):
                if why := why_not_writable(place):
                    log.warning("%s: %s, which may be the reason", place, why)
        folder.release(keep=failed)


def _start(config: ClusterConfig, num_cpus: int, folder: Path) -> None:
    """Start a cluster of one machine; a second time where Ray gives up waiting for its own processes.

    Ray waits 30 s for them, which no setting changes and a busy machine may exceed.
    """
    for may_retry in (True, False):
        try:
            with _undisturbed():
                ray.init(
                    address="local",
                    num_cpus=num_cpus,
                    object_store_memory=config.object_store_mib << 20,
                    include_dashboard=False,
                    logging_level=logging.WARNING,
                    log_to_driver=_shows_worker_logs(),
                    runtime_env=runtime_env(config, code="here", temporary=folder.parent),
                    _node_ip_address="127.0.0.1",
                    _temp_dir=str(folder),
                )
            return
        except Exception as error:  # Ray raises no narrower one
            if not may_retry or "timed out during startup" not in str(error):
                raise
            log.warning("Ray was not up in the 30 s that it gives itself; starting it once more")
            ray.shutdown(wait_for_processes=True)
            end_processes_in(folder)


def runtime_env(
    config: ClusterConfig, *, code: Literal["here", "send", "there"], temporary: Path | None = None
) -> dict[str, Any]:
    """Return what the run's workers get: environment variables, and the code.

    code: "here" (this machine's own files), "send" (packed and sent), "there" (a submitted job brought it).
    temporary: folder for their temporary files, None for this machine's.
    Packages are sent rather than a working directory, so that workers keep theirs and relative paths hold.
    """
    variables = env.QUIET | env.SERVE_PROXY | (env.CPU_WORKERS if config.device == "cpu" else {})
    if temporary is not None:
        variables = variables | variables_for(temporary)
    if code == "here" and not _is_installed():
        earlier = os.environ.get("PYTHONPATH", "")
        variables = variables | {"PYTHONPATH": os.pathsep.join(path for path in (str(ROOT), earlier) if path)}
    given: dict[str, Any] = {"env_vars": variables}
    return {**given, "py_modules": [str(ROOT / package) for package in PACKAGES]} if code == "send" else given


def _is_installed() -> bool:
    """Return whether the packages lie where workers look anyway.

    In PYTHONPATH that folder would come before Python's own.
    """
    return ROOT in {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}


@contextmanager
def _reserved(bundles: Sequence[Bundle], strategy: str, wanted: Demand) -> Iterator[tuple[dict[str, Any], ...]]:
    """Reserve bundles and yield actor options that use them, one mapping each."""
    if not bundles:
        yield ()
        return
    group = placement_group([bundle.resources() for bundle in bundles], strategy=strategy)
    try:
        _wait_until_ready(group, wanted)
        yield tuple(
            {
                "num_cpus": bundle.cpus,
                "num_gpus": bundle.gpus,
                "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
            }
            for index, bundle in enumerate(bundles)
        )
    finally:
        if ray.is_initialized():
            remove_placement_group(group)


def _resized(options: Sequence[Mapping[str, Any]], share: Bundle) -> tuple[dict[str, Any], ...]:
    """Return the options for a process that takes only this share of each bundle."""
    return tuple({**one, "num_cpus": share.cpus, "num_gpus": share.gpus} for one in options)


def _wait_until_ready(group: PlacementGroup, wanted: Demand) -> None:
    try:
        ray.get(group.ready(), timeout=RESERVE_TIMEOUT_S)
    except GetTimeoutError as error:
        free = ", ".join(f"{amount:g} {name}" for name, amount in ray.available_resources().items() if name in _FREE)
        raise PlacementError(
            f"{explain(wanted, living_nodes())}\nIt would fit an idle cluster, but within {RESERVE_TIMEOUT_S:g} s "
            f"only {free or 'nothing'} was free; wait for other jobs to end."
        ) from error


_FREE = ("CPU", "GPU")


def _shows_worker_logs() -> bool:
    return bool(env.read("RLSYS_WORKER_LOGS"))


def _counted(names: Sequence[str]) -> str:
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "none"
