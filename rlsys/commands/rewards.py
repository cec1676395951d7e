"""`rlsys rewards …`: run reward servers separately from training."""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated

import typer

from rlsys.commands.errors import clear_errors, refuse_secrets
from rlsys.config.run import ConfigError, load_services

log = logging.getLogger(__name__)

rewards_app = typer.Typer(no_args_is_help=True, help="Start, stop and inspect reward servers.")

Services = Annotated[
    list[str] | None,
    typer.Argument(
        help="Optionally a YAML file, of which the sections `reward` and `cluster` are read, then section.key=value "
        "overrides."
    ),
]


@rewards_app.command("serve")
def serve(
    settings: Services = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the servers on the cluster, part of their URL; replaces servers of that name."),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Leave the servers running on the cluster and return.")
    ] = False,
) -> None:
    """Run reward servers separately from training, until interrupted."""
    from cluster.launch import open_cluster
    from reward_servers.server.app import launch
    from rlsys.runs.assemble import launch_rewards

    with clear_errors(), ExitStack() as resources:
        given = settings or []
        has_file = bool(given) and "=" not in given[0]
        run = load_services(Path(given[0]) if has_file else None, given[has_file:])
        cluster = resources.enter_context(open_cluster(run, parts=("rewards",)))
        if not detach:
            url = launch_rewards(run.reward, cluster, resources, with_judge=True, name=name)
            log.info("reward.url=%s  (interrupt to stop)", url)
            with suppress(KeyboardInterrupt):
                threading.Event().wait()
        elif cluster.is_local:
            raise ConfigError(
                "--detach leaves the servers on a cluster that continues to run; "
                "name it with cluster.address=HOST:PORT, or omit --detach."
            )
        else:
            url = launch(run.reward, name)
            log.info("reward.url=%s  (stop it with `rlsys rewards stop %s`)", url, url.rsplit("/", 1)[-1])


@rewards_app.command("stop")
def stop(
    name: Annotated[str, typer.Argument(help="Name of the servers on the cluster.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides as section.key=value; cluster.address names the cluster.")
    ] = None,
) -> None:
    """Stop reward servers that run detached on a cluster; name it with cluster.address=HOST:PORT."""
    from cluster.launch import open_cluster
    from reward_servers.server.app import stop as stop_servers

    with clear_errors(), open_cluster(load_services(None, overrides or []), parts=("rewards",)):
        stop_servers(name)


@rewards_app.command("status")
def status(
    url: Annotated[str, typer.Argument(help="URL of the servers, as `rlsys rewards serve` prints it.")],
    token_env: Annotated[
        str, typer.Option(help="Environment variable that holds the bearer token.")
    ] = "RLSYS_REWARD_TOKEN",
) -> None:
    """Show the replicas, queues, rates, failures and cache hits of running reward servers."""
    from reward_servers.client.transport import fetch_status
    from reward_servers.server.auth import token_from_environment
    from reward_servers.server.status import status_lines

    with clear_errors():
        refuse_secrets("URL", url)
        for line in status_lines(fetch_status(url, token_from_environment(token_env))):
            typer.echo(line)
