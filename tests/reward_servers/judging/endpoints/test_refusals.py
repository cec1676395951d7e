"""What never passes ends things with the endpoint's own words, what passes is waited for, and neither is a score."""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reward_servers.judging.endpoints.refusals import Refusal
from reward_servers.judging.unusable import JudgeUnusable, is_final
from tests.support.judge_calls import KEY, RIGHT, judge_config, judged, questions
from tests.support.judge_fault_server import Fault, FaultServer, too_many

pytestmark = pytest.mark.stack

LATER = {"retry-after": "20"}
QUOTA = "You exceeded your current quota, please check your plan and billing details."
BUSY = "Requests have exceeded the rate limit of your pricing tier. Please retry after 26 seconds. See /quotaincrease"
NO_MODEL = "The model `judge` does not exist or you do not have access to it."
VLLM_CONTEXT = (
    "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (2952 in the messages, "
    "2048 in the completion). Please reduce the length of the messages or completion."
)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


@pytest.mark.parametrize(
    ("status", "body", "headers", "kind"),
    [
        (429, {"message": QUOTA, "type": "insufficient_quota", "code": "insufficient_quota"}, {}, "quota"),
        (429, {"message": QUOTA, "type": "insufficient_quota", "code": "insufficient_quota"}, LATER, "quota"),
        (429, {"message": QUOTA}, {}, "quota"),
        (429, {"message": f"{QUOTA} Please retry in 23.5s."}, {}, "passing"),  # Gemini, per minute
        (429, {"message": QUOTA}, LATER, "passing"),
        (429, {"message": "Your billing account is not active."}, {}, "quota"),
        (429, {"message": BUSY, "code": "429"}, {}, "passing"),
        (429, {"message": "Rate limit reached for requests per day (RPD). Try again in 7m12s."}, {}, "passing"),
        (429, "slow down", {}, "passing"),
        (402, {"message": "Insufficient Balance"}, {}, "quota"),
        (402, "", {}, "quota"),
        (400, {"message": "Your credit balance is too low to access the Anthropic API."}, {}, "quota"),
        (403, {"error": "Your team has either used all available credits or reached its limit"}, {}, "quota"),  # xAI
        (429, {"message": "Your prepayment credits are depleted.", "code": 429}, {}, "quota"),  # Google
        (400, {"code": "Arrearage", "message": "Access denied"}, {}, "quota"),  # Alibaba
        (429, {"code": "1113", "message": "您的账户已欠费，请充值后重试。"}, {}, "quota"),  # Zhipu
        (403, {"code": 30001, "message": "Sorry, your account balance is insufficient"}, {}, "quota"),  # SiliconFlow
        (
            412,
            {"message": "Account is suspended, possibly due to the monthly spending limit"},
            {},
            "quota",
        ),  # Fireworks
        (403, {"message": "Key limit exceeded (total limit)", "code": 403}, {}, "quota"),  # OpenRouter
        (429, {"message": "You are using a Trial key, limited to 1000 API calls / month."}, {}, "quota"),  # Cohere
        (429, {"message": "Your usage limit of tokens per minute is reached"}, {}, "passing"),
        (429, {"message": "Quota exceeded for metric 'requests per minute'"}, {}, "passing"),
        (400, {"message": "bad message: " + "He says that the bill is overdue. " * 20}, {}, "request"),
        (400, "<html>The plain HTTP request was sent to HTTPS port</html>", {}, "place"),
        (400, "Client sent an HTTP request to an HTTPS server.", {}, "place"),
        (403, {"message": "Your credit balance is too low to access the API."}, {}, "quota"),
        (400, {"code": "billing_hard_limit_reached", "message": "Billing hard limit has been reached"}, {}, "quota"),
        (401, {"message": "Incorrect API key provided", "code": "invalid_api_key"}, {}, "key"),
        (403, "Forbidden", {}, "key"),
        (404, {"message": NO_MODEL, "code": "model_not_found"}, {}, "model"),
        (404, {"object": "error", "message": "The model `judge` does not exist.", "code": 404}, {}, "model"),  # vLLM
        (404, {"message": 'model "judge" not found, try pulling it first'}, {}, "model"),  # Ollama
        (404, {"code": "DeploymentNotFound", "message": "The API deployment does not exist."}, {}, "model"),
        (400, {"message": "Model Not Exist", "code": "invalid_request_error"}, {}, "model"),  # DeepSeek
        (400, {"message": "judge is not a valid model ID"}, {}, "model"),  # OpenRouter
        (400, {"message": "Invalid model: judge", "type": "invalid_model"}, {}, "model"),  # Mistral
        (404, {"detail": "Not Found"}, {}, "place"),
        (404, {"message": "Invalid URL (POST /chat/completions)", "type": "invalid_request_error"}, {}, "place"),
        (404, "<html>Cannot POST /model/chat/completions</html>", {}, "place"),
        (404, {"code": "404", "message": "Resource not found"}, {}, "place"),
        (405, "Method Not Allowed", {}, "place"),
        (400, {"message": VLLM_CONTEXT, "code": "context_length_exceeded"}, {}, "context"),
        (400, {"message": "the request exceeds the available context size, try increasing it"}, {}, "context"),
        (422, {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096"}, {}, "context"),
        (400, {"message": "prompt is too long: 210000 tokens > 200000 maximum"}, {}, "context"),
        (413, "", {}, "context"),
        (400, {"message": "max_tokens is too large: 9. This model supports at most 8."}, {}, "budget"),
        (400, {"message": "temperature is refused"}, {}, "request"),
        (400, {"code": "content_filter", "message": "The response was filtered"}, {}, "filtered"),
        (500, "", {}, "passing"),
        (502, "<html>Bad gateway</html>", {}, "passing"),
        (503, {"message": "The model is loading, unknown time left"}, {}, "passing"),
        (529, {"message": "Overloaded"}, {}, "passing"),
    ],
)
def test_what_an_error_means(status: int, body: Any, headers: dict[str, str], kind: str) -> None:
    assert Refusal.of(status, body, headers).kind("judge") == kind


def fault(status: int, message: str, **fields: Any) -> Fault:
    return Fault(status=status, body=json.dumps({"error": {"message": message, **fields}}).encode())


NEVER = {
    "quota": fault(429, f"{QUOTA} ({KEY})", code="insufficient_quota"),
    "payment": fault(402, "Insufficient credits. Add more at https://me:pw@pay.example/top-up?token=abcdef"),
    "no key": fault(401, f"Incorrect API key provided: {KEY}"),
    "forbidden": fault(403, "You may not use this project"),
    "model": fault(404, NO_MODEL),
    "model as 400": fault(400, "judge is not a valid model ID"),
    "budget": fault(400, "max_tokens is too large: 2048. This model supports at most 1000 completion tokens."),
}


@pytest.mark.parametrize("when", ["first", "later"])
@pytest.mark.parametrize("name", NEVER)
def test_what_never_passes_ends_with_the_endpoints_own_words(
    server: FaultServer, tmp_path: Path, name: str, when: str
) -> None:
    start = 0 if when == "first" else 1
    server.rule = lambda seen: NEVER[name] if seen.number >= start else None
    started = time.monotonic()
    *_, score = judged(judge_config(server, tmp_path), *questions(start + 1))
    assert (score.status, score.scores) == ("infra", {})
    assert is_final(score.reason), score.reason
    message = json.loads(NEVER[name].body or b"")["error"]["message"]
    assert message[:16] in score.reason and server.url in score.reason and "Remedy: " in score.reason
    for secret in (KEY, "pw@", "abcdef"):
        assert secret not in score.reason
    assert len(server.seen) == start + 1
    assert time.monotonic() - started < 3600
    with pytest.raises(JudgeUnusable) as caught:  # without a cluster there is nobody to wait
        judged(judge_config(server, tmp_path), RIGHT, raises_final=True)
    assert str(caught.value).startswith("the judge cannot be used: ")


def test_one_endpoint_that_works_is_enough(server: FaultServer, tmp_path: Path) -> None:
    with FaultServer() as other:
        server.rule = lambda _: NEVER["quota"]
        scores = judged(judge_config(server, tmp_path, urls=(server.url, other.url)), *questions(4))
    assert [score.status for score in scores] == ["ok"] * 4
    assert len(server.seen) <= 1


def test_an_endpoint_that_may_come_back_keeps_hope_alive(server: FaultServer, tmp_path: Path) -> None:
    with FaultServer() as other:
        server.rule, other.rule = lambda _: NEVER["no key"], lambda _: fault(503, "loading")
        (score,) = judged(judge_config(server, tmp_path, urls=(server.url, other.url)), RIGHT)
    assert (score.status, score.scores) == ("infra", {})
    assert not is_final(score.reason)


def test_a_row_that_is_too_long_is_lost_alone(server: FaultServer, tmp_path: Path) -> None:
    server.rule = lambda seen: fault(400, VLLM_CONTEXT) if seen.number == 1 else None
    first, second, third = judged(judge_config(server, tmp_path), *questions(3))
    assert (second.status, second.scores) == ("malformed", {})
    assert "maximum context length is 4096 tokens" in second.reason and not is_final(second.reason)
    assert (first.status, third.status) == ("ok", "ok")
    assert len(server.seen) == 3


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 529])
def test_what_passes_is_asked_again(server: FaultServer, tmp_path: Path, status: int) -> None:
    server.rule = lambda seen: fault(status, "busy") if seen.number < 2 else None
    (score,) = judged(judge_config(server, tmp_path), RIGHT)
    assert (score.status, score.scores) == ("ok", {"consistency": 1.0})
    assert len(server.seen) == 3


@pytest.mark.parametrize("status", [429, 503, 529])
def test_what_does_not_pass_in_time_is_missing_data_and_not_final(
    server: FaultServer, tmp_path: Path, status: int
) -> None:
    server.rule = lambda _: fault(status, "busy")
    (score,) = judged(judge_config(server, tmp_path), RIGHT)
    assert (score.status, score.scores) == ("infra", {})
    assert not is_final(score.reason) and f"HTTP {status}: busy" in score.reason
    assert len(server.seen) == 3


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_an_hour_of_retry_after_is_logged_once_and_leaves_the_endpoint_alone(
    server: FaultServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, form: str
) -> None:
    hour = "3600" if form == "seconds" else email.utils.formatdate(time.time() + 3600, usegmt=True)
    server.rule = lambda _: too_many(hour)
    scores = judged(judge_config(server, tmp_path, call_timeout_s=5.0), *questions(2), within_s=1.0)
    assert [(score.status, score.scores) for score in scores] == [("infra", {})] * 2
    assert not any(is_final(score.reason) for score in scores)
    assert "it requested a pause" in scores[1].reason
    lines = [line for line in caplog.messages if "asks to be left alone" in line]
    assert len(lines) == 1 and "reward.max_pause_s" in lines[0] and server.url in lines[0]
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    "value",
    [
        *(
            "Wed, 21 Oct 99999999999999999999 07:28:00 GMT",
            "21 Oct 2026 07:28 +" + "9" * 30,
            "soon",
            "-1",
            "1e9",
            "NaN",
        ),
        *("Wed, 21 Oct 2026 07:28:99999999999999999999 GMT", "9" * 400, "", "2026-10-21T07:28:00Z", "1, 5"),
    ],
)
@pytest.mark.parametrize("name", ["Retry-After", "retry-after-ms", "Date"])
def test_a_pause_that_no_clock_has_is_none(server: FaultServer, tmp_path: Path, name: str, value: str) -> None:
    later = () if name != "Date" else (("Retry-After", "Wed, 21 Oct 2015 07:28:00 GMT"),)
    busy = Fault(status=429, headers=((name, value), *later))
    server.rule = lambda seen: busy if seen.number == 0 else None
    (score,) = judged(judge_config(server, tmp_path), RIGHT)
    assert (score.status, score.scores) == ("ok", {"consistency": 1.0})


def test_nothing_that_listens_is_missing_data_and_not_final(server: FaultServer, tmp_path: Path) -> None:
    config = judge_config(server, tmp_path)
    server.stop()
    (score,) = judged(config, RIGHT)
    assert (score.status, score.scores) == ("infra", {})
    assert "ConnectError" in score.reason and not is_final(score.reason)
