"""Replies in every form that models and servers write: read where they are clear, missing data where they are not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from reward_servers.judging.endpoints.answer_text import MAX_ANSWER_CHARS
from reward_servers.judging.unusable import is_final
from tests.support.judge_calls import RIGHT, judge_config, judged, questions
from tests.support.judge_fault_server import Fault, FaultServer

pytestmark = pytest.mark.stack

YES = '{"reason": "it says so", "verdict": "consistent"}'
NO = '{"reason": "it does not", "verdict": "inconsistent"}'


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


READ = {
    "alone": NO,
    "white space": f"\n\n  {NO}\n",
    "fence": f"```json\n{NO}\n```",
    "fence without a name": f"```\n{NO}\n```",
    "text around a fence": f"Here is my verdict:\n```json\n{NO}\n```\nI hope it helps {{or not}}.",
    "text around": f"The verdict is {NO}, I think.",
    "after reasoning": f"<think>Is it {{B}}? {YES} would be wrong.</think>\n{NO}",
    "after reasoning, in a fence": f"<think>Hm.</think>```json\n{NO}```",
    "only the closing tag": f"Is it {YES}? No.</think>{NO}",
    "reasoning that never ends": f"<think>Let me see. {NO}",
    "inside the reasoning": f"<think>{NO}</think>",
    "twice the same": f"{NO}\n{NO}",
    "latex before": rf"\frac{{1}}{{2}} and \boxed{{B}}: {NO}",
    "another spelling": '{"reason": "", "verdict": " Inconsistent "}',
    "byte-order mark": f"\ufeff{NO}",
    "a comma too many": f"{NO[:-1]},}}",
    "single quotes in a fence": "```python\n{'reason': \"it's not\", 'verdict': 'inconsistent',}\n```",
    "a raw line end in a text": NO.replace("does not", "does\nnot"),
    "in a string": json.dumps(NO),
    "in a list": f"[{NO}]",
    "after thinking": f"<thinking>{YES}</thinking>\n{NO}",
    "after a model's own tag": f"<seed:think>{YES}</seed:think>{NO}",
    "after Mistral's tag": f"[THINK]{YES}[/THINK]{NO}",
    "in the last channel": f"<|channel|>analysis<|message|>{YES}<|end|><|channel|>final<|message|>{NO}",
    "with a full stop": '{"reason": "", "verdict": "INCONSISTENT."}',
}


@pytest.mark.parametrize("form", READ)
def test_a_clear_answer_is_read_in_whatever_form_it_comes(server: FaultServer, tmp_path: Path, form: str) -> None:
    server.rule = lambda _: Fault(content=READ[form])
    (score,) = judged(judge_config(server, tmp_path), RIGHT)
    assert (score.status, score.scores) == ("ok", {"consistency": 0.0}), score.reason
    assert len(server.seen) == 1


UNREAD = {
    "nothing": "",
    "prose": "It is consistent.",
    "two answers": f"{YES} or rather {NO}",
    "two answers in a list": f"[{YES}, {NO}]",
    "two answers in reasoning without an end": f"<think>{YES} No: {NO}",
    "half an answer": YES[:-10],
    "a key twice": '{"verdict": "consistent", "verdict": "inconsistent", "reason": ""}',
    "not a number": '{"reason": "", "verdict": NaN}',
    "braces": "{" * 100_000,
    "deep": '{"a":[' * 100_000,
    "starts": '{"a" ' * 100_000,
    "a key twice in single quotes": "{'verdict': 'consistent', 'verdict': 'inconsistent'}",
    "an expression": "{'reason': '', 'verdict': 'consistent' if 1 else 'inconsistent'}",
    "two in single quotes": "{'verdict': 'consistent'} {'verdict': 'inconsistent'}",
    "longer than any answer": json.dumps({"reason": "x" * MAX_ANSWER_CHARS, "verdict": "consistent"}),
}


@pytest.mark.parametrize("form", UNREAD)
def test_an_answer_that_is_not_clear_is_missing_data(server: FaultServer, tmp_path: Path, form: str) -> None:
    server.rule = lambda _: Fault(content=UNREAD[form])
    (score,) = judged(judge_config(server, tmp_path), RIGHT)
    assert (score.status, score.scores) == ("malformed", {})
    assert "the answer is not JSON" in score.reason
    assert len(server.seen) == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"content": "", "reasoning_content": f"Hm. {NO}"},
        {"content": None, "reasoning_content": NO},
        {"content": " \n", "reasoning": NO},
        {"content": [{"type": "text", "text": NO[:10]}, {"type": "text", "text": NO[10:]}]},
        {"content": NO, "reasoning_content": YES},
        {"content": NO, "reasoning": {"effort": "low"}, "tool_calls": None, "audio": None},
        {"content": json.loads(NO)},
        {"content": [NO]},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": YES}]}, {"type": "text", "text": NO}]},
        {"content": None, "tool_calls": [{"type": "function", "function": {"name": "answer", "arguments": NO}}]},
        {"content": "", "tool_calls": [{"function": {"name": "answer", "arguments": json.loads(NO)}}]},
        {"content": NO, "refusal": False},
        {"content": NO, "refusal": []},
    ],
)
def test_an_answer_is_found_where_servers_put_it(server: FaultServer, tmp_path: Path, fields: dict) -> None:
    server.rule = lambda _: Fault(message_fields=tuple(fields.items()))
    (score,) = judged(judge_config(server, tmp_path), RIGHT)
    assert (score.status, score.scores) == ("ok", {"consistency": 0.0}), score.reason


@pytest.mark.parametrize(
    ("asked", "said", "is_other"),
    [
        ("gpt-4o", "gpt-4o-2024-08-06", False),
        ("Qwen/Qwen2.5-72B-Instruct", "qwen2.5-72b-instruct", False),
        ("/models/judge/", "judge", False),
        ("Qwen/Qwen2.5-72B-Instruct", "Qwen/Qwen2.5-7B-Instruct", True),
        ("gpt-4o-2024-08-06", "gpt-4o", False),
        ("qwen/qwen2.5-vl", "qwen/qwen2.5-vl:free", False),
        ("gpt-4o", "gpt-3.5-turbo", True),
        ("gpt-4o", "gpt-4o-mini", True),
        ("gpt-4", "gpt-4o-2024-08-06", True),
    ],
)
def test_another_model_that_answers_is_logged_once(
    server: FaultServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, asked: str, said: str, is_other: bool
) -> None:
    server.rule = lambda _: Fault(model=said)
    scores = judged(judge_config(server, tmp_path, model=asked), *questions(3))
    assert [score.status for score in scores] == ["ok"] * 3
    line = f"asked for reward.judge.model={asked}, it answers as {said}"
    assert sum(line in message for message in caplog.messages) == is_other


@pytest.mark.parametrize("content", [None, "", []])
def test_no_content_at_all_is_missing_data(server: FaultServer, tmp_path: Path, content: object) -> None:
    server.rule = lambda _: Fault(message_fields=(("content", content),))
    (score,) = judged(judge_config(server, tmp_path), RIGHT)
    assert (score.status, score.scores) == ("malformed", {})


BODIES = {
    "no choices": {"choices": []},
    "choices null": {"choices": None},
    "choices of another kind": {"choices": "yes"},
    "a choice without a message": {"choices": [{"text": YES}]},
    "a message of another kind": {"choices": [{"message": "yes"}]},
    "content of another kind": {"choices": [{"message": {"content": 7}}]},
}


@pytest.mark.parametrize("form", BODIES)
def test_a_completion_without_an_answer_may_pass_and_is_missing_data(
    server: FaultServer, tmp_path: Path, form: str
) -> None:
    fault = Fault(body=json.dumps(BODIES[form]).encode())
    server.rule = lambda seen: fault if seen.number < 3 else None
    first, second = judged(judge_config(server, tmp_path), *questions(2))
    assert (first.status, first.scores) == ("infra", {})
    assert 'HTTP 200 without a chat completion: \'{"choices"' in first.reason
    assert second.status == "ok"


@pytest.mark.parametrize(("code", "status", "calls"), [(402, "infra", 1), (429, "infra", 3), ("busy", "infra", 3)])
def test_an_error_with_status_200_counts_as_what_it_says(
    server: FaultServer, tmp_path: Path, code: object, status: str, calls: int
) -> None:
    error = {"error": {"code": code, "message": "Insufficient credits" if code == 402 else "wait a moment"}}
    server.rule = lambda _: Fault(body=json.dumps(error).encode())
    (score,) = judged(judge_config(server, tmp_path), RIGHT)
    assert (score.status, score.scores) == (status, {})
    assert error["error"]["message"] in score.reason
    assert len(server.seen) == calls


@pytest.mark.parametrize(
    ("error", "is_lasting"),
    [
        ({"code": "insufficient_quota", "type": "insufficient_quota", "message": "Top up."}, True),
        ({"code": "invalid_api_key", "message": "Who are you?"}, True),
        ({"type": "authentication_error", "message": "Who are you?"}, True),
        ({"code": "model_not_found", "message": "The model `judge` does not exist."}, True),
        ({"type": "rate_limit_error", "message": "Not so fast."}, False),
        ({"type": "server_error", "message": "Out of memory."}, False),
    ],
)
def test_an_error_with_status_200_is_what_its_words_say(
    server: FaultServer, tmp_path: Path, error: dict[str, str], is_lasting: bool
) -> None:
    server.rule = lambda _: Fault(body=json.dumps({"error": error}).encode())
    (score,) = judged(judge_config(server, tmp_path), RIGHT)
    assert (score.status, is_final(score.reason)) == ("infra", is_lasting)
    assert f"HTTP 200 with an error: {error['message']}" in score.reason
    assert len(server.seen) == (1 if is_lasting else 3)


@pytest.mark.parametrize("reason", ["length", "max_tokens", "MAX_TOKENS"])
def test_a_cut_answer_gets_one_more_try_with_more_tokens(server: FaultServer, tmp_path: Path, reason: str) -> None:
    server.rule = lambda seen: Fault(content=YES, finish_reason=reason) if seen.body["max_tokens"] < 2048 else None
    (score,) = judged(judge_config(server, tmp_path, max_output_tokens=1024), RIGHT)
    assert (score.status, score.scores) == ("ok", {"consistency": 1.0})
    assert [seen.body["max_tokens"] for seen in server.seen] == [1024, 2048]


def test_an_answer_that_is_cut_twice_is_malformed_and_no_verdict(server: FaultServer, tmp_path: Path) -> None:
    server.rule = lambda _: Fault(content=NO, finish_reason="length")  # complete by the look of it
    (score,) = judged(judge_config(server, tmp_path), RIGHT)
    assert (score.status, score.scores) == ("malformed", {})
    assert "was cut off (reward.judge.max_output_tokens=2048)" in score.reason
    assert len(server.seen) == 2


@pytest.mark.parametrize(
    "said",
    [
        "max_tokens is too large: 4096. This model supports at most 3000 completion tokens.",
        "'max_tokens' or 'max_completion_tokens' is too large: 4096. The maximum context length is 4000 tokens.",
        "This model's maximum context length is 4096 tokens. However, you requested 4500 tokens.",
    ],
)
def test_an_endpoint_without_more_tokens_leaves_the_cut_answer_malformed(
    server: FaultServer, tmp_path: Path, said: str
) -> None:
    server.rule = lambda seen: (
        Fault(content=YES, finish_reason="length")
        if seen.body["max_tokens"] == 2048
        else Fault(status=400, message=said)
    )
    (score,) = judged(judge_config(server, tmp_path), RIGHT)
    assert (score.status, score.scores) == ("malformed", {})
    assert "was cut off" in score.reason and "more is refused" in score.reason
    assert len(server.seen) == 2


def test_a_filtered_answer_is_an_abstention(server: FaultServer, tmp_path: Path) -> None:
    server.rule = lambda _: Fault(content=YES, finish_reason="content_filter")
    (score,) = judged(judge_config(server, tmp_path), RIGHT)
    assert (score.status, score.scores) == ("abstain", {})


def test_two_calls_of_a_tool_are_no_answer(server: FaultServer, tmp_path: Path) -> None:
    calls = [{"function": {"name": "answer", "arguments": text}} for text in (YES, NO)]
    server.rule = lambda _: Fault(message_fields=(("content", None), ("tool_calls", calls)))
    (score,) = judged(judge_config(server, tmp_path), RIGHT)
    assert (score.status, score.scores) == ("malformed", {})


def completion(**fields: object) -> bytes:
    """A completion with the answer NO. fields: of its top."""
    return json.dumps({"choices": [{"message": {"content": NO}, "finish_reason": "stop"}], **fields}).encode()


READ_BODIES = {
    "tokens as a float": completion(usage={"total_tokens": 12.5}),
    "tokens as a text": completion(usage={"total_tokens": "many"}),
    "tokens below zero": completion(usage={"total_tokens": -5}),
    "usage as a list": completion(usage=[]),
    "usage as a text": completion(usage="none"),
    "an ending that is a number": completion().replace(b'"stop"', b"0"),
    "an ending that is an object": completion().replace(b'"stop"', b'{"type": "stop"}'),
    "byte-order mark": b"\xef\xbb\xbf" + completion(),
    "Latin-1": completion().replace(b"it does", b"\xe9"),
    "white space around": b"\n\n  " + completion() + b"\n",
}


@pytest.mark.parametrize("form", READ_BODIES)
def test_what_stands_around_an_answer_may_have_any_form(server: FaultServer, tmp_path: Path, form: str) -> None:
    server.rule = lambda _: Fault(body=READ_BODIES[form])
    (score,) = judged(judge_config(server, tmp_path), RIGHT)
    assert (score.status, score.scores) == ("ok", {"consistency": 0.0}), score.reason
    assert len(server.seen) == 1


@pytest.mark.parametrize("size", [1, 40, -1])
def test_a_reply_that_broke_off_may_pass_although_none_came_before(
    server: FaultServer, tmp_path: Path, size: int
) -> None:
    server.rule = lambda _: Fault(body=completion()[:size])
    (score,) = judged(judge_config(server, tmp_path), RIGHT)
    assert (score.status, score.scores) == ("infra", {})
    assert "HTTP 200 with broken JSON: '{" in score.reason and not is_final(score.reason)
    assert len(server.seen) == 3


@pytest.mark.parametrize("content", [NO, NO[:20], ""])
def test_an_endpoint_that_gives_up_in_the_middle_is_asked_again(
    server: FaultServer, tmp_path: Path, content: str
) -> None:
    choice = {"error": {"code": 502, "message": "provider died"}, "finish_reason": "error"}
    broken = json.dumps({"choices": [{**choice, "message": {"content": content}}]}).encode()
    server.rule = lambda seen: Fault(body=broken) if seen.number < 3 else None
    first, second = judged(judge_config(server, tmp_path), *questions(2))
    assert (first.status, first.scores) == ("infra", {})
    assert "gave up in the middle of the answer" in first.reason and "provider died" in first.reason
    assert second.status == "ok"


@pytest.mark.parametrize("code", ["9" * 5000, "\u00b2", "-1", [], {"a": 1}, 4.5])
def test_an_error_code_of_any_form_is_no_status(server: FaultServer, tmp_path: Path, code: object) -> None:
    body = json.dumps({"error": {"code": code, "message": "out of order"}}).encode()
    server.rule = lambda _: Fault(body=body)
    (score,) = judged(judge_config(server, tmp_path), RIGHT)
    assert (score.status, score.scores) == ("infra", {})
    assert "HTTP 200 with an error: out of order" in score.reason and not is_final(score.reason)


def test_a_refusal_of_any_length_is_said_in_short(server: FaultServer, tmp_path: Path) -> None:
    server.rule = lambda _: Fault(refusal="http://host/?token=abc " * 300_000)
    (score,) = judged(judge_config(server, tmp_path), RIGHT)
    assert (score.status, score.scores) == ("abstain", {})
    assert len(score.reason) < 500 and "abc" not in score.reason
