"""How the command line shows errors that a person can fix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from rlsys.config.part import ConfigError
from rlsys.end_signals import end_on_signals
from rlsys.errors import UserError
from rlsys.urls import has_secret, masked_url


@contextmanager
def clear_errors() -> Iterator[None]:
    """Show a UserError as its message on stderr with exit code 2 and no traceback; end in order on signals."""
    try:
        with end_on_signals():
            yield
    except UserError as error:
        typer.echo(f"rlsys: {error}", err=True)
        raise typer.Exit(2) from error


def refuse_secrets(option: str, url: str) -> None:
    """Raises ConfigError, which does not repeat it, for a URL with a secret in it."""
    if has_secret(url):
        raise ConfigError(f"{option} {masked_url(url)} holds a secret; give it in an environment variable.")
