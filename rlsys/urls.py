"""URLs without their secrets, for messages and records."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

_USER_INFO = re.compile(r"(?<=://)(?:([^/\s:@]*):(?:[^/\s]*|(?!\d*/)[^\s]*)|[^/\s]+)@")
_WORDS = (
    "password|passwd|passphrase|passcode|passwort|pwd|token|jwt|secret|signature|sig|sas|credentials?|authorization|auth"
    "|assertion|session|session[_-]?id|sessid|cookie|ticket|otp|psk|hmac|bearer|key|access[_-]?key[_-]?id|key-pair-id|samlresponse"
)
_SECRET_PARAMETER = re.compile(
    r"((?:[?&;#]|%3F|%26|%3B|%23)"
    rf"(?:(?:[\w.\[\]-]|%5F|%2D|%5B|%5D)*?(?:{_WORDS})\]?"
    r"|(?:auth(?:orization)?[_-]?)?code(?:[_-]?verifier)?|pass|pw|sid)"
    r"(?:=|%3D))[^&;\s\"']+",
    re.I,
)
"""Parameters whose names end in one of the words, or are short ones that mean something else in other names, such as
`country_code`; also those of a URL that is itself a parameter."""
MASK = "***"


def masked_url(text: str) -> str:
    """Return `text`, a URL or a message with URLs in it, with passwords, tokens and keys in URLs replaced by `***`.

    A user's name stays where a password follows it; a name alone may itself be a token and goes.
    """
    shown = _USER_INFO.sub(lambda found: f"{found[1]}:{MASK}@" if found[1] else f"{MASK}@", text)
    return _SECRET_PARAMETER.sub(rf"\1{MASK}", shown)


def has_secret(url: str) -> bool:
    """Return whether the URL contains a secret, which `masked_url` would hide."""
    return masked_url(url) != url


def why_not_http(url: str) -> str:
    """Return why `url` is no address of a server, "" if it is one."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return f"is not a URL ({error})"
    if parts.scheme not in ("http", "https"):
        return "does not start with http:// or https://"
    if any(sign.isspace() for sign in url):
        return "contains a space"
    return "" if parts.hostname and port != 0 else "has no host, or port 0"


def masked_tree(tree: Any) -> Any:  # noqa: ANN401
    """Return a config's tree with every URL in it masked."""
    if isinstance(tree, Mapping):
        return {key: masked_tree(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [masked_tree(value) for value in tree]
    return masked_url(tree) if isinstance(tree, str) else tree
