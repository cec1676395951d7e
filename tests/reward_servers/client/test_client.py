"""The client against an HTTP server that misbehaves as told, over real sockets."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import json
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from reward_servers.client import client as client_module
from reward_servers.client import transport as transport_module
from reward_servers.client.client import RewardClient, short_id
from reward_servers.client.transport import MAX_REPLY_BYTES, RewardServerError, fetch_status, wait_until_healthy
from reward_servers.schema import MAX_ID_CHARS
from rlsys.algorithm.advantages import group_advantages
from rlsys.config.run import ConfigError, RewardConfig
from rlsys.types import RolloutGroup, ScoredGroup
from tests.support.factories import make_group
from tests.support.pace import patience

pytestmark = pytest.mark.stack

Rows = list[dict[str, Any]]
Answer = Callable[[Rows], tuple[int, Mapping[str, str], bytes]]
GROUP = make_group(num_rollouts=4)
SPACES = b" " * (200 << 20)
"""Made before memory is measured."""


class FaultyServer:
    """Answers request k as `answers[k]` says, the last answer for ever.

    seen: (when, headers, rows) per request.  requests: their whole bodies.
    """

    def __init__(self, answers: Sequence[Answer]) -> None:
        self.seen: list[tuple[float, Mapping[str, str], Rows]] = []
        self.requests: list[dict[str, Any]] = []
        self.page: bytes | None = None  # of every GET
        self.page_headers: dict[str, str] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["content-length"])))
                rows = request["rows"]
                outer.requests.append(request)
                outer.seen.append((time.monotonic(), dict(self.headers), rows))
                status, headers, body = answers[min(len(outer.seen), len(answers)) - 1](rows)
                self.send_response(status)
                for name, value in {"content-length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                with suppress(ConnectionError):  # of a client that has read enough
                    self.wfile.write(body)
                self.close_connection = "content-length" in headers

            def do_GET(self) -> None:
                if outer.page is None:
                    self.send_error(501)
                    return
                self.send_response(200)
                for name, value in {"content-length": str(len(outer.page)), **outer.page_headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                with suppress(ConnectionError):
                    self.wfile.write(outer.page)

            def log_message(self, format: str, *args: object) -> None:
                """Silence."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def server(*answers: Answer) -> Iterator[FaultyServer]:
    faulty = FaultyServer(answers)
    try:
        yield faulty
    finally:
        faulty.close()


def reply(rollout_id: str, iou: float = 0.5, status: str = "ok", reason: str = "") -> dict[str, object]:
    scores = {"format": 1.0, "iou": iou} if status == "ok" else {}
    return {"rollout_id": rollout_id, "status": status, "scores": scores, "reason": reason}


def said(replies: object, status: int = 200, **headers: str) -> Answer:
    return lambda rows: (status, headers, json.dumps(replies).encode())


def good(rows: Rows) -> tuple[int, Mapping[str, str], bytes]:
    """Rollout k has IoU k / 8."""
    replies = [reply(row["rollout_id"], index / 8) for index, row in enumerate(rows)]
    return 200, {}, json.dumps(replies[::-1]).encode()


def fails(status: int, **headers: str) -> Answer:
    return lambda rows: (status, headers, b"no")


def slow(seconds: float) -> Answer:
    def answer(rows: Rows) -> tuple[int, Mapping[str, str], bytes]:
        time.sleep(seconds)
        return good(rows)

    return answer


def score(
    url: str, group: RolloutGroup = GROUP, token: str | None = None, think: bool = True, **reward: object
) -> tuple[ScoredGroup, dict[str, float]]:
    async def ask() -> tuple[ScoredGroup, dict[str, float]]:
        client = RewardClient(RewardConfig.model_validate({"timeout_s": patience(5.0), **reward}), url, token)
        asked = replace(group, item=replace(group.item, think=think))
        try:
            return await client.score(asked, {"generate": (1.0, 2.0)}), client.counters()
        finally:
            await client.close()

    return asyncio.run(ask())


def assert_all_missing(scored: ScoredGroup, *parts: str) -> None:
    assert not scored.is_valid.any()
    assert np.isnan(scored.rewards).all() and np.isnan(scored.scores).all()
    assert all(reason.startswith("infra") and all(part in reason for part in parts) for reason in scored.reasons), (
        scored.reasons
    )


def test_scores_come_back_in_rollout_order_and_rewards_are_weighted_sums() -> None:
    with server(good) as faulty:
        scored, _ = score(faulty.url, weights={"temporal_grounding": {"iou": 2.0}})
    assert scored.score_names == ("format", "iou")
    np.testing.assert_array_equal(scored.scores, np.array([[1, 0], [1, 0.125], [1, 0.25], [1, 0.375]], np.float32))
    np.testing.assert_array_equal(scored.rewards, np.array([1.0, 1.25, 1.5, 1.75], np.float32))
    assert scored.rewards.dtype == scored.scores.dtype == np.float32
    assert scored.is_valid.all() and scored.reasons == ("",) * 4
    assert scored.spans["generate"] == (1.0, 2.0)
    assert scored.spans["score"][0] <= scored.spans["score"][1]


def test_a_group_is_one_request_with_token_variant_and_truth() -> None:
    with server(good) as faulty:
        score(faulty.url, token="s3cret", think=False)
    ((_, headers, rows),) = faulty.seen
    assert headers["Authorization"] == "Bearer s3cret"
    assert [row["rollout_id"] for row in rows] == [rollout.rollout_id for rollout in GROUP.rollouts]
    assert {(row["task"], row["think"], tuple(row["truth"])) for row in rows} == {("temporal_grounding", False, (1, 2))}


def test_the_request_says_what_to_compute_and_how_long_the_caller_waits() -> None:
    weights = {"temporal_grounding": {"length_bonus": 0.2}}
    settings, limit_s = {"length_window_tokens": [1, 5]}, patience(5.0)

    def bonus(rows: Rows) -> tuple[int, Mapping[str, str], bytes]:
        scores = {"format": 1.0, "iou": 0.5, "length_bonus": 1.0}
        return 200, {}, json.dumps([{**reply(row["rollout_id"]), "scores": scores} for row in rows]).encode()

    with server(bonus) as faulty:
        scored, _ = score(faulty.url, weights=weights, settings=settings, timeout_s=limit_s)
    (request,) = faulty.requests
    assert request["settings"]["length_window_tokens"] == [1, 5]
    assert limit_s / 4 <= request["timeout_s"] <= limit_s - 2.0  # with room for the answer to arrive
    row = request["rows"][0]
    assert (row["scores"], row["num_tokens"], row["question"]) == (["format", "iou", "length_bonus"], 3, "When?")
    np.testing.assert_allclose(scored.rewards, 1.7)


def test_evidence_comes_back_with_its_rollout() -> None:
    replies = [{**reply(rollout.rollout_id), "evidence": {"judge": rollout.rollout_id}} for rollout in GROUP.rollouts]
    with server(said(replies[::-1])) as faulty:
        scored, _ = score(faulty.url)
    assert [evidence["judge"] for evidence in scored.evidence] == [rollout.rollout_id for rollout in GROUP.rollouts]


def lost(rows: Rows) -> tuple[int, Mapping[str, str], bytes]:
    reason = "http://judge:1/v1: connection refused"
    return 200, {}, json.dumps([reply(row["rollout_id"], status="infra", reason=reason) for row in rows]).encode()


def half_lost(rows: Rows) -> tuple[int, Mapping[str, str], bytes]:
    replies = [reply(row["rollout_id"], status=("infra", "ok")[index % 2]) for index, row in enumerate(rows)]
    return 200, {}, json.dumps(replies).encode()


def test_too_many_lost_scores_pause_the_run_which_goes_on_with_them(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_FIRST_WAIT_S", 0.05)
    with server(lost, lost, good) as faulty:
        scored, counters = score(faulty.url, failure_window=4)
    assert scored.is_valid.all() and len(faulty.seen) == 3
    assert counters["reward/paused_s"] > 0.1
    paused = next(record.message for record in caplog.records if "paused" in record.message)
    assert "4 of the last 4 rollouts" in paused and "http://judge:1/v1: connection refused" in paused
    assert any("the run continues" in record.message for record in caplog.records)


def test_a_judge_that_cannot_be_used_ends_the_run_at_once_with_its_own_words() -> None:
    words = "the judge cannot be used: http://judge:1/v1: HTTP 402: Insufficient credits. Remedy: pay. (1 call made)"
    with server(unusable_judge(words)) as faulty, pytest.raises(RewardServerError) as error:
        score(faulty.url)
    assert str(error.value) == f"{words} Nothing was lost: change it and resume with --resume."
    assert len(faulty.seen) == 1


def unusable_judge(reason: str) -> Answer:
    """Every row is "infra" for `reason`."""

    def answer(rows: Rows) -> tuple[int, Mapping[str, str], bytes]:
        return 200, {}, json.dumps([reply(row["rollout_id"], status="infra", reason=reason) for row in rows]).encode()

    return answer


def broken_scorer(*kinds: str) -> Answer:
    """A custom scorer fails for row k in the way `kinds[k]`, all of the last kind; "" is a score."""

    def answer(rows: Rows) -> tuple[int, Mapping[str, str], bytes]:
        found = []
        for index, row in enumerate(rows):
            kind = kinds[min(index, len(kinds) - 1)]
            fault = {"scorer": "mine", "kind": kind, "details": 'File "my_rewards.py", line 3, in mine'}
            one = reply(row["rollout_id"], status="infra" if kind else "ok", reason="scorer 'mine' failed")
            if not kind:
                one["scores"] = {"format": 1.0, "iou": 1.0, "mine": 1.0}
            found.append({**one, "fault": fault if kind else None})
        return 200, {}, json.dumps(found).encode()

    return answer


def score_twice(url: str, **reward: object) -> list[ScoredGroup]:
    mine = {"scorers": {"mine": "a:b"}, "weights": {"temporal_grounding": {"mine": 1.0}}}

    async def ask() -> list[ScoredGroup]:
        client = RewardClient(RewardConfig.model_validate({"timeout_s": patience(5.0), **mine, **reward}), url)
        try:
            return [await client.score(GROUP, {}), await client.score(GROUP, {})]
        finally:
            await client.close()

    return asyncio.run(ask())


@pytest.mark.parametrize("kind", ["raised KeyError", "returned NoneType", "ended its process", "could not start"])
def test_a_scorer_that_fails_for_every_row_of_the_first_requests_ends_the_run_with_the_users_line(kind: str) -> None:
    with server(broken_scorer(kind)) as faulty, pytest.raises(RewardServerError) as error:
        score_twice(faulty.url)
    assert len(faulty.seen) == 2
    first, _, rest = str(error.value).partition("\n")
    assert first == (
        f"reward.scorers.mine: the scorer {kind} for all 8 responses of the first 2 requests and never returned a "
        "score; correct it and start again."
    )
    assert rest == 'File "my_rewards.py", line 3, in mine'


def test_a_pause_does_not_hide_a_scorer_that_never_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_FIRST_WAIT_S", 0.05)
    with server(broken_scorer("raised KeyError")) as faulty, pytest.raises(RewardServerError, match="KeyError for all"):
        score_twice(faulty.url, failure_window=4)
    assert len(faulty.seen) == 2


@pytest.mark.parametrize(
    "answers",
    [
        (broken_scorer("raised KeyError", "", "raised KeyError"),) * 2,  # it works for some rows
        (broken_scorer("raised KeyError"), broken_scorer("raised ValueError")),  # each time in another way
        (broken_scorer("raised KeyError", "raised ValueError"),) * 2,
        (broken_scorer("late"),) * 2,  # it may be warming up
        (broken_scorer(""), broken_scorer("raised KeyError")),  # it has worked before
    ],
)
def test_a_scorer_that_fails_otherwise_is_missing_data_with_the_reason(answers: tuple[Answer, ...]) -> None:
    with server(*answers) as faulty:
        _, second = score_twice(faulty.url)
    assert not second.is_valid.all()
    assert {reason for reason in second.reasons if reason} == {"infra: scorer 'mine' failed"}


def test_the_run_is_told_which_scorer_is_slow(caplog: pytest.LogCaptureFixture) -> None:
    def slowly(rows: Rows) -> tuple[int, Mapping[str, str], bytes]:
        status, _, body = good(rows)
        return status, {"x-rlsys-slow-scorers": json.dumps({"mine": 2.5})}, body

    with server(slowly) as faulty:
        score(faulty.url)
        score(faulty.url)
    warned = [record.message for record in caplog.records if "slow custom scorers" in record.message]
    assert len(warned) == 2 and all("'mine' 2.5 s" in message for message in warned)  # once a client
    for nonsense in ("{", "[1]", '{"mine": "x"}', "null"):
        headers = {"x-rlsys-slow-scorers": nonsense}
        with server(lambda rows, headers=headers: (200, headers, good(rows)[2])) as faulty:  # type: ignore[misc]
            assert score(faulty.url)[0].is_valid.all()


@pytest.mark.parametrize("status", ["infra", "abstain", "malformed"])
def test_every_kind_of_missing_score_pauses_with_the_task_and_the_judges_own_words(
    status: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(rows: Rows) -> tuple[int, Mapping[str, str], bytes]:
        reason = "http://judge:1/v1: I have no json_schema"
        return 200, {}, json.dumps([reply(row["rollout_id"], status=status, reason=reason) for row in rows]).encode()

    monkeypatch.setattr(client_module, "_FIRST_WAIT_S", 0.05)
    with server(missing, good) as faulty:
        scored, _ = score(faulty.url, failure_window=4)
    assert scored.is_valid.all()
    paused = next(record.message for record in caplog.records if "paused" in record.message)
    assert f"rollouts of {GROUP.item.task}" in paused and f"{status}: http://judge:1/v1: I have no" in paused


def test_the_share_of_missing_scores_is_taken_task_by_task() -> None:
    client_window = RewardConfig(failure_window=8, max_failure_frac=0.5)

    async def ask(url: str) -> dict[str, bool]:
        client = RewardClient(client_window, url, None)
        other = dataclasses.replace(
            GROUP, item=dataclasses.replace(GROUP.item, task="captioning", truth={"caption": "a"})
        )
        try:
            await client.score(GROUP, {})
            await client.score(other, {})
            return {task: window.is_over for task, window in client._windows.items()}
        finally:
            await client.close()

    with server(lost, lost) as faulty:
        assert asyncio.run(ask(faulty.url)) == {GROUP.item.task: False, "captioning": False}  # half a window each


def test_a_group_whose_scores_came_is_not_paused_for_those_that_others_lost() -> None:
    async def ask_twice(url: str) -> list[ScoredGroup]:
        client = RewardClient(RewardConfig(failure_window=8, max_failure_frac=0.25), url, None)
        try:
            return [await client.score(GROUP, {}), await client.score(GROUP, {})]
        finally:
            await client.close()

    with server(lost, good) as faulty:
        first, second = asyncio.run(ask_twice(faulty.url))
    assert not first.is_valid.any() and second.is_valid.all() and len(faulty.seen) == 2


def test_a_paused_group_asks_again_for_its_lost_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_FIRST_WAIT_S", 0.05)
    with server(half_lost, good) as faulty:
        scored, _ = score(faulty.url, failure_window=4, max_failure_frac=0.4)
    assert scored.is_valid.all()
    assert [row["rollout_id"] for row in faulty.seen[1][2]] == ["file:0/0", "file:0/2"]


def test_few_lost_scores_do_not_pause() -> None:
    with server(half_lost) as faulty:
        scored, _ = score(faulty.url, failure_window=4, max_failure_frac=0.5)
    assert scored.is_valid.tolist() == [False, True, False, True] and len(faulty.seen) == 1


def test_a_window_that_is_not_full_does_not_pause() -> None:
    with server(lost) as faulty:
        scored, _ = score(faulty.url, failure_window=5)
    assert not scored.is_valid.any() and len(faulty.seen) == 1


def test_a_pause_that_does_not_end_stops_the_run_with_the_last_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_FIRST_WAIT_S", 0.05)
    with server(lost) as faulty, pytest.raises(RewardServerError, match="connection refused.*--resume"):
        score(faulty.url, failure_window=4, max_pause_s=0.2)


def test_one_failed_score_is_missing_and_does_not_move_the_others() -> None:
    ids = [rollout.rollout_id for rollout in GROUP.rollouts]
    replies = [
        reply(ids[0], 0.25),
        reply(ids[1], status="infra", reason="judge timed out"),
        reply(ids[2], 0.5),
        reply(ids[3], 0.75),
    ]
    with server(said(replies)) as faulty:
        scored, _ = score(faulty.url)
    assert scored.is_valid.tolist() == [True, False, True, True]
    assert scored.reasons == ("", "infra: judge timed out", "", "")
    assert np.isnan(scored.rewards[1]) and np.isnan(scored.scores[1]).all()
    advantages = group_advantages(scored.rewards, scored.is_valid)
    without = group_advantages(scored.rewards[[0, 2, 3]], np.ones(3, bool))
    np.testing.assert_array_equal(advantages, np.insert(without, 1, 0.0))


@pytest.mark.parametrize(
    "fault",
    [
        *(fails(status) for status in (500, 502, 503, 504, 429, 408)),
        said([]),
        said("text"),
        lambda rows: (200, {}, b"{half a"),
        lambda rows: (200, {"content-length": "1000"}, b"[half"),
        lambda rows: (200, {}, json.dumps([reply(row["rollout_id"]) for row in rows[1:]]).encode()),
        lambda rows: (200, {}, json.dumps([reply(row["rollout_id"]) for row in [*rows, rows[0]]]).encode()),
        lambda rows: (200, {}, json.dumps([reply(row["rollout_id"], 1.5) for row in rows]).encode()),
        lambda rows: (200, {}, json.dumps([reply(row["rollout_id"], float("nan")) for row in rows]).encode()),
    ],
)
def test_passing_trouble_is_retried(fault: Answer) -> None:
    with server(fault, fault, good) as faulty:
        scored, counters = score(faulty.url, timeout_s=patience(20.0))
    assert scored.is_valid.all()
    assert counters == {
        "reward/requests": 3,
        "reward/retries": 2,
        "reward/unanswered_groups": 0,
        "reward/paused_s": 0,
    }


def test_retry_after_is_honoured() -> None:
    with server(fails(429, **{"retry-after": "1"}), good) as faulty:
        scored, _ = score(faulty.url)
    assert scored.is_valid.all()
    assert faulty.seen[1][0] - faulty.seen[0][0] >= 1.0


def test_a_retry_after_beyond_the_deadline_gives_up_at_once() -> None:
    with server(fails(503, **{"retry-after": "600"})) as faulty:
        limit_s, started = patience(30.0), time.monotonic()
        scored, counters = score(faulty.url, timeout_s=limit_s)
        assert time.monotonic() - started < limit_s  # which waiting would take
    assert_all_missing(scored, faulty.url, "HTTP 503")
    assert counters["reward/unanswered_groups"] == 1


def test_after_the_deadline_the_group_is_missing_with_the_last_failure() -> None:
    with server(fails(500)) as faulty:
        scored, counters = score(faulty.url, timeout_s=patience(0.8))
    assert_all_missing(scored, faulty.url, "HTTP 500")
    assert counters["reward/requests"] >= 2


def test_a_server_that_hangs_costs_the_deadline_and_no_more() -> None:
    limit_s = patience(0.5)
    with server(slow(4 * limit_s)) as faulty:
        started = time.monotonic()
        scored, _ = score(faulty.url, timeout_s=limit_s)
        assert time.monotonic() - started < 4 * limit_s  # which the answer takes
    assert_all_missing(scored, faulty.url)


def test_a_server_that_is_gone_is_missing_data() -> None:
    with server(good) as faulty:
        pass
    scored, _ = score(faulty.url, timeout_s=patience(0.6))
    assert_all_missing(scored, faulty.url, "ConnectError")


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (401, "RLSYS_REWARD_TOKEN"),
        (403, "RLSYS_REWARD_TOKEN"),
        (404, "reward.url"),
        (405, "reward.url"),
        (302, "reward.url"),
    ]
    + [(413, "rollout.group_size"), (422, "same version")],
)
def test_what_no_retry_can_mend_stops_with_url_and_remedy(status: int, remedy: str) -> None:
    with server(fails(status)) as faulty, pytest.raises(RewardServerError, match=remedy) as error:
        score(faulty.url, token="s3cret")
    assert faulty.url in str(error.value) and f"HTTP {status}" in str(error.value)
    assert "s3cret" not in str(error.value)
    assert len(faulty.seen) == 1


@pytest.mark.parametrize(("was_healthy", "replies"), [(False, (good, fails(404), good)), (True, (fails(404), good))])
def test_a_404_of_servers_that_have_answered_is_a_restarting_proxy(
    was_healthy: bool, replies: tuple[Answer, ...]
) -> None:
    async def ask(url: str) -> list[ScoredGroup]:
        client = RewardClient(RewardConfig(timeout_s=patience(5.0)), url, was_healthy=was_healthy)
        found = [await client.score(GROUP, {}) for _ in range(len(replies) - 1)]
        await client.close()
        return found

    with server(*replies) as faulty:
        assert all(scored.is_valid.all() for scored in asyncio.run(ask(faulty.url)))
    assert len(faulty.seen) == len(replies)


def test_scores_of_another_version_are_refused() -> None:
    replies = [{**reply(rollout.rollout_id), "scores": {"format": 1.0}} for rollout in GROUP.rollouts]
    with server(said(replies)) as faulty, pytest.raises(RewardServerError, match="same version"):
        score(faulty.url)


def test_groups_are_scored_at_the_same_time() -> None:
    async def ask(url: str) -> list[ScoredGroup]:
        client = RewardClient(RewardConfig(timeout_s=patience(10.0)), url)
        found = await asyncio.gather(*(client.score(make_group(f"file:{index}"), {}) for index in range(8)))
        await client.close()
        return found

    answer_s = patience(0.4)
    with server(slow(answer_s)) as faulty:
        started = time.monotonic()
        scored = asyncio.run(ask(faulty.url))
        assert time.monotonic() - started < 8 * answer_s  # which one after another would take
    assert [group.group.item.prompt_id for group in scored] == [f"file:{index}" for index in range(8)]


def test_text_that_is_not_utf8_can_still_be_sent() -> None:
    rollouts = tuple(dataclasses.replace(rollout, text="a\ud800b") for rollout in GROUP.rollouts)
    with server(good) as faulty:
        scored, _ = score(faulty.url, dataclasses.replace(GROUP, rollouts=rollouts))
    assert scored.is_valid.all()
    assert faulty.seen[0][2][0]["text"] == "a?b"


def test_a_proxy_in_the_environment_is_not_asked_for_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with server(good) as faulty:
        scored, _ = score(faulty.url)
    assert scored.is_valid.all()


def test_weights_and_urls_that_cannot_work_fail_at_construction() -> None:
    with pytest.raises(ConfigError, match="reward.weights.dance"):
        RewardClient(RewardConfig(weights={"dance": {"iou": 1.0}}), "http://127.0.0.1:1")
    for url in ("127.0.0.1:8000", "ftp://host", "http://", "", "http://[::1", "http://host:99999", "http://a host"):
        with pytest.raises(RewardServerError, match="base URL"):
            RewardClient(RewardConfig(), url)


def test_waiting_for_health_ends_with_url_and_remedy() -> None:
    with server(good) as faulty, pytest.raises(RewardServerError, match="reward.url") as error:
        wait_until_healthy(faulty.url, patience(0.3))  # it answers GET with 501
    assert faulty.url in str(error.value) and "501" in str(error.value)
    with pytest.raises(RewardServerError, match="ConnectError"):
        wait_until_healthy(faulty.url, patience(0.3))


def test_an_answer_without_end_costs_neither_memory_nor_the_run() -> None:
    def huge(rows: Rows) -> tuple[int, Mapping[str, str], bytes]:
        return 200, {"content-length": str(1 << 40)}, b" " * (MAX_REPLY_BYTES + (1 << 20))

    def huge_error(rows: Rows) -> tuple[int, Mapping[str, str], bytes]:
        return 500, {"content-length": str(1 << 40)}, b"x" * (1 << 20)

    with server(huge, huge_error, good) as faulty:
        scored, counters = score(faulty.url, timeout_s=patience(60.0))
    assert scored.is_valid.all() and counters["reward/retries"] == 2


def test_answers_that_are_all_without_end_are_missing_data(monkeypatch: pytest.MonkeyPatch) -> None:
    # an attempt that has begun when the time is up says nothing, so the first one must be over by then: with this limit
    # it moves a megabyte over loopback, which takes about a thousandth of the time
    monkeypatch.setattr(transport_module, "MAX_REPLY_BYTES", 1 << 20)

    def huge(rows: Rows) -> tuple[int, Mapping[str, str], bytes]:
        return 200, {"content-length": str(1 << 40)}, b" " * (2 << 20)

    with server(huge) as faulty:
        scored, _ = score(faulty.url, timeout_s=patience(2.0))
    assert_all_missing(scored, f"{faulty.url}/v1/score answered with more than 1 MiB")


def test_200_mb_of_an_answer_are_not_kept() -> None:
    def endless(rows: Rows) -> tuple[int, Mapping[str, str], bytes]:
        return 200, {"content-length": str(200 << 20)}, SPACES

    tracemalloc.start()
    with server(endless, good) as faulty:
        scored, counters = score(faulty.url, timeout_s=patience(60.0))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert scored.is_valid.all() and counters["reward/retries"] == 1, "it was read up to the limit, and refused"
    assert MAX_REPLY_BYTES < most < 3 * MAX_REPLY_BYTES  # the limit, its growth by doubling, and the rest


@pytest.mark.parametrize(
    ("page", "headers", "said"),
    [
        (b" " * (MAX_REPLY_BYTES + 1), {}, "more than 32 MiB"),
        (gzip.compress(b"{}", mtime=0), {"content-encoding": "gzip"}, "Content-Encoding gzip"),
        (b"<html>", {}, "this is no rlsys reward server"),
        (b"[1]", {}, "this is no rlsys reward server"),
    ],
)
def test_health_and_status_are_read_within_bounds_too(page: bytes, headers: dict[str, str], said: str) -> None:
    with server(good) as faulty:
        faulty.page, faulty.page_headers = page, headers
        for ask in (lambda: wait_until_healthy(faulty.url, 0.1), lambda: fetch_status(faulty.url, None)):
            with pytest.raises(RewardServerError, match=said):
                ask()


@pytest.mark.parametrize("encoding", ["gzip", "br", "x" * 10_000])
def test_a_compressed_answer_is_refused_before_it_is_unpacked(encoding: str) -> None:
    def bomb(rows: Rows) -> tuple[int, Mapping[str, str], bytes]:
        return 200, {"content-encoding": encoding}, gzip.compress(b"[" + b" " * (64 << 20) + b"]")

    with (
        server(bomb) as faulty,
        pytest.raises(RewardServerError, match="Content-Encoding .*turn compression off") as error,
    ):
        score(faulty.url)
    assert len(str(error.value)) < 1000
    ((_, headers, _),) = faulty.seen
    assert headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("name", ["x" * 513, "é" * 100_000, "", "\ud800"])
def test_an_id_that_the_servers_refuse_is_shortened_and_stays_its_own(name: str) -> None:
    assert 0 < len(short_id(name)) <= MAX_ID_CHARS and short_id(name) == short_id(name)
    assert short_id(name) != short_id(name + "1")
    short_id(name).encode()


def test_an_id_that_the_servers_take_is_sent_as_it_is() -> None:
    assert short_id("x" * 512) == "x" * 512


@pytest.mark.parametrize("url", ["", "host:8000", "http://", "http://[::1", "http://host:99999", "ftp://host"])
def test_what_is_no_address_of_servers_is_refused(url: str) -> None:
    with pytest.raises(RewardServerError, match=r"reward.url=.*write a base URL such as"):
        fetch_status(url, None)
