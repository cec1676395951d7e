"""The web application in this process, without Ray: what it answers to good and bad requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from reward_servers.auth import TokenCheck
from reward_servers.schema import MAX_ROWS
from reward_servers.service import build

ROW = {
    "rollout_id": "a",
    "task": "temporal_grounding",
    "text": "<think>a</think><answer>1 to 2</answer>",
    "truth": [1, 3],
}


def post(content: object, token_check: TokenCheck | None = None, limit: int = 10_000, **headers: str) -> httpx.Response:
    """The answer to one POST; content: bytes, an async iterator of bytes, or a value that is sent as JSON."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(build(token_check, limit))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            body = content if isinstance(content, bytes | AsyncIterator) else json.dumps(content).encode()
            return await http.post("/v1/score", content=body, headers={"content-type": "application/json", **headers})

    return asyncio.run(ask())


def test_a_mixed_batch_is_scored_row_by_row_in_order() -> None:
    rows = [
        {**ROW, "rollout_id": "right"},
        {**ROW, "rollout_id": "unknown", "task": "dance"},
        {**ROW, "rollout_id": "bare", "text": "<answer>1 to 2</answer>", "think": False},
        {**ROW, "rollout_id": "broken", "truth": [3, 3]},
        {**ROW, "rollout_id": "not a number", "truth": [0, float("nan")]},
    ]
    replies = post(rows).json()
    assert [(reply["rollout_id"], reply["status"]) for reply in replies] == [
        ("right", "ok"),
        ("unknown", "malformed"),
        ("bare", "ok"),
        ("broken", "malformed"),
        ("not a number", "malformed"),
    ]
    assert replies[0]["scores"] == replies[2]["scores"] == {"format": 1.0, "iou": 0.5}
    assert "the tasks are temporal_grounding, grounded_qa, tracking" in replies[1]["reason"]
    assert replies[3]["scores"] == {} and "[3, 3]" in replies[3]["reason"]


def test_problems_are_named_by_row_and_field_without_the_text() -> None:
    answer = post(
        [ROW, {**ROW, "rollout_id": 7, "extra": "private words"}, {"rollout_id": "c", "text": "private words"}]
    )
    assert answer.status_code == 422
    problems = {(problem["row"], problem["field"]) for problem in answer.json()["detail"]}
    assert problems == {("1", "rollout_id"), ("1", "extra"), ("2", "task"), ("2", "truth")}
    assert "private words" not in answer.text


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b"{}", b"[]", b"[" * 50_000, b'["a"]', b"null", b'[{"rollout_id": "\\ud800"}]']
)
def test_what_is_not_a_list_of_rows_is_422(body: bytes) -> None:
    assert post(body, limit=100_000).status_code == 422


def test_the_same_rollout_twice_is_422() -> None:
    answer = post([ROW, ROW])
    assert answer.status_code == 422
    assert "'a' is in the request more than once" in answer.text


def test_too_many_rows_and_too_many_bytes_are_refused() -> None:
    rows = [{**ROW, "rollout_id": str(index)} for index in range(MAX_ROWS + 1)]
    assert post(rows, limit=1 << 20).status_code == 422
    assert post(rows[:-1], limit=1 << 20).status_code == 200
    assert post(rows[:-1], limit=1000).status_code == 413


def test_a_body_of_unknown_length_is_counted_while_it_arrives() -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b" " * 100

    assert post(endless(), limit=1000).status_code == 413


def test_only_json_is_taken() -> None:
    assert post([ROW], **{"content-type": "application/x-pickle"}).status_code == 415
    assert post([ROW], **{"content-type": "application/json; charset=utf-8"}).status_code == 200


def test_a_missing_or_wrong_token_is_401_before_the_body_is_read() -> None:
    check = TokenCheck.of("s3cret")
    assert post([ROW], check, authorization="Bearer s3cret").status_code == 200
    for refused in (post([ROW], check), post(b"{", check, authorization="Bearer wrong")):
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert "s3cret" not in refused.text
