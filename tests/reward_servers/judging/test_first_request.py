"""The first request, before a run starts: what a person must change ends the start, what passes is a warning."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reward_servers.judging.first_request import ProbedJudge, with_first_request
from reward_servers.judging.served_model import with_served_model
from reward_servers.judging.unusable import JudgeUnusable
from reward_servers.judging.which_judge import judge_kind
from rlsys.config.run import ConfigError, JudgeConfig
from tests.support.judge_calls import KEY, adapted, judge_config, judged, questions
from tests.support.judge_fault_server import CUT_OFF, HANG, NOT_JSON, REFUSAL, Fault, FaultServer, error, too_many
from tests.support.pace import patience


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def first(config: JudgeConfig) -> ProbedJudge:
    return with_first_request(config, KEY)


def refusal(status: int, message: str, **fields: Any) -> Fault:
    return Fault(status=status, body=json.dumps({"error": {"message": message, **fields}}).encode())


CONTEXT = "This model's maximum context length is 512 tokens. However, you requested 3000 tokens."


@pytest.mark.parametrize(
    ("fault", "words", "remedy"),
    [
        (refusal(401, f"Incorrect API key provided: {KEY}"), "Incorrect API key provided: ***", "RLSYS_JUDGE_API_KEY"),
        (refusal(403, "Forbidden for you"), "Forbidden for you", "RLSYS_JUDGE_API_KEY"),
        (refusal(404, "The model `judge` does not exist."), "does not exist", "reward.judge.model='judge'"),
        (refusal(429, "quota", code="insufficient_quota"), "HTTP 429: quota", "quota or credit is spent"),
        (refusal(402, "Payment Required"), "HTTP 402: Payment Required", "quota or credit is spent"),
        (refusal(400, CONTEXT), CONTEXT[:40], "reward.judge.max_output_tokens"),
        (refusal(400, "max_tokens is too large: 2048, at most 100"), "at most 100", "lower reward.judge.max_output"),
        (refusal(400, "I do not like this"), "I do not like this", "longer than the judge takes"),
        (error(404), "HTTP 404", "such as http://host:8000/v1"),
        (Fault(body=b"<html>Hello</html>"), "HTTP 200 without a chat completion: '<html>Hello", "http://host:8000/v1"),
    ],
)
def test_what_a_person_must_change_ends_the_start_in_the_endpoints_words(
    server: FaultServer, tmp_path: Path, fault: Fault, words: str, remedy: str
) -> None:
    server.rule = lambda _: fault
    with pytest.raises(JudgeUnusable) as caught:
        first(judge_config(server, tmp_path))
    said = str(caught.value)
    assert server.url in said and words in said and remedy in said
    assert KEY not in said and "\n" not in said
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (too_many("3600"), "it asks for a pause of 3600 s"),
        (error(503), "does not answer yet"),
        (error(529), "does not answer yet"),
        (HANG, "no whole answer within"),
        (NOT_JSON, "first answer could not be used"),
        (CUT_OFF, "first answer could not be used"),
        (REFUSAL, "first answer could not be used"),
    ],
    ids=str,
)
def test_what_may_pass_is_a_warning(
    server: FaultServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: Fault, said: str
) -> None:
    server.rule = lambda _: fault
    first(judge_config(server, tmp_path, call_timeout_s=patience(1.0)))
    (line,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert said in line and server.url in line


def test_an_endpoint_that_is_not_up_yet_is_a_warning(
    server: FaultServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = judge_config(server, tmp_path)
    server.stop()
    assert first(config).setups == {}
    assert "does not answer yet" in caplog.text and "reward.max_pause_s" in caplog.text
    server.start()
    assert judged(first(config), *questions(1))[0].status == "ok"


def test_what_was_found_is_used_by_every_replica_without_asking_again(
    server: FaultServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.route = "/v1/chat/completions"
    server.rule = lambda seen: refusal(400, "temperature: unknown parameter") if "temperature" in seen.body else None
    found = first(judge_config(server, tmp_path, urls=(server.url.removesuffix("/v1"),)))
    (line,) = adapted(caplog)
    assert f"called at {server.url}; no temperature" in line
    assert len(server.seen) == 3
    copy = pickle.loads(pickle.dumps(found))  # as Ray sends it to a replica
    assert [score.status for score in judged(copy, *questions(3))] == ["ok"] * 3
    assert len(server.seen) == 6 and len(adapted(caplog)) == 1
    assert KEY not in str(pickle.dumps(found))


def test_an_endpoint_among_others_that_needs_a_change_is_a_warning(
    server: FaultServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with FaultServer() as other:
        other.rule = lambda _: error(401)
        first(judge_config(server, tmp_path, urls=(server.url, other.url)))
        assert other.url in caplog.text and "The other endpoints are used" in caplog.text
        server.rule = other.rule
        with pytest.raises(JudgeUnusable, match="The other 1 endpoints cannot be used either"):
            first(judge_config(server, tmp_path, urls=(server.url, other.url)))


def test_the_first_request_is_made_before_reward_servers_start(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLSYS_JUDGE_API_KEY", KEY)
    server.api_key = KEY

    async def inside_a_loop() -> tuple[JudgeConfig, str | None]:
        return with_served_model(judge_config(server, tmp_path), "judge", "http://127.0.0.1:1")

    config, key = asyncio.run(inside_a_loop())
    assert key == KEY and isinstance(config, ProbedJudge) and set(config.setups) == {server.url}
    monkeypatch.setenv("RLSYS_JUDGE_API_KEY", "another")
    with pytest.raises(JudgeUnusable):
        with_served_model(judge_config(server, tmp_path), "judge", "http://127.0.0.1:1")


@pytest.mark.parametrize("url", ["host:8000/v1", "http://h/v1?api-key=sk-secret", "http://u:p@h/v1"])
def test_a_url_that_cannot_be_used_is_found_without_a_request(url: str) -> None:
    with pytest.raises(ConfigError, match=r"reward\.judge\.urls"):
        judge_kind(JudgeConfig(urls=(url,)))
