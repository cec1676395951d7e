"""Where a judge endpoint is called: its base URL as people write it, with a query, or behind a redirect."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit

from reward_servers.server.auth import is_loopback

_ROUTE = "/chat/completions"
_ENDINGS = (_ROUTE, "/chat", "/completions", "/models", "/responses", "/embeddings")
_SLASHES = re.compile(r"(?<!:)/{2,}")
_VERSIONED = re.compile(r"/v\d+[a-z\d]*$")


@dataclass(frozen=True, kw_only=True)
class Address:
    """The base URL of an endpoint, and the query that every request to it carries, such as `api-version`."""

    base: str
    query: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, url: str) -> Address:
        """Return the address in `url`, without a slash or a route such as `/chat/completions` at its end."""
        bare, _, query = url.partition("?")
        base = _SLASHES.sub("/", bare).rstrip("/")
        ending = next((ending for ending in _ENDINGS if base.endswith(ending)), "")
        return cls(base=base.removesuffix(ending).rstrip("/"), query=tuple(parse_qsl(query, keep_blank_values=True)))

    def with_version(self) -> Address | None:
        """Return the address with `/v1` added to its base; None where the base already ends in a version."""
        return None if _VERSIONED.search(self.base) else replace(self, base=f"{self.base}/v1")

    def redirected(self, location: str) -> Address | None:
        """Return where the `Location` of a reply to a call sends the caller; None if no chat completions are there.

        The query stays unless the location brings one of its own.
        """
        try:
            parts = urlsplit(urljoin(f"{self.base}{_ROUTE}", location))
            is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            return None
        path = parts.path.rstrip("/")
        if not is_usable or not path.endswith(_ROUTE) or "@" in parts.netloc:
            return None
        base = f"{parts.scheme}://{parts.netloc}{path.removesuffix(_ROUTE)}"
        query = tuple(parse_qsl(parts.query, keep_blank_values=True))
        return Address(base=base, query=query or self.query)

    def may_share_key(self, other: Address) -> bool:
        """Return whether a key for this address may go to `other`: the same host, and not from HTTPS to plain HTTP."""
        here, there = urlsplit(self.base), urlsplit(other.base)
        hosts = (here.hostname or "", there.hostname or "")
        is_same_host = hosts[0] == hosts[1] or all(is_loopback(host) for host in hosts)
        return is_same_host and (here.scheme, there.scheme) != ("https", "http")

    def __str__(self) -> str:
        return self.base + (f"?{urlencode(self.query)}" if self.query else "")
