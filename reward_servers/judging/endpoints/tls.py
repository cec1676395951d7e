"""TLS to judge endpoints: the trusted certificates, and how a failure that lasts is told from one that passes."""

from __future__ import annotations

import ssl
from functools import cache


@cache
def certificates() -> ssl.SSLContext:
    """Return the context of every connection; it takes a fifth of a second to make, so there is one for all."""
    import httpx2

    return httpx2.create_ssl_context()


def is_tls_refused(error: BaseException | None) -> bool:
    """Return whether TLS failed in a way that lasts: no TLS there, or a certificate that is not trusted."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError)
        error = error.__cause__ or error.__context__
    return False
