"""The token of a cluster that is started here: without it, whoever reaches this machine could run code on it.

Ray's processes listen on loopback only where they can be told to; each replica of Ray Serve 2.60 listens for other
replicas on all addresses, and what it receives is unpickled once the token is right.
"""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path

from rlsys import env
from rlsys.config.run import ConfigError

log = logging.getLogger(__name__)

_OTHERS = 0o077


def require_token() -> None:
    """Make sure that the cluster which is started next asks for a token that only this user can read.

    Creates ~/.ray/auth_token where there is none, and takes the permissions of others from one that they can read.
    Raises ConfigError when RAY_AUTH_MODE turns the token off.
    """
    if problem := mode_problem():
        raise ConfigError(problem)
    if env.read("RAY_AUTH_TOKEN") is not None:
        return
    named = env.read("RAY_AUTH_TOKEN_PATH")
    try:
        if named is not None:
            _warn_if_open(Path(named))
        else:
            _own_token(Path.home() / ".ray" / "auth_token")
    except OSError as error:  # Ray says why it cannot have a token
        log.debug("the cluster's token: %s", error)


def mode_problem() -> str:
    """Return why a cluster may not be started under this RAY_AUTH_MODE, "" if it may."""
    mode = env.read("RAY_AUTH_MODE")
    if mode is None or mode.lower() == "token":
        return ""
    return (
        f"RAY_AUTH_MODE={mode}: without its token anyone who reaches this machine could run code on the cluster, "
        "as some of Ray's processes listen on all addresses; unset RAY_AUTH_MODE, or set it to token."
    )


def _own_token(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if path.stat().st_mode & _OTHERS:
            path.chmod(0o600)
            log.info("%s could be read by others; only you can read it from here on", path)
        return
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32))


def _warn_if_open(path: Path) -> None:
    if path.stat().st_mode & _OTHERS:
        log.warning("RAY_AUTH_TOKEN_PATH=%s: other users of this machine can read the token; chmod 600 it", path)
