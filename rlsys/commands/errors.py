"""How the command line tells people what they can put right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from rlsys.end_signals import end_on_signals
from rlsys.errors import UserError


@contextmanager
def clear_errors() -> Iterator[None]:
    """Show a UserError as its message on stderr with exit code 2 and no traceback; end in order on signals."""
    try:
        with end_on_signals():
            yield
    except UserError as error:
        typer.echo(f"rlsys: {error}", err=True)
        raise typer.Exit(2) from error
