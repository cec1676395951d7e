"""`rlsys debug`: inspect the state that the components of a run hold."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlsys.commands.arguments import CONFIG_HELP, OVERRIDES_HELP
from rlsys.commands.errors import clear_errors

if TYPE_CHECKING:
    from rich.table import Table

    from rlsys.config.run import RunConfig
    from rlsys.weights.check import TensorComparison

debug_app = typer.Typer(no_args_is_help=True, help="Inspect the state that the components of a run hold.")


@debug_app.callback()
def _group() -> None:
    """Keep `debug` a group: typer would make its only command the group itself."""


@debug_app.command()
def weights(
    config: Annotated[Path, typer.Argument(help=CONFIG_HELP)],
    overrides: Annotated[list[str] | None, typer.Argument(help=OVERRIDES_HELP)] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="A run's checkpoint, which the learner loads first, or a model folder to compare with."),
    ] = None,
) -> None:
    """Send the learner's weights to the actors and compare all copies, tensor by tensor.

    Exits with code 1 if any tensor differs.
    """
    from rich.console import Console

    from rlsys.config.run import load

    with clear_errors():
        rows = report(load(config, overrides or ()), checkpoint)
        Console().print(_table(rows))
        differing = [row for row in rows if not row.is_equal]
        which = f": {differing[0].name}, …" if differing else "."
        typer.echo(f"{len(rows)} tensors, {len(differing)} differ{which}")
    if differing:
        raise typer.Exit(1)


def report(config: RunConfig, checkpoint: Path | None) -> list[TensorComparison]:
    """Start the components of a run, send the weights once, and compare each holder's tensors.

    checkpoint: a run's checkpoint, which the learner loads first, or a model folder to compare with.
    """
    from rlsys.config.run import ConfigError
    from rlsys.runs.assemble import open_stack
    from rlsys.runs.inputs.hub_paths import with_local_files
    from rlsys.weights.check import compare

    if config.cluster.colocate:
        raise ConfigError(
            "cluster.colocate=true: `rlsys debug weights` compares what learner and engines hold at the same time; "
            "run it with cluster.colocate=false, on GPUs for both."
        )
    config = with_local_files(config)
    with open_stack(config, ()) as stack:
        stack.load_learner(config)
        folder = checkpoint
        if checkpoint is not None and (checkpoint / "deepspeed").is_dir():
            stack.learner.restore(checkpoint / "deepspeed")
            folder = checkpoint / "model"
        stack.publish(0)
        return compare(stack.learner, stack.pool, 0, folder)


def _table(rows: list[TensorComparison]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, expand=False)
    holders = list(rows[0].findings) if rows else []
    for title in ("tensor", "shape", "dtype", *holders):
        table.add_column(title, overflow="fold")
    for row in rows:
        style = "" if row.is_equal else "bold red"
        shape = " × ".join(map(str, row.spec.shape))
        table.add_row(row.name, shape, row.spec.dtype, *(row.findings[holder] for holder in holders), style=style)
    return table
