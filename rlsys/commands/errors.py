"""How the command line reports errors that the user can fix."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from rlsys.config.part import ConfigError
from rlsys.end_signals import end_on_signals, name_of_end
from rlsys.errors import UserError
from rlsys.files import why_not_writable
from rlsys.urls import has_secret, masked_url


@contextmanager
def clear_errors() -> Iterator[None]:
    """Report a UserError on stderr with exit code 2 and no traceback; shut down cleanly on signals, and name them."""
    try:
        with end_on_signals():
            yield
    except UserError as error:
        typer.echo(f"rlsys: {error}", err=True)
        raise typer.Exit(2) from error
    except (KeyboardInterrupt, SystemExit) as error:
        if (name := name_of_end(error)) is None:
            raise
        typer.echo(f"rlsys: ended by {name}.", err=True)
        raise typer.Exit(128 + signal.Signals[name]) from error


def refuse_secrets(option: str, url: str) -> None:
    """Raise ConfigError for a URL that contains a secret; the message does not repeat the secret."""
    if has_secret(url):
        raise ConfigError(f"{option} {masked_url(url)} contains a secret; pass it in an environment variable instead.")


def require_writable(option: str, folder: Path) -> None:
    """Raise ConfigError for a folder to which no file can be written, before any work is done for it."""
    if why := why_not_writable(folder):
        raise ConfigError(f"{option} {folder}: {why}; choose a folder that can be written to and has room.")
