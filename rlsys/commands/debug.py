"""`rlsys debug`: look at what the parts of a run really hold."""

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

debug_app = typer.Typer(no_args_is_help=True, help="Look at what the parts of a run really hold.")


@debug_app.callback()
def _group() -> None:
    """A command of its own name, even while there is one."""


@debug_app.command()
def weights(
    config: Annotated[Path, typer.Argument(help=CONFIG_HELP)],
    overrides: Annotated[list[str] | None, typer.Argument(help=OVERRIDES_HELP)] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A run's checkpoint, which the learner then takes up, or a model folder.")
    ] = None,
) -> None:
    """Send the learner's weights to the actors and compare what everybody holds, tensor by tensor.

    Ends with exit code 1 where something differs.
    """
    from rich.console import Console

    from rlsys.config.run import load

    with clear_errors():
        rows = report(load(config, overrides or ()), checkpoint)
    Console().print(_table(rows))
    differing = [row for row in rows if not row.is_equal]
    typer.echo(f"{len(rows)} tensors, {len(differing)} differ" + (f": {differing[0].name}, …" if differing else "."))
    if differing:
        raise typer.Exit(1)


def report(config: RunConfig, checkpoint: Path | None) -> list[TensorComparison]:
    """Open the parts of a run, send the weights once, and compare who holds what.

    checkpoint: of a run, whose state the learner takes up first, or a model folder to compare with.
    """
    from rlsys.runs.assemble import open_stack
    from rlsys.weights.check import compare

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
