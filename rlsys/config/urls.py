"""Secrets in URLs: what a config must not hold, because configs are stored with every run and shown in logs."""

from __future__ import annotations

import re

_USER = re.compile(r"(?<=://)[^\s'\"]*@")  # to the last @: people put / and # into passwords unescaped
_QUERY = re.compile(r"([?&;](?:[\w.-]*(?:pass|pwd|token|secret|key|sig|auth)[\w.-]*)=)[^&;#\s'\"]*", re.IGNORECASE)


def masked(text: str) -> str:
    """The text with *** in place of users, passwords and secret parameters of the URLs in it."""
    return _QUERY.sub(r"\1***", _USER.sub("***@", text))


def check_url(url: str, remedy: str) -> None:
    """Raises ValueError, which does not repeat the secret, when a URL holds one.

    A user without a password is allowed where it is no HTTP URL: databases name users, web addresses hold tokens.
    """
    scheme, _, rest = url.partition("://")
    user, has_user, _ = rest.rpartition("@")
    is_file = scheme in ("sqlite", "file")
    has_secret = bool(has_user) and not is_file and (":" in user or scheme in ("http", "https"))
    if has_secret or _QUERY.search(url):
        raise ValueError(f"{masked(url)} holds a user, a password or a token; URLs are stored and logged: {remedy}.")
