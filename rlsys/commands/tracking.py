"""`rlsys tracking …`: the part of a run's record that its tracking server has not got."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlsys.commands.errors import clear_errors

tracking_app = typer.Typer(no_args_is_help=True, help="Records that wait for a tracking server.")


@tracking_app.callback()
def _is_a_group() -> None:
    """Without it, typer makes the only command the group itself."""


@tracking_app.command("send")
def send(
    run_folder: Annotated[Path, typer.Argument(help="The run's output_dir.")],
    uri: Annotated[str | None, typer.Option(help="The tracking server, if it has moved.")] = None,
    send_all: Annotated[
        bool, typer.Option("--all", help="Also what the server took already, for one that lost a part of it.")
    ] = False,
    wait_s: Annotated[float, typer.Option(help="Seconds to try while the server takes nothing.")] = 60.0,
) -> None:
    """Send what a run that has ended could not send to MLflow, or make the run anew where MLflow has lost it."""
    from rlsys.tracking.unsent import send as send_waiting
    from rlsys.tracking.uploader import Patience

    with clear_errors():
        for line in send_waiting(run_folder, Patience(close_s=wait_s), uri, is_all_sent_again=send_all):
            typer.echo(line)
