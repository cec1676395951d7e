"""A bound on the bytes of a reply, counted while they arrive and after decompression.

A few kilobytes of gzip may stand for hundreds of megabytes, so the decompression itself has to stop at the bound.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from typing import Any

import httpx2

MAX_REPLY_BYTES = 8 << 20
"""Most bytes of one reply of a judge endpoint; an answer of 2,048 tokens is about 10 kB."""
_PIECE_BYTES = 64 << 10
_ANY_HEADER = zlib.MAX_WBITS | 32  # zlib or gzip, as the data says
_ZIPPED = ("gzip", "x-gzip", "deflate")
ACCEPTED = {"Accept-Encoding": "gzip, identity"}
"""Request headers that go with `bound_reply`, which decompresses nothing else."""


class ReplyTooLarge(httpx2.TransportError):
    """A reply is larger than MAX_REPLY_BYTES, or is compressed in a way that cannot be bounded."""


async def bound_reply(response: httpx2.Response) -> None:
    """Replace the stream of an unread response by one that decompresses and raises ReplyTooLarge at the bound.

    It is a response hook of a client, called before anything is read.
    """
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in (*_ZIPPED, "identity", ""):
        raise ReplyTooLarge(f"the reply is compressed with {encoding[:40]!r}, which was not offered")
    length = response.headers.get("content-length", "")
    if length.isdigit() and int(length) > MAX_REPLY_BYTES:
        raise ReplyTooLarge(f"the reply has {int(length):,} bytes, more than the {MAX_REPLY_BYTES:,} that are read")
    response.stream = _Bounded(response.stream, is_zipped=encoding in _ZIPPED)
    response.headers.pop("content-encoding", None)  # else the client would decompress once more


class _Bounded(httpx2.AsyncByteStream):
    """The bytes of a stream, decompressed, at most MAX_REPLY_BYTES of them."""

    def __init__(self, stream: Any, *, is_zipped: bool) -> None:
        self._stream, self._is_zipped = stream, is_zipped

    async def __aiter__(self) -> AsyncIterator[bytes]:
        num_bytes = 0
        inflater = zlib.decompressobj(_ANY_HEADER) if self._is_zipped else None
        async for chunk in self._stream:
            for piece in [chunk] if inflater is None else _inflated(inflater, chunk):
                num_bytes += len(piece)
                if num_bytes > MAX_REPLY_BYTES:
                    raise ReplyTooLarge(f"the reply has more than the {MAX_REPLY_BYTES:,} bytes that are read")
                yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()


def _inflated(inflater: Any, chunk: bytes) -> Any:
    """Yield `chunk` decompressed, in pieces of at most 64 KiB."""
    try:
        while chunk and not inflater.eof:
            yield inflater.decompress(chunk, _PIECE_BYTES)
            chunk = inflater.unconsumed_tail
    except zlib.error as error:
        raise httpx2.DecodingError(f"the reply cannot be decompressed: {error}") from None
