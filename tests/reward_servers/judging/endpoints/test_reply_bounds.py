"""Replies of any size take a bounded amount of memory, compressed or not."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from reward_servers.judging.endpoints.reply_bounds import MAX_REPLY_BYTES
from reward_servers.judging.unusable import is_final
from tests.support.judge_calls import RIGHT, judge_config, judged, questions
from tests.support.judge_fault_server import Fault, FaultServer

pytestmark = pytest.mark.stack

MIB = 1 << 20
ANSWER = b'{"choices": [{"message": {"content": "{\\"reason\\": \\"\\", \\"verdict\\": \\"consistent\\"}"}}]}'
HEAD = b'{"choices": [{"message": {"content": "'


@cache
def bomb(size: int) -> bytes:
    """A completion with `size` bytes of content, as gzip."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    pieces = [squeeze.compress(HEAD), *(squeeze.compress(b"a" * MIB) for _ in range(size // MIB)), squeeze.flush()]
    return b"".join(pieces)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def peak_of(server: FaultServer, tmp_path: Path) -> tuple[int, str]:
    """Return the bytes that a lost score takes at most, and its reason."""
    tracemalloc.start()
    try:
        (score,) = judged(judge_config(server, tmp_path, max_attempts=2), RIGHT)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (score.status, score.scores) == ("infra", {})
    return peak, score.reason


@pytest.mark.parametrize(("encoding", "status"), [("gzip", 200), ("gzip", 500), ("deflate", 400)])
def test_a_gzip_bomb_is_stopped_while_it_inflates(
    server: FaultServer, tmp_path: Path, encoding: str, status: int
) -> None:
    data = bomb(300 * MIB)
    assert len(data) < MIB
    server.rule = lambda _: Fault(status=status, body=data, headers=(("Content-Encoding", encoding),))
    peak, reason = peak_of(server, tmp_path)
    assert "ReplyTooLarge: the reply has more than the 8,388,608 bytes" in reason
    assert peak < 6 * MAX_REPLY_BYTES  # what was read may be held twice while it is joined


@pytest.mark.parametrize("status", [200, 500])
def test_a_reply_of_200_mb_is_not_read_to_its_end(server: FaultServer, tmp_path: Path, status: int) -> None:
    server.rule = lambda _: Fault(status=status, body=b"a" * MIB, num_times=200)
    peak, reason = peak_of(server, tmp_path)
    assert "ReplyTooLarge" in reason
    assert peak < 6 * MAX_REPLY_BYTES
    assert server.num_bytes_sent < 2 * 64 * MIB  # of two calls; the rest was never taken


def test_a_reply_that_names_its_size_is_not_read_at_all(server: FaultServer, tmp_path: Path) -> None:
    server.rule = lambda _: Fault(body=b"a" * (20 * MIB))
    peak, reason = peak_of(server, tmp_path)
    assert "ReplyTooLarge: the reply has 20,971,520 bytes" in reason


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip"])
def test_a_compression_that_was_not_offered_is_named(server: FaultServer, tmp_path: Path, encoding: str) -> None:
    server.rule = lambda _: Fault(body=b"?" * 100, headers=(("Content-Encoding", encoding),))
    _, reason = peak_of(server, tmp_path)
    assert f"compressed with '{encoding}', which was not offered" in reason
    assert {seen.headers["accept-encoding"] for seen in server.seen} == {"gzip, identity"}


def test_compression_that_was_not_offered_by_an_endpoint_that_never_answered_needs_a_person(
    server: FaultServer, tmp_path: Path
) -> None:
    server.rule = lambda seen: (
        Fault(body=b"?", headers=(("Content-Encoding", "br"),)) if seen.number in (0, 2) else None
    )
    first, second, third = judged(judge_config(server, tmp_path, breaker_open_s=0.1), *questions(3))
    assert is_final(first.reason) and "turn that compression off" in first.reason and first.scores == {}
    assert (second.status, third.status) == ("ok", "ok")


@pytest.mark.parametrize("lost", [1, 4, 12, 40])
def test_compressed_data_that_broke_off_is_asked_for_again(server: FaultServer, tmp_path: Path, lost: int) -> None:
    data = gzip.compress(ANSWER)[:-lost]
    server.rule = lambda seen: Fault(body=data, headers=(("Content-Encoding", "gzip"),)) if seen.number == 0 else None
    (score,) = judged(judge_config(server, tmp_path), RIGHT)
    assert (score.status, score.scores) == ("ok", {"consistency": 1.0})
    assert len(server.seen) == 2


def test_gzip_in_several_members_is_one_reply(server: FaultServer, tmp_path: Path) -> None:
    data = gzip.compress(ANSWER[:30]) + gzip.compress(b"") + gzip.compress(ANSWER[30:]) + b"\0" * 100
    server.rule = lambda _: Fault(body=data, headers=(("Content-Encoding", "gzip"),))
    (score,) = judged(judge_config(server, tmp_path), RIGHT)
    assert (score.status, score.scores) == ("ok", {"consistency": 1.0})


@pytest.mark.parametrize("charset", ["hex", "idna", "undefined", "utf-16", "punycode", "no-such-thing"])
@pytest.mark.parametrize("status", [400, 503])
def test_a_charset_of_any_name_does_not_change_what_an_error_says(
    server: FaultServer, tmp_path: Path, charset: str, status: int
) -> None:
    kind = (("Content-Type", f"text/plain; charset={charset}"),)
    server.rule = lambda _: Fault(status=status, body=b"out \xff of order", headers=kind)
    (score,) = judged(judge_config(server, tmp_path, max_attempts=1), RIGHT)
    assert (score.status, score.scores) == ("infra", {})
    assert f"HTTP {status}: out \ufffd of order" in score.reason


def test_damaged_compression_is_named(server: FaultServer, tmp_path: Path) -> None:
    server.rule = lambda _: Fault(body=b"not gzip at all", headers=(("Content-Encoding", "gzip"),))
    _, reason = peak_of(server, tmp_path)
    assert "cannot be decompressed" in reason


def test_an_ordinary_compressed_reply_is_read(server: FaultServer, tmp_path: Path) -> None:
    server.rule = lambda _: Fault(body=gzip.compress(ANSWER), headers=(("Content-Encoding", "gzip"),))
    (score,) = judged(judge_config(server, tmp_path), RIGHT)
    assert (score.status, score.scores) == ("ok", {"consistency": 1.0})
