"""The service and its web application in this process, without Ray: what they answer to good and bad requests."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import pytest

from reward_servers.judging.judge import JudgeTask
from reward_servers.schema import MAX_ROWS, REPLIES, ScoreRequest
from reward_servers.server.auth import TokenCheck
from reward_servers.server.service import Busy, RewardService
from reward_servers.server.web import Refusal, build_app, parse_request
from rlsys.types import Score

ROW = {
    "rollout_id": "a",
    "task": "temporal_grounding",
    "text": "<think>a</think><answer>1 to 2</answer>",
    "truth": [1, 3],
}


async def nothing_to_say() -> dict[str, Any]:
    return {}


def post(content: object, token_check: TokenCheck | None = None, limit: int = 20_000, **headers: str) -> httpx.Response:
    """The answer to one POST; content: bytes, an async iterator of bytes, or rows that are sent as JSON."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(build_app(RewardService(), token_check, nothing_to_say, limit))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            body = content if isinstance(content, bytes | AsyncIterator) else json.dumps({"rows": content}).encode()
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
    assert "the tasks are temporal_grounding, tracking" in replies[1]["reason"]
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
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"{}",
        b"[]",
        b"[" * 50_000,
        b'{"rows": []}',
        b'{"rows": ["a"]}',
        b"null",
        b'{"rows": [{"rollout_id": "\\ud800"}]}',
    ],
)
def test_what_is_not_a_list_of_rows_is_422(body: bytes) -> None:
    assert post(body, limit=100_000).status_code == 422


CROWDED = {
    "of the request": b"{" + b",".join(b'"k%d":1' % number for number in range(50_000)) + b"}",
    "of a row": b'{"rows":[{' + b",".join(b'"k%d":1' % number for number in range(50_000)) + b"}]}",
    "of the settings": b'{"rows":[],"settings":{' + b",".join(b'"k%d":1' % number for number in range(50_000)) + b"}}",
    "in the tiers": json.dumps({"rows": [ROW], "settings": {"recall_tiers": [["a", "b"]] * 50_000}}).encode(),
    "right, in the tiers": json.dumps({"rows": [ROW], "settings": {"recall_tiers": [[0.5, 0.5]] * 50_000}}).encode(),
}


@pytest.mark.parametrize("place", CROWDED)
def test_half_a_million_mistakes_are_one(place: str) -> None:
    body = CROWDED[place]
    tracemalloc.start()
    with pytest.raises(Refusal) as caught:
        parse_request(body)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.status == 422 and 1 <= len(caught.value.detail) <= 2
    assert peak < 40 * len(body)  # an error of each takes a kilobyte


def test_a_name_of_any_length_is_named_in_short() -> None:
    answer = post(b'{"' + b"k" * 1_000_000 + b'":1}', limit=2_000_000)
    assert answer.status_code == 422 and len(answer.content) < 1000


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


CAPTION = {
    "rollout_id": "c",
    "task": "captioning",
    "text": "<think>a</think><answer>A dog runs.</answer>",
    "truth": {"caption": "A dog runs. It stops.", "events": ["A dog runs", "It stops"]},
}


class JudgeThatSays:
    """A judge of whom the answers are known. asked: the tasks of each call."""

    kind = "llm"

    def __init__(self, *scores: Score | Exception, seconds: float = 0.0) -> None:
        self.asked: list[Sequence[JudgeTask]] = []
        self._scores, self._seconds = scores, seconds

    async def score(self, tasks: Sequence[JudgeTask], timeout_s: float) -> list[Score]:
        self.asked.append(tasks)
        await asyncio.sleep(self._seconds)
        for score in self._scores:
            if isinstance(score, Exception):
                raise score
        return [score for score in self._scores if isinstance(score, Score)]


def recall(value: float) -> Score:
    return Score(status="ok", scores={"recall": value}, reason="", evidence={"judge": "llm", "recall": []})


def scored(judge: JudgeThatSays | None, *rows: dict[str, object], timeout_s: float = 5.0) -> list[dict[str, Any]]:
    request = ScoreRequest.model_validate_json(json.dumps({"rows": rows, "timeout_s": timeout_s}))
    return [reply.model_dump() for reply in asyncio.run(RewardService(judge).score(request))]


def test_captions_go_to_the_judge_in_one_call_and_rules_stay_here() -> None:
    judge = JudgeThatSays(recall(0.5), recall(1.0))
    replies = scored(judge, CAPTION, ROW, {**CAPTION, "rollout_id": "d"})
    assert [reply["scores"] for reply in replies] == [
        {"format": 1.0, "recall": 0.5},
        {"format": 1.0, "iou": 0.5},
        {"format": 1.0, "recall": 1.0},
    ]
    ((first, second),) = judge.asked
    assert first == second and first.prediction == "A dog runs."
    assert (first.reference, first.reference_events) == ("A dog runs. It stops.", ("A dog runs", "It stops"))
    assert replies[0]["evidence"] == {"judge": "llm", "recall": []} and replies[1]["evidence"] is None


def test_a_response_without_a_caption_is_wrong_without_asking_the_judge() -> None:
    judge = JudgeThatSays()
    (reply,) = scored(judge, {**CAPTION, "text": "no caption here"})
    assert (reply["status"], reply["scores"]) == ("ok", {"format": 0.0, "recall": 0.0})
    assert judge.asked == []


@pytest.mark.parametrize("status", ["abstain", "infra", "malformed"])
def test_what_the_judge_cannot_say_is_the_rows_status_without_scores(status: Any) -> None:
    judge = JudgeThatSays(Score(status=status, scores={}, reason="because", evidence={"judge": "llm"}))
    (reply,) = scored(judge, CAPTION)
    assert (reply["status"], reply["scores"], reply["reason"]) == (status, {}, "because")
    assert reply["evidence"] == {"judge": "llm"}


def test_without_a_judge_captions_are_infra_and_are_not_offered() -> None:
    (caption, grounding) = scored(None, CAPTION, ROW)
    assert caption["status"] == "infra" and "reward.judge.urls" in caption["reason"]
    assert grounding["status"] == "ok"
    assert "captioning" not in RewardService().tasks()
    assert "captioning" in RewardService(JudgeThatSays()).tasks()


def test_half_a_character_in_what_a_judge_says_costs_no_request() -> None:
    reason, evidence = "because of \ud800", {"verdicts": ["\udfff", "é"]}

    class Judge:
        kind = "llm"

        async def score(self, tasks: Sequence[JudgeTask], timeout_s: float) -> list[Score]:
            return [Score(status="abstain", scores={}, reason=reason, evidence=evidence) for _ in tasks]

    row = {**ROW, "task": "captioning", "text": "<answer>A dog.</answer>", "truth": {"caption": "A dog."}}
    request = ScoreRequest.model_validate_json(json.dumps({"rows": [{**row, "think": False}]}))
    (reply,) = asyncio.run(RewardService(Judge()).score(request))
    assert (reply.status, reply.reason, reply.evidence) == ("abstain", "because of ?", {"verdicts": ["?", "é"]})
    assert json.loads(REPLIES.dump_json([reply]))[0]["reason"] == "because of ?"


def test_a_judge_that_hangs_costs_the_callers_deadline() -> None:
    (reply,) = scored(JudgeThatSays(recall(1.0), seconds=30.0), CAPTION, timeout_s=0.1)
    assert reply["status"] == "infra" and "did not answer" in reply["reason"]


def test_rules_that_are_not_done_at_the_callers_deadline_are_missing_data() -> None:
    """Long texts: what is done in time counts, and the other rows are "infra" and never 0."""
    text = "<think>" + "from 1 s to 2 s, " * 20_000 + "</think><answer>1 to 2</answer>"
    rows = [
        {**ROW, "rollout_id": str(index), "text": text, "scores": ["iou", "cited_times"], "duration_s": 9}
        for index in range(64)
    ]
    request = ScoreRequest.model_validate({"rows": rows, "timeout_s": 0.05})
    replies = asyncio.run(RewardService().score(request))
    assert [reply.rollout_id for reply in replies] == [one["rollout_id"] for one in rows]
    assert {reply.status for reply in replies} <= {"ok", "infra"} and replies[-1].status == "infra"
    assert all(reply.scores["iou"] == 0.5 if reply.status == "ok" else reply.scores == {} for reply in replies)
    assert "timeout_s" in replies[-1].reason


def test_too_many_waiting_for_the_judge_is_429_with_retry_after() -> None:
    async def ask() -> httpx.Response:
        service = RewardService(JudgeThatSays(Busy("too many wait", 1.5)))
        transport = httpx.ASGITransport(build_app(service, None, nothing_to_say))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return await http.post("/v1/score", json={"rows": [CAPTION]})

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")


def test_both_kinds_of_verdict_are_kept_apart() -> None:
    consistency = Score(status="ok", scores={"consistency": 1.0}, reason="", evidence={"judge": "llm", "why": "fits"})
    judge = JudgeThatSays(recall(0.5), consistency)
    (reply,) = scored(judge, {**CAPTION, "scores": ["format", "recall", "consistency"]})
    assert reply["scores"] == {"format": 1.0, "recall": 0.5, "consistency": 1.0}
    assert reply["evidence"]["consistency"]["why"] == "fits" and reply["evidence"]["recall"] == []


def test_health_and_status_need_no_secret_and_a_secret() -> None:
    async def ask(path: str, **headers: str) -> httpx.Response:
        transport = httpx.ASGITransport(build_app(RewardService(), TokenCheck.of("s3cret"), nothing_to_say))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            return await http.get(path, headers=headers)

    health = asyncio.run(ask("/healthz")).json()
    assert health["judge"] is None and "temporal_grounding" in health["tasks"] and health["scorers"] == []
    assert asyncio.run(ask("/v1/status")).status_code == 401
    assert asyncio.run(ask("/v1/status", authorization="Bearer s3cret")).status_code == 200
