"""Authorisation: the bearer token, and the addresses at which a server without one may listen."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class TokenCheck:
    """Recognise one token without holding it: replicas get a salted digest, never the token."""

    salt: bytes = field(repr=False)
    digest: bytes = field(repr=False)

    @classmethod
    def of(cls, token: str) -> TokenCheck:
        salt = secrets.token_bytes(32)
        return cls(salt=salt, digest=_digest(salt, token))

    def accepts(self, authorization: str | None) -> bool:
        """Return True for the header value `Bearer <token>`; takes as long for any wrong token."""
        scheme, _, token = (authorization or "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(_digest(self.salt, token.strip()), self.digest)


def token_from_environment(name: str) -> str | None:
    """Return the token in the environment variable `name`; None when it is unset or empty.

    Raises ValueError, without showing the value, when it could not travel in an HTTP header.
    """
    token = os.environ.get(name, "").strip()
    if not all("!" <= character <= "~" for character in token):
        raise ValueError(
            f"{name}: a bearer token is made of printable ASCII characters without spaces; set another one."
        )
    return token or None


def refuse_open_bind(host: str, token: str | None, token_env: str) -> None:
    """Raise ValueError when `host` can be reached from other machines and no token guards it."""
    if token is None and not is_loopback(host):
        raise ValueError(
            f"reward.host={host}: other machines can reach this address, so a token is needed; "
            f"set the environment variable {token_env}, or use reward.host=127.0.0.1."
        )


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach `host`, a name or an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _digest(salt: bytes, token: str) -> bytes:
    # both sides of the comparison have one length, whatever the length of the token
    return hmac.digest(salt, token.encode("utf-8", "surrogatepass"), hashlib.sha256)
