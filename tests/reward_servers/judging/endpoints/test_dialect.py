"""Endpoints that refuse a parameter: the call goes without it, and so does every later one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reward_servers.judging.endpoints.dialect import ChatQuestion, Dialect
from tests.support.judge_calls import RIGHT, adapted, judge_config, judged, questions
from tests.support.judge_fault_server import Fault, FaultServer, Seen

pytestmark = pytest.mark.stack

Refuses = Callable[[dict[str, Any]], bool]


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def form(kind: str) -> Refuses:
    return lambda body: body.get("response_format", {}).get("type") == kind


def has(name: str) -> Refuses:
    return lambda body: name in body


def has_system(body: dict[str, Any]) -> bool:
    return body["messages"][0]["role"] == "system"


def body(status: int, **error: Any) -> Fault:
    return Fault(status=status, body=json.dumps({"error": error}).encode())


def raw(status: int, value: Any) -> Fault:
    return Fault(status=status, body=value.encode() if isinstance(value, str) else json.dumps(value).encode())


OPENAI_TOKENS = body(
    400,
    message="Unsupported parameter: 'max_tokens' is not supported with this model. "
    "Use 'max_completion_tokens' instead.",
    type="invalid_request_error",
    param="max_tokens",
    code="unsupported_parameter",
)
SPELLINGS: dict[str, tuple[Refuses, Fault, str]] = {
    "openai: max_tokens": (has("max_tokens"), OPENAI_TOKENS, "max_completion_tokens instead of max_tokens"),
    "openai: temperature": (
        has("temperature"),
        body(
            400,
            message="Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value "
            "is supported.",
            param="temperature",
            code="unsupported_value",
        ),
        "no temperature",
    ),
    "openai: response_format": (
        form("json_schema"),
        body(
            400,
            message="Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model.",
            param="response_format",
            code=None,
        ),
        "json_object answers",
    ),
    "openai: a keyword of the schema": (
        form("json_schema"),
        body(
            400,
            message="Invalid schema for response_format 'entailment': In context=('properties', 'verdicts'), "
            "'prefixItems' is not permitted.",
            param="text.format.schema",
            code="invalid_json_schema",
        ),
        "json_object answers",
    ),
    "openai: o1 and system": (
        has_system,
        body(
            400,
            message="Unsupported value: 'messages[0].role' does not support 'system' with this model.",
            param="messages[0].role",
            code="unsupported_value",
        ),
        "the system message inside the user's",
    ),
    "azure: unrecognized argument": (
        form("json_schema"),
        body(400, message="Unrecognized request argument supplied: response_format", type="invalid_request_error"),
        "json_object answers",
    ),
    "azure: version too old": (
        form("json_schema"),
        body(
            400,
            code="BadRequest",
            message="response_format value as json_schema is enabled only for api versions 2024-08-01-preview and on",
        ),
        "json_object answers",
    ),
    "vllm: system": (has_system, body(400, message="System role not supported", code=400), "inside the user's"),
    "vllm: roles": (
        has_system,
        raw(
            400,
            {
                "object": "error",
                "message": "After the optional system message, conversation roles must alternate user/assistant/user",
                "type": "BadRequestError",
                "code": 400,
            },
        ),
        "inside the user's",
    ),
    "vllm: pydantic in text": (
        form("json_schema"),
        raw(
            400,
            {
                "object": "error",
                "message": "[{'type': 'literal_error', 'loc': ('body', 'response_format', 'type'), 'msg': \"Input "
                "should be 'text' or 'json_object'\", 'input': 'json_schema', 'temperature': 0}]",
                "type": "BadRequestError",
                "param": None,
                "code": 400,
            },
        ),
        "json_object answers",
    ),
    "vllm: grammar": (
        form("json_schema"),
        body(400, message="The provided JSON schema contains features not supported by xgrammar.", code=400),
        "json_object answers",
    ),
    "fastapi: extra forbidden": (
        has("max_tokens"),
        raw(
            422,
            {
                "detail": [
                    {
                        "type": "extra_forbidden",
                        "loc": ["body", "max_tokens"],
                        "msg": "Extra inputs are not permitted",
                        "input": {"temperature": 0, "response_format": {"type": "json_schema"}},
                    }
                ]
            },
        ),
        "max_completion_tokens instead of max_tokens",
    ),
    "llama.cpp: response_format": (
        form("json_schema"),
        body(
            400, code=400, message='response_format type must be one of "text" or "json_object", but got: json_schema'
        ),
        "json_object answers",
    ),
    "llama.cpp: template": (
        has_system,
        body(500, code=500, message="System role not supported in this template", type="server_error"),
        "inside the user's",
    ),
    "tgi: flat error": (
        has("temperature"),
        raw(
            422,
            {"error": "Input validation error: `temperature` must be strictly positive", "error_type": "validation"},
        ),
        "no temperature",
    ),
    "google: gemma": (
        has_system,
        raw(
            400, [{"error": {"code": 400, "message": "Developer instruction is not enabled for models/gemma-3-27b-it"}}]
        ),
        "inside the user's",
    ),
    "plain text": (has("temperature"), raw(400, "unknown field temperature"), "no temperature"),
    "google: a keyword of the schema": (
        form("json_schema"),
        raw(
            400,
            [
                {
                    "error": {
                        "code": 400,
                        "message": 'Invalid JSON payload received. Unknown name "prefixItems" at '
                        "'generation_config.response_schema': Cannot find field.",
                    }
                }
            ],
        ),
        "json_object answers",
    ),
    "quoted role": (has_system, body(400, message="'system' role is not supported"), "inside the user's"),
    "no valid role": (has_system, body(400, message="system is not a valid role"), "inside the user's"),
    "only some roles": (has_system, body(422, message="Only 'user' and 'assistant' are valid roles"), "the user's"),
    "ollama: json mode": (
        form("json_schema"),
        body(400, message="invalid format: expected 'json_object' for response_format", type="api_error"),
        "json_object answers",
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_refused_parameter_is_left_out_from_then_on_and_logged_once(
    server: FaultServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, spelling: str
) -> None:
    refuses, refusal, said = SPELLINGS[spelling]
    server.rule = lambda seen: refusal if refuses(seen.body) else None
    scores = judged(judge_config(server, tmp_path), *questions(4))
    assert [(score.status, score.scores) for score in scores] == [("ok", {"consistency": 1.0})] * 4
    assert len(server.seen) == 5
    (line,) = adapted(caplog)
    assert server.url in line and said in line
    (usual,) = (request(Dialect()),)
    for seen in server.seen[1:]:
        changed = {name for name in usual if seen.body.get(name) != usual[name] and name != "messages"}
        assert len(changed) <= 1  # nothing else was given up


def request(dialect: Dialect) -> dict[str, Any]:
    from reward_servers.judging.calls import consistency_call

    call = consistency_call("", "So it is 0.", "0")
    question = ChatQuestion(system=call.system, user=call.user, schema=call.schema, schema_name=call.name)
    return dialect.request(question, 2048)


def picky(seen: Seen) -> Fault | None:
    """Refuse one parameter after the other, as a server that knows only messages does."""
    kind = seen.body.get("response_format", {}).get("type")
    if kind:
        return body(400, message=f"response_format.type: {kind} is not supported")
    for name in ("max_tokens", "max_completion_tokens", "temperature"):
        if name in seen.body:
            return body(400, message=f"Unknown parameter: {name}", param=name)
    return body(400, message="only user and assistant roles are supported!") if has_system(seen.body) else None


def test_an_endpoint_that_takes_nothing_but_a_message_is_asked_in_its_way(
    server: FaultServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.rule = picky
    scores = judged(judge_config(server, tmp_path), *questions(3))
    assert [score.scores for score in scores] == [{"consistency": 1.0}] * 3
    assert len(server.seen) == 6 + 3
    assert set(server.seen[-1].body) == {"model", "messages"}
    (message,) = server.seen[-1].body["messages"]
    assert message["role"] == "user"
    assert "You check whether an answer follows" in message["content"] and "Its schema: {" in message["content"]
    (line,) = adapted(caplog)
    for said in ("text answers", "no max_tokens", "no temperature", "inside the user's"):
        assert said in line


def test_an_endpoint_that_refuses_all_of_it_in_one_sentence_is_asked_in_its_way(
    server: FaultServer, tmp_path: Path
) -> None:
    said = "Unsupported: response_format, max_tokens, max_completion_tokens, temperature. No system messages, please."
    server.rule = lambda seen: body(400, message=said) if picky(seen) else None
    scores = judged(judge_config(server, tmp_path), *questions(2))
    assert [score.scores for score in scores] == [{"consistency": 1.0}] * 2
    assert set(server.seen[-1].body) == {"model", "messages"} and len(server.seen) == 6 + 2


def test_a_parameter_that_is_refused_later_is_left_out_too(
    server: FaultServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.rule = lambda seen: OPENAI_TOKENS if seen.number >= 2 and "max_tokens" in seen.body else None
    scores = judged(judge_config(server, tmp_path), *questions(4))
    assert [score.status for score in scores] == ["ok"] * 4
    assert len(server.seen) == 5 and len(adapted(caplog)) == 1


def test_a_refusal_that_stays_is_missing_data_and_changes_nothing_for_others(
    server: FaultServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.rule = lambda seen: body(400, message="temperature sensors are not allowed") if seen.number < 2 else None
    first, second = judged(judge_config(server, tmp_path), *questions(2))
    assert (first.status, first.scores) == ("infra", {})
    assert "temperature sensors are not allowed" in first.reason
    assert second.status == "ok" and server.seen[-1].body["temperature"] == 0.0
    assert not adapted(caplog)


def test_an_endpoint_that_ignores_the_schema_gets_it_in_the_prompt(
    server: FaultServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.rule = lambda seen: None if "Its schema: " in seen.user else Fault(content="It does follow.")
    scores = judged(judge_config(server, tmp_path), *questions(3))
    assert [score.scores for score in scores] == [{"consistency": 1.0}] * 3
    assert len(server.seen) == 4
    assert "the schema in the prompt too" in adapted(caplog)[0]


def test_two_dialects_together_avoid_what_either_avoids() -> None:
    one = Dialect(answers="text", has_system=False)
    other = Dialect(token_limit="none", has_temperature=False, answers="json_object")
    both = Dialect(answers="text", has_system=False, token_limit="none", has_temperature=False)
    assert one.joined(other) == other.joined(one) == both


def test_a_number_that_is_refused_is_no_refusal_of_its_parameter() -> None:
    said = "max_tokens is too large: 99999. This model supports at most 16384 completion tokens."
    assert Dialect().without("max_tokens", said) is None


def test_no_key_of_a_question_is_lost_in_any_dialect(server: FaultServer, tmp_path: Path) -> None:
    (score,) = judged(judge_config(server, tmp_path), RIGHT)
    assert score.status == "ok"
    assert request(Dialect())["response_format"]["json_schema"]["strict"] is True
    assert request(Dialect(answers="json_object"))["response_format"] == {"type": "json_object"}
    assert "response_format" not in request(Dialect(answers="text"))
