"""How the command line reports errors that the user can fix."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import typer

from rlsys.config.part import ConfigError
from rlsys.end_signals import end_on_signals, name_of_end
from rlsys.errors import UserError
from rlsys.files import DISK_ERRORS, is_device, why_no_temporary_folder, why_not_writable
from rlsys.urls import has_secret, masked_url


@contextmanager
def clear_errors() -> Iterator[None]:
    """Report a UserError on stderr with exit code 2 and no traceback; shut down cleanly on signals, and name them.

    A disk that takes no more is such an error too.
    """
    try:
        with end_on_signals():
            yield
    except UserError as error:
        typer.echo(f"rlsys: {error}", err=True)
        raise typer.Exit(2) from error
    except OSError as error:
        _report_disk(error)
        raise typer.Exit(2) from error
    except (KeyboardInterrupt, SystemExit) as error:
        if (name := name_of_end(error)) is None:
            raise
        typer.echo(f"rlsys: ended by {name}.", err=True)
        raise typer.Exit(128 + signal.Signals[name]) from error


@contextmanager
def clear_help() -> Iterator[None]:
    """Report a disk that takes no more as `clear_errors` does, where the help is printed and no command runs yet."""
    try:
        yield
    except OSError as error:
        _report_disk(error)
        sys.exit(2)


def refuse_secrets(option: str, url: str) -> None:
    """Raise ConfigError for a URL that contains a secret; the message does not repeat the secret."""
    if has_secret(url):
        raise ConfigError(f"{option} {masked_url(url)} contains a secret; pass it in an environment variable instead.")


def require_writable(option: str, folder: Path) -> None:
    """Raise ConfigError for a folder to which no file can be written, before any work is done for it."""
    if why := why_not_writable(folder):
        raise ConfigError(f"{option} {folder}: {why}; choose a folder that can be written to and has room.")


def require_output(option: str, file: Path, suffixes: Sequence[str] = ()) -> None:
    """Raise ConfigError for a file that cannot be written, before any work is done for it."""
    if os.path.isdir(file):
        raise ConfigError(f"{option} {file}: this is a folder; name a file to write.")
    if suffixes and file.suffix.lower() not in suffixes:
        raise ConfigError(f"{option} {file}: name a file that ends with {', '.join(suffixes)}.")
    if not is_device(file) and (why := why_not_writable(Path(os.path.realpath(file)).parent)):
        raise ConfigError(f"{option} {file}: {why}; choose a folder that can be written to and has room.")


def _report_disk(error: OSError) -> None:
    """Say what a disk does not take and what to do; raise the error again if it is another one."""
    if why := why_no_temporary_folder(error):
        typer.echo(f"rlsys: {why}", err=True)
        return
    is_of_a_disk = error.filename or not isinstance(error, PermissionError)  # else of a port or a process
    if error.errno not in DISK_ERRORS or not is_of_a_disk:
        raise error
    typer.echo(f"rlsys: {_where(error)}: {error.strerror}; {DISK_ERRORS[error.errno]}.", err=True)


def _where(error: OSError) -> str:
    """Return the file that an error is about, or what else is known of the place."""
    if error.filename:
        return str(error.filename2 or error.filename)  # of two, the file to which is copied
    if _output_fails():
        return "the output of this command"
    return f"one of the disks of {Path.cwd()}, {tempfile.tempdir or '/tmp'} and {Path.home()}"


def _output_fails() -> bool:
    """Return whether standard output takes nothing more; the rest of it then goes nowhere, or Python would complain."""
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError):  # not a file of this process
        return False
    try:
        os.write(output, b"\n")
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
        return True
    return False
