"""How the command line tells people what they can put right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from rlsys.errors import UserError


@contextmanager
def clear_errors() -> Iterator[None]:
    """A UserError becomes its message on stderr and exit code 2, without a traceback."""
    try:
        yield
    except UserError as error:
        typer.echo(f"rlsys: {error}", err=True)
        raise typer.Exit(2) from error
