"""A bound on the bytes of a reply, counted while they arrive and after decompression.

A few kilobytes of gzip may stand for hundreds of megabytes, so the decompression itself has to stop at the bound.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Iterator
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
    """A reply is larger than MAX_REPLY_BYTES."""


class NotOffered(httpx2.TransportError):
    """A reply is compressed in a way that was not offered, and that cannot be bounded."""


async def bound_reply(response: httpx2.Response) -> None:
    """Replace the stream of an unread response by one that decompresses and raises ReplyTooLarge at the bound.

    It is a response hook of a client, called before anything is read.
    """
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in (*_ZIPPED, "identity", ""):
        raise NotOffered(f"the reply is compressed with {encoding[:40]!r}, which was not offered")
    length = response.headers.get("content-length", "")
    if length.isdigit() and int(length) > MAX_REPLY_BYTES:
        raise ReplyTooLarge(f"the reply has {int(length):,} bytes, more than the {MAX_REPLY_BYTES:,} that are read")
    response.stream = _Bounded(response.stream, is_zipped=encoding in _ZIPPED)
    response.headers.pop("content-encoding", None)  # else the client would decompress once more
    response.encoding = "utf-8"  # a charset of the header may be none, or one that raises


class _Bounded(httpx2.AsyncByteStream):
    """The bytes of a stream, decompressed, at most MAX_REPLY_BYTES of them."""

    def __init__(self, stream: Any, *, is_zipped: bool) -> None:
        self._stream, self._is_zipped = stream, is_zipped

    async def __aiter__(self) -> AsyncIterator[bytes]:
        num_bytes = 0
        inflater = _Inflater() if self._is_zipped else None
        async for chunk in self._stream:
            for piece in [chunk] if inflater is None else inflater.pieces(chunk):
                num_bytes += len(piece)
                if num_bytes > MAX_REPLY_BYTES:
                    raise ReplyTooLarge(f"the reply has more than the {MAX_REPLY_BYTES:,} bytes that are read")
                yield piece
        if inflater is not None and not inflater.is_complete:
            raise httpx2.DecodingError("the reply broke off in the middle of its compressed data")

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Inflater:
    """Decompresses gzip, in one or several members, or zlib."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(_ANY_HEADER)
        self._has_begun = False

    @property
    def is_complete(self) -> bool:
        """Whether the data may end here."""
        return self._member.eof or not self._has_begun

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        """Yield `chunk` decompressed, in pieces of at most 64 KiB. Zeros that fill up the end are skipped."""
        try:
            while chunk:
                if self._member.eof:
                    chunk = chunk.lstrip(b"\0")
                    self._member, self._has_begun = zlib.decompressobj(_ANY_HEADER), False
                    continue
                self._has_begun = True
                yield self._member.decompress(chunk, _PIECE_BYTES)
                chunk = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
        except zlib.error as error:
            raise httpx2.DecodingError(f"the reply cannot be decompressed: {error}") from None
