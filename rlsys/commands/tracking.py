"""`rlsys tracking …`: upload the part of a run's record that its tracking server has not received."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlsys.commands.errors import clear_errors

tracking_app = typer.Typer(no_args_is_help=True, help="Upload records that a tracking server has not received.")


@tracking_app.callback()
def _is_a_group() -> None:
    """Keep `tracking` a group: typer would make its only command the group itself."""


@tracking_app.command("send")
def send(
    run_folder: Annotated[Path, typer.Argument(help="The run's output_dir.")],
    uri: Annotated[str | None, typer.Option(help="URI of the tracking server; default: the one the run used.")] = None,
    send_all: Annotated[
        bool, typer.Option("--all", help="Upload everything again, for a server that has lost data.")
    ] = False,
    wait_s: Annotated[float, typer.Option(help="Seconds to keep trying while the server does not respond.")] = 60.0,
) -> None:
    """Upload what an ended run could not send to MLflow; a run that MLflow has lost is created again."""
    from rlsys.tracking.unsent import send as send_waiting
    from rlsys.tracking.uploader import Patience

    with clear_errors():
        for line in send_waiting(run_folder, Patience(close_s=wait_s), uri, is_all_sent_again=send_all):
            typer.echo(line)
