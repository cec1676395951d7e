"""Endpoints whose address is not what it should be: found, followed or named, and never a verdict by mistake."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from reward_servers.judging.endpoints.addresses import Address
from reward_servers.judging.endpoints.chat_call import ChatCaller
from reward_servers.judging.endpoints.dialect import ChatQuestion
from reward_servers.judging.endpoints.endpoints import checked_urls
from reward_servers.judging.unusable import NEEDS_CHANGE
from rlsys.config.run import ConfigError, JudgeConfig
from tests.support.judge_calls import KEY, RIGHT, adapted, judge_config, judged, questions
from tests.support.judge_fault_server import Fault, FaultServer
from tests.support.pace import patience

pytestmark = pytest.mark.stack

HTML = Fault(body=b"<!doctype html><title>Welcome</title>", headers=(("Content-Type", "text/html"),))


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        running.route = "/v1/chat/completions"
        yield running


@pytest.fixture
def other() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def root(server: FaultServer) -> str:
    return server.url.removesuffix("/v1")


def redirect(status: int, location: str) -> Fault:
    return Fault(status=status, headers=(("Location", location),), body=b"")


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://a/v1", "http://a/v1"),
        ("http://a/v1/", "http://a/v1"),
        ("http://a/v1/chat/completions", "http://a/v1"),
        ("http://a/v1/chat/completions/", "http://a/v1"),
        ("http://a/v1/models", "http://a/v1"),
        ("http://a/v1/responses", "http://a/v1"),
        ("http://a//v1//", "http://a/v1"),
        ("http://[::1]:80/v1?", "http://[::1]:80/v1"),
        ("http://a/openai/deployments/x/chat/completions?api-version=1", "http://a/openai/deployments/x"),
    ],
)
def test_a_route_at_the_end_of_a_url_is_no_part_of_its_base(url: str, base: str) -> None:
    assert Address.of(url).base == base


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/", "/chat/completions", "/v1/chat/completions", "/v1/models"])
@pytest.mark.parametrize("elsewhere", [None, HTML, Fault(status=405, body=b"")], ids=["404", "html", "405"])
def test_the_usual_ways_to_write_an_address_work_and_a_change_is_logged_once(
    server: FaultServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, ending: str, elsewhere: Fault | None
) -> None:
    server.elsewhere = elsewhere or server.elsewhere
    scores = judged(judge_config(server, tmp_path, urls=(root(server) + ending,)), *questions(3))
    assert [score.scores for score in scores] == [{"consistency": 1.0}] * 3
    is_plain = ending.startswith("/v1") and ending.rstrip("/") == "/v1"
    assert len(adapted(caplog)) == (0 if is_plain else 1)
    assert is_plain or f"called at {server.url}" in adapted(caplog)[0]
    assert len(server.seen) <= 4  # the detour is made once


@pytest.mark.parametrize("base", ["/openai/deployments/judge", ""])
def test_a_query_goes_with_every_request(server: FaultServer, tmp_path: Path, base: str) -> None:
    server.route = f"{base or '/v1'}/chat/completions"
    url = f"{root(server)}{base}?api-version=2024-10-21&tier=a"
    scores = judged(judge_config(server, tmp_path, urls=(url,)), *questions(2))
    assert [score.status for score in scores] == ["ok", "ok"]
    assert {seen.path.partition("?")[2] for seen in server.seen} == {"api-version=2024-10-21&tier=a"}
    assert server.seen[-1].headers["api-key"] == KEY  # as Azure takes it


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_keeps_the_request_and_only_a_lasting_one_is_remembered(
    server: FaultServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    server.elsewhere = redirect(status, "/v1/chat/completions")
    url = f"{root(server)}/old?tier=a"
    scores = judged(judge_config(server, tmp_path, urls=(url,)), *questions(3))
    assert [score.scores for score in scores] == [{"consistency": 1.0}] * 3
    answered = [seen for seen in server.seen if seen.path.startswith("/v1/")]
    assert len(answered) == 3
    assert {seen.path for seen in answered} == {"/v1/chat/completions?tier=a"}
    assert all(seen.body["messages"] and seen.headers["authorization"] == f"Bearer {KEY}" for seen in answered)
    assert len(server.seen) == (4 if status in (301, 308) else 6)
    (line,) = adapted(caplog)
    assert server.url in line


def test_a_redirect_to_another_port_of_this_machine_gets_the_key_and_is_logged(
    server: FaultServer, other: FaultServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.rule = lambda _: redirect(308, f"{other.url}/chat/completions")
    (score,) = judged(judge_config(server, tmp_path), RIGHT)
    assert score.status == "ok"
    assert other.seen[0].headers["authorization"] == f"Bearer {KEY}"
    assert other.url in adapted(caplog)[0]


def test_the_key_is_not_sent_to_another_host(server: FaultServer, tmp_path: Path) -> None:
    server.rule = lambda _: redirect(307, "http://judge.invalid/v1/chat/completions")
    (score,) = judged(judge_config(server, tmp_path), RIGHT)
    assert (score.status, score.scores) == ("infra", {})
    assert "redirects to http://judge.invalid/v1" in score.reason and "set reward.judge.urls" in score.reason
    assert KEY not in score.reason


@pytest.mark.parametrize(
    ("here", "there", "may"),
    [
        ("http://a/v1", "https://a/v1", True),
        ("https://a/v1", "http://a/v1", False),
        ("https://a/v1", "https://b/v1", False),
        ("https://a/v1", "https://a.b/v1", False),
        ("http://localhost:1/v1", "http://127.0.0.1:2/v1", True),
        ("http://127.0.0.1:1/v1", "http://[::1]:2/v1", True),
        ("http://127.0.0.1.evil/v1", "http://127.0.0.1/v1", False),
    ],
)
def test_who_may_have_the_key(here: str, there: str, may: bool) -> None:
    assert Address.of(here).may_share_key(Address.of(there)) is may


@pytest.mark.parametrize("location", ["/login", "ftp://a/v1/chat/completions", "http://u:p@a/v1/chat/completions", ""])
def test_a_redirect_that_leads_to_no_endpoint_is_named(server: FaultServer, tmp_path: Path, location: str) -> None:
    server.rule = lambda _: redirect(302, location)
    (score,) = judged(judge_config(server, tmp_path), RIGHT)
    assert (score.status, score.scores) == ("infra", {})
    assert score.reason.startswith(NEEDS_CHANGE) and "HTTP 302" in score.reason
    assert ":p@" not in score.reason
    assert len(server.seen) == 1


def test_redirects_that_all_differ_share_their_connections(server: FaultServer, tmp_path: Path) -> None:
    server.route = None
    server.rule = lambda seen: (
        redirect(307, f"/v1/chat/completions?once={seen.number}") if "once" not in seen.path else None
    )

    async def clients() -> int:
        caller = ChatCaller(judge_config(server, tmp_path), KEY)
        question = ChatQuestion(system="s", user="u", schema={"type": "object", "properties": {}}, schema_name="n")
        for _ in range(6):
            await caller.call(server.url, question, patience(30.0))
        count = len(caller._clients)
        await caller.close()
        return count

    assert asyncio.run(clients()) == 1
    assert {seen.path for seen in server.seen[1::2]} == {f"/v1/chat/completions?once={at}" for at in range(0, 12, 2)}


def test_https_where_no_tls_is_spoken_needs_a_person(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/v1"
        threading.Thread(target=answer_in_plain_text, args=(listener,), daemon=True).start()
        config = JudgeConfig(urls=(url,), model="judge", cache_path=tmp_path / "verdicts.sqlite", max_attempts=3)
        (score,) = judged(config, RIGHT)
    assert (score.status, score.scores) == ("infra", {})
    assert score.reason.startswith(f"{NEEDS_CHANGE}{url}: ") and "use http:// in reward.judge.urls" in score.reason


def answer_in_plain_text(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


def test_one_endpoint_in_two_spellings_is_refused() -> None:
    with pytest.raises(ConfigError, match="each once"):
        checked_urls(("http://a/v1", "http://a/v1/chat/completions"))


def test_redirects_in_a_circle_end(server: FaultServer, tmp_path: Path) -> None:
    server.route = None
    server.rule = lambda seen: redirect(308, "/b/chat/completions" if "/a/" in seen.path else "/a/chat/completions")
    (score,) = judged(judge_config(server, tmp_path), RIGHT)
    assert (score.status, score.scores) == ("infra", {})
    assert len(server.seen) <= 7


@pytest.mark.parametrize(
    ("elsewhere", "first_words"),
    [
        (HTML, "HTTP 200 without a chat completion: '<!doctype html>"),
        (Fault(status=404, body=b'{"detail":"Not Found"}'), "HTTP 404"),
        (Fault(body=b'{"hello": "world"}'), 'HTTP 200 without a chat completion: \'{"hello"'),
    ],
    ids=["html", "404", "other service"],
)
@pytest.mark.parametrize("ending", ["", "/v1"])
def test_an_address_without_an_endpoint_is_named_with_what_came_back(
    server: FaultServer, tmp_path: Path, elsewhere: Fault, first_words: str, ending: str
) -> None:
    server.route, server.elsewhere = "/nowhere", elsewhere
    url = root(server) + ending
    (score,) = judged(judge_config(server, tmp_path, urls=(url,)), RIGHT)
    assert (score.status, score.scores) == ("infra", {})
    assert score.reason.startswith(f"{NEEDS_CHANGE}{url}: ")
    assert first_words in score.reason and "such as http://host:8000/v1" in score.reason
    assert len(server.seen) == (1 if ending else 2)


def test_an_error_page_of_an_endpoint_that_has_answered_passes(server: FaultServer, tmp_path: Path) -> None:
    server.rule = lambda seen: HTML if seen.number == 1 else None
    scores = judged(judge_config(server, tmp_path), *questions(2))
    assert [score.status for score in scores] == ["ok", "ok"]
    assert len(server.seen) == 3
