"""URLs without their secrets, for messages and records."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_USER_INFO = re.compile(r"(?<=://)(?:([^/\s:@]*):[^/\s]*|[^/\s]+)@")
_SECRET_PARAMETER = re.compile(
    r"([?&](?:[\w-]*(?:password|passwd|token|secret|signature|key)|sig|pwd)=)[^&\s\"']+", re.I
)
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


def masked_tree(tree: Any) -> Any:  # noqa: ANN401
    """Return a config's tree with every URL in it masked."""
    if isinstance(tree, Mapping):
        return {key: masked_tree(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [masked_tree(value) for value in tree]
    return masked_url(tree) if isinstance(tree, str) else tree
