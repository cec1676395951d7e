"""Calls of the judge's model against a server that misbehaves: every fault has its stated outcome."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import logging
import math
import pickle
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest

from reward_servers.judging.endpoints.endpoints import EndpointBoard
from reward_servers.judging.endpoints.leases import Board, CallReport, Lease, NoEndpoint
from reward_servers.judging.endpoints.llm import Completion, JudgeFailure, JudgeLlm
from rlsys.config.run import ConfigError, JudgeConfig
from tests.support.judge_fault_server import (
    CUT_OFF,
    DRIBBLE,
    FILTERED,
    HALF,
    HANG,
    NOT_A_COMPLETION,
    NOT_JSON,
    REFUSAL,
    WRONG_COUNT,
    Fault,
    FaultServer,
    Seen,
    error,
    slow,
    too_many,
)
from tests.support.pace import patience

pytestmark = pytest.mark.stack

KEY = "sk-very-secret-0123456789"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"events": {"type": "array", "items": {"type": "string"}}},
    "required": ["events"],
    "additionalProperties": False,
}
USER = '<description>\n"A cat jumps. It lands."\n</description>'
EVENTS = {"events": ["A cat jumps.", "It lands."]}
Result = TypeVar("Result")


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


@pytest.fixture
def other() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def config(*servers: FaultServer, **changes: Any) -> JudgeConfig:
    return JudgeConfig(urls=tuple(server.url for server in servers), model="judge", **changes)


def ask(llm: JudgeLlm, within_s: float = 60.0, user: str = USER) -> Awaitable[Completion]:
    """A call whose caller waits `within_s` seconds of the reference machine, see `tests.support.pace`."""
    return llm.complete("Split it.", user, SCHEMA, "split", time.monotonic() + patience(within_s))


def using(
    judge: JudgeConfig, work: Callable[[JudgeLlm, EndpointBoard], Awaitable[Result]], key: str | None = KEY
) -> tuple[Result, dict[str, Any]]:
    """What `work` gives, and the board's state once everything is reported."""

    async def run() -> tuple[Result, dict[str, Any]]:
        board = EndpointBoard(judge)
        llm = JudgeLlm(judge, board, key)
        try:
            result = await work(llm, board)
        finally:
            await llm.close()
        return result, await board.snapshot()

    return asyncio.run(run())


def failure(judge: JudgeConfig, within_s: float = 60.0) -> tuple[JudgeFailure, dict[str, Any]]:
    async def work(llm: JudgeLlm, board: Board) -> JudgeFailure:
        with pytest.raises(JudgeFailure) as caught:
            await ask(llm, within_s)
        return caught.value

    return using(judge, work)


def answer(judge: JudgeConfig, within_s: float = 60.0) -> tuple[Completion, dict[str, Any]]:
    return using(judge, lambda llm, board: ask(llm, within_s))


async def eventually(is_so: Callable[[], bool]) -> None:
    """Returns once it is so; a server in another thread needs a moment to see what its callers do."""
    async with asyncio.timeout(patience(20.0)):
        while not is_so():
            await asyncio.sleep(0.02)


def only(snapshot: dict[str, Any]) -> dict[str, Any]:
    (endpoint,) = snapshot["endpoints"].values()
    return endpoint


def test_an_answer_comes_back_with_its_cost_and_the_request_asks_for_structured_output(server: FaultServer) -> None:
    completion, snapshot = answer(config(server, max_output_tokens=77))
    assert completion.value == EVENTS
    assert completion.url == server.url
    (seen,) = server.seen
    assert completion.tokens == seen.tokens
    assert seen.body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "split", "strict": True, "schema": SCHEMA},
    }
    assert (seen.body["temperature"], seen.body["max_tokens"], seen.body["model"]) == (0.0, 77, "judge")
    assert [message["role"] for message in seen.body["messages"]] == ["system", "user"]
    assert seen.headers["authorization"] == f"Bearer {KEY}"
    assert only(snapshot)["outcomes"] == {"ok": 1}
    assert only(snapshot)["tokens_in_window"] == seen.tokens
    assert only(snapshot)["in_flight"] == 0


def test_without_a_key_none_is_sent_whatever_the_environment_holds(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody-else")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-somebody-else")
    using(config(server), lambda llm, board: ask(llm), key=None)
    assert "authorization" not in server.seen[0].headers
    assert "somebody-else" not in str(server.seen[0].headers)


@pytest.mark.parametrize(
    "fault", [too_many(), error(500), error(503), HALF, NOT_A_COMPLETION, NOT_JSON, CUT_OFF], ids=str
)
def test_one_fault_costs_one_more_call_and_no_answer(server: FaultServer, fault: Fault) -> None:
    async def work(llm: JudgeLlm, board: Board) -> Completion:
        await ask(llm)
        server.script(fault)
        return await ask(llm)

    completion, snapshot = using(config(server), work)
    assert completion.value == EVENTS
    assert len(server.seen) == 3
    assert only(snapshot)["calls"] == 3


@pytest.mark.parametrize(
    ("fault", "status", "calls", "said"),
    [
        (too_many(), "infra", 3, "HTTP 429: slow down"),
        (error(500), "infra", 3, "HTTP 500: made to fail"),
        (HALF, "infra", 3, "RemoteProtocolError"),
        (NOT_A_COMPLETION, "infra", 1, "HTTP 200 without a chat completion: '<html>"),
        (NOT_JSON, "malformed", 2, "the answer is not JSON"),
        (Fault(content="[1, 2]"), "malformed", 2, "a JSON list, not an object"),
        (Fault(content='{"events": [NaN]}'), "malformed", 2, "NaN is no JSON number"),
        (Fault(content="[" * 100_000), "malformed", 2, "the answer is not JSON"),
        (Fault(content=""), "malformed", 2, "the answer is not JSON"),
        (CUT_OFF, "malformed", 2, "reward.judge.max_output_tokens="),
        (REFUSAL, "abstain", 1, "I cannot help with that."),
        (FILTERED, "abstain", 1, "content filter"),
        (error(401), "infra", 1, "RLSYS_JUDGE_API_KEY"),
        (error(403), "infra", 1, "RLSYS_JUDGE_API_KEY"),
        (error(404), "infra", 1, "reward.judge.model='judge'"),
        (error(400), "infra", 1, "longer than the judge takes"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_fault_that_stays_has_its_outcome(
    server: FaultServer, fault: Fault, status: str, calls: int, said: str
) -> None:
    server.rule = lambda _: fault
    failed, snapshot = failure(config(server, max_attempts=3))
    assert failed.status == status
    assert said in failed.reason
    assert server.url in failed.reason
    assert len(server.seen) == calls
    assert only(snapshot)["in_flight"] == 0


def test_a_wrong_number_of_verdicts_is_the_callers_to_see(server: FaultServer) -> None:
    server.script(WRONG_COUNT)
    completion, _ = answer(config(server))
    assert completion.value == {"events": EVENTS["events"][:-1]}


@pytest.mark.parametrize("fault", [HANG, DRIBBLE], ids=["hang", "dribble"])
def test_a_call_that_takes_too_long_is_cut_off_and_made_again(server: FaultServer, fault: Fault) -> None:
    server.script(fault)
    limit_s, started = patience(1.5), time.monotonic()
    completion, snapshot = answer(config(server, call_timeout_s=limit_s))
    assert completion.value == EVENTS
    assert time.monotonic() - started > limit_s
    assert only(snapshot)["outcomes"]["infra"] >= 1  # on a busy machine a good call may take too long as well
    assert f"no whole answer within {limit_s:g} s" in only(snapshot)["last_error"]


@pytest.mark.parametrize("fault", [HANG, DRIBBLE, error(500), too_many("60")], ids=str)
def test_the_deadline_of_the_caller_holds_whatever_the_server_does(server: FaultServer, fault: Fault) -> None:
    server.rule = lambda _: fault
    call_s = patience(60.0)
    judge = config(server, max_attempts=1000, breaker_failures=1000, call_timeout_s=call_s)
    started = time.monotonic()
    failed, snapshot = failure(judge, within_s=0.7)
    assert 0.5 < time.monotonic() - started < call_s  # which the call alone would take
    assert failed.status == "infra"
    assert server.url in failed.reason
    assert only(snapshot)["in_flight"] <= 1  # the endpoint may still be at work on the call that was cut off
    assert snapshot["waiting"] == 0


def test_a_deadline_that_has_passed_makes_no_call(server: FaultServer) -> None:
    failed, snapshot = failure(config(server), within_s=-1.0)
    assert failed.status == "infra"
    assert not server.seen
    assert only(snapshot)["in_flight"] == 0


def test_a_deadline_while_waiting_for_a_turn_names_who_is_busy(server: FaultServer) -> None:
    server.rule = lambda _: HANG

    async def work(llm: JudgeLlm, board: Board) -> JudgeFailure:
        first = asyncio.create_task(ask(llm, 30.0))  # type: ignore[arg-type]
        await eventually(lambda: server.in_flight == 1)
        with pytest.raises(JudgeFailure) as caught:
            await ask(llm, 1.5)
        first.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await first
        return caught.value

    failed, snapshot = using(config(server, max_concurrency=1), work)
    assert "busy with 1 of 1 calls" in failed.reason
    assert only(snapshot)["outcomes"] == {"abandoned": 1}


@pytest.mark.parametrize("in_form", ["seconds", "date"])
def test_retry_after_keeps_every_caller_away_so_long(server: FaultServer, in_form: str) -> None:
    back_at: list[float] = []  # of time.time

    def rule(seen: Seen) -> Fault | None:
        if seen.number:
            return None
        back_at.append(float(math.ceil(time.time() + 1.0)) if in_form == "date" else time.time() + 1.0)
        return too_many("1" if in_form == "seconds" else email.utils.formatdate(back_at[0], usegmt=True))

    server.rule = rule

    async def work(llm: JudgeLlm, board: Board) -> None:
        await ask(llm)
        await ask(llm)

    using(config(server), work)
    assert len(server.seen) == 3
    assert server.seen[1].at + time.time() - time.monotonic() >= back_at[0] - 0.01


def test_a_retry_goes_to_another_endpoint(server: FaultServer, other: FaultServer) -> None:
    server.rule = other.rule = lambda seen: error(500) if seen.number == 0 else None
    completion, _ = answer(config(server, other))
    assert completion.value == EVENTS
    assert sorted([len(server.seen), len(other.seen)]) == [1, 2]  # both failed once before one was asked again


def test_an_endpoint_with_a_wrong_key_is_left_alone_and_the_other_answers(
    server: FaultServer, other: FaultServer
) -> None:
    server.api_key = "another"

    async def work(llm: JudgeLlm, board: Board) -> list[Completion]:
        return [await ask(llm) for _ in range(6)]

    completions, snapshot = using(config(server, other), work)
    assert {completion.url for completion in completions} == {other.url}
    assert len(server.seen) == 1
    assert snapshot["endpoints"][server.url]["state"] == "open"


def test_an_endpoint_that_comes_back_is_used_again(server: FaultServer) -> None:
    async def work(llm: JudgeLlm, board: Board) -> Completion:
        await ask(llm)
        server.stop()
        waiting = asyncio.create_task(ask(llm, 30.0))  # type: ignore[arg-type]
        await asyncio.sleep(0.6)
        assert not waiting.done()
        server.start()
        return await waiting

    completion, snapshot = using(config(server, max_attempts=100, breaker_failures=2, breaker_open_s=0.3), work)
    assert completion.value == EVENTS
    assert only(snapshot)["state"] == "closed"
    assert only(snapshot)["outcomes"]["infra"] >= 2


def test_a_route_that_vanishes_for_a_moment_is_no_wrong_address(server: FaultServer) -> None:
    async def work(llm: JudgeLlm, board: Board) -> Completion:
        await ask(llm)
        server.script(error(404))
        return await ask(llm)

    assert using(config(server), work)[0].value == EVENTS


def test_the_breaker_spares_a_broken_endpoint_and_tries_it_with_one_call(server: FaultServer) -> None:
    server.rule = lambda _: error(500)
    judge = config(server, max_attempts=1, breaker_failures=3, breaker_open_s=patience(4.0))

    async def work(llm: JudgeLlm, board: EndpointBoard) -> list[int]:
        counts = []
        for _ in range(3):
            with pytest.raises(JudgeFailure):
                await ask(llm)
        counts.append(len(server.seen))
        outcomes = await asyncio.gather(*(ask(llm, 1.5) for _ in range(5)), return_exceptions=True)
        assert [one.status for one in outcomes if isinstance(one, JudgeFailure)] == ["infra"] * 5
        assert "s more after failures in a row" in str(outcomes)
        counts.append(len(server.seen))
        server.rule = lambda _: slow(0.3)
        await asyncio.gather(*(ask(llm, 30.0) for _ in range(5)))
        return counts

    counts, snapshot = using(judge, work)
    assert counts == [3, 3]
    arrivals = [seen.at - server.seen[3].at for seen in server.seen[3:]]
    assert len(arrivals) == 5
    assert all(at > 0.25 for at in arrivals[1:])  # they waited for the probe's end
    assert only(snapshot)["state"] == "closed"


def hedging(first: FaultServer, second: FaultServer, slow_call: Fault) -> tuple[Completion, dict[str, Any], float]:
    """One call that meets `slow_call`, after 20 fast ones, too few for hedges of their own."""
    faults: list[Fault] = []
    first.rule = second.rule = lambda _: faults.pop() if faults else slow(0.02)

    async def work(llm: JudgeLlm, board: Board) -> tuple[Completion, float]:
        for _ in range(20):
            await ask(llm)
        faults.append(slow_call)
        started = time.monotonic()
        return await ask(llm), time.monotonic() - started

    judge = config(first, second, hedge=True, call_timeout_s=patience(60.0))
    (completion, seconds), snapshot = using(judge, work)
    return completion, snapshot, seconds


def test_a_hedge_overtakes_a_slow_call_and_the_loser_is_abandoned(server: FaultServer, other: FaultServer) -> None:
    completion, snapshot, seconds = hedging(server, other, HANG)
    assert seconds < 60.0  # which a call without a hedge would take at least
    assert len(server.seen) + len(other.seen) == 22
    (loser,) = (url for url, one in snapshot["endpoints"].items() if one["outcomes"].get("abandoned"))
    assert completion.url != loser
    assert sum(one["outcomes"]["ok"] for one in snapshot["endpoints"].values()) == 21
    assert snapshot["endpoints"][loser]["in_flight"] <= 1  # draining
    asyncio.run(eventually(lambda: server.num_hung_up + other.num_hung_up == 1))


def test_a_hedge_does_not_wait_for_room(server: FaultServer) -> None:
    server.rule = lambda seen: slow(0.5) if seen.number == 24 else slow(0.01)

    async def work(llm: JudgeLlm, board: Board) -> list[Completion]:
        return [await ask(llm) for _ in range(25)]

    _, snapshot = using(config(server, hedge=True, max_concurrency=1), work)
    assert server.max_concurrency == 1
    assert only(snapshot)["outcomes"] == {"ok": 25}


def test_a_hedge_rescues_a_call_that_fails_late(server: FaultServer, other: FaultServer) -> None:
    late_s = patience(20.0)
    completion, _, seconds = hedging(server, other, Fault(status=500, delay_s=late_s))
    assert completion.value == EVENTS
    assert seconds < late_s
    assert len(server.seen) + len(other.seen) == 22


@pytest.mark.parametrize("after_s", [0.0, 0.001, 0.01, 0.1])
def test_a_cancelled_caller_leaves_nothing_behind(server: FaultServer, after_s: float) -> None:
    server.delay_s = 0.05

    async def work(llm: JudgeLlm, board: EndpointBoard) -> None:
        tasks = [asyncio.create_task(ask(llm)) for _ in range(20)]  # type: ignore[arg-type]
        await asyncio.sleep(after_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await eventually(lambda: server.in_flight == 0)
        await asyncio.sleep(0.3)  # longer than an endpoint is given to notice

    _, snapshot = using(config(server, max_concurrency=3, hedge=True), work)
    assert snapshot["waiting"] == 0
    assert only(snapshot)["in_flight"] == 0
    assert server.max_concurrency <= 3


def test_closing_does_not_wait_for_those_who_gave_up_waiting(server: FaultServer) -> None:
    server.script(too_many("60"))

    async def work(llm: JudgeLlm, board: EndpointBoard) -> None:
        asked = asyncio.create_task(ask(llm, 30.0))  # type: ignore[arg-type]
        async with asyncio.timeout(patience(20.0)):
            while only(await board.snapshot())["state"] != "paused":
                await asyncio.sleep(0.02)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)

    started = time.monotonic()
    _, snapshot = using(config(server), work)
    assert time.monotonic() - started < 60.0  # which the server asks to wait
    assert (snapshot["waiting"], only(snapshot)["in_flight"]) == (0, 0)


def test_limits_hold_at_the_server_with_many_callers_and_faults() -> None:
    faults = [HANG, error(500), HALF, too_many("0.2"), NOT_JSON, too_many()]

    def rule(seen: Seen) -> Fault | None:
        return faults[seen.number // 7 % len(faults)] if seen.number % 7 == 3 else None

    window_s = patience(1.0)  # a minute would take minutes
    with FaultServer(delay_s=0.03) as server:
        server.rule = rule
        judge = config(
            server,
            max_concurrency=4,
            requests_per_minute=30,
            tokens_per_minute=30_000,
            call_timeout_s=patience(0.4),
            max_attempts=50,
            max_output_tokens=32,
            breaker_failures=100,
            hedge=True,
        )

        async def run() -> tuple[list[Any], dict[str, Any]]:
            board = EndpointBoard(judge, window_s=window_s)
            llms = [JudgeLlm(judge, board, KEY) for _ in range(4)]
            results = await asyncio.gather(*(ask(llms[n % 4], 100.0) for n in range(90)), return_exceptions=True)
            for llm in llms:
                await llm.close()
            return results, await board.snapshot()

        results, snapshot = asyncio.run(run())
        answers = [result for result in results if isinstance(result, Completion)]
        troubled = [result for result in results if isinstance(result, JudgeFailure)]
        assert len(answers) + len(troubled) == 90
        assert all(one.value == EVENTS for one in answers)
        assert {one.status for one in troubled} <= {"malformed"}
        assert server.max_concurrency <= 4
        assert server.most_in(window_s) <= 30
        assert server.most_tokens_in(window_s) <= 30_000
        assert server.most_in(window_s) > 10  # and the limit is used
        assert only(snapshot)["calls"] >= len(server.seen)  # one may be cut off before it was sent, none goes unasked


def test_the_key_is_nowhere_to_be_seen(server: FaultServer, caplog: pytest.LogCaptureFixture) -> None:
    server.api_key = "another"  # the server repeats the refused key in its message
    caplog.set_level(logging.DEBUG)
    failed, snapshot = failure(config(server))
    judge = config(server)
    llm = JudgeLlm(judge, EndpointBoard(judge), KEY)
    shown = f"{failed} {failed!r} {failed.__cause__!r} {pickle.dumps(failed)!r} {snapshot} {llm!r} {caplog.text}"
    assert KEY not in shown
    assert "***" in failed.reason
    with pytest.raises(TypeError):
        pickle.dumps(llm)


@pytest.mark.parametrize("key", ["sk-with\nnewline", "sk-€", "two words"])
def test_a_key_that_no_header_can_hold_is_refused_without_showing_it(server: FaultServer, key: str) -> None:
    judge = config(server)
    with pytest.raises(ConfigError) as caught:
        JudgeLlm(judge, EndpointBoard(judge), key)
    assert key not in str(caught.value)
    assert "RLSYS_JUDGE_API_KEY" in str(caught.value)


def test_text_that_is_no_unicode_is_sent_all_the_same(server: FaultServer) -> None:
    completion, _ = using(config(server), lambda llm, board: ask(llm, user="a lone \ud800 surrogate"))
    assert server.seen[0].user == "a lone ? surrogate"
    assert completion.value == {"events": ["nothing"]}


class _Restarting:
    """A board whose first grant is lost, as when its process restarts."""

    def __init__(self, board: EndpointBoard) -> None:
        self.board, self.num_lost = board, 0

    async def acquire(self, tokens: int, avoid: tuple[str, ...], wait_s: float) -> Lease:
        if not self.num_lost:
            self.num_lost = 1
            raise NoEndpoint("the owner of the limits restarts")
        return await self.board.acquire(tokens, avoid, wait_s)

    async def release(self, lease_id: str, report: CallReport) -> None:
        await self.board.release(lease_id, report)

    async def hedge_after_s(self) -> float | None:
        raise NoEndpoint("the owner of the limits restarts")

    async def snapshot(self) -> dict[str, Any]:
        return await self.board.snapshot()


def test_an_owner_of_limits_that_restarts_is_asked_again(server: FaultServer) -> None:
    judge = config(server, hedge=True)

    async def run() -> Completion:
        llm = JudgeLlm(judge, _Restarting(EndpointBoard(judge)), KEY)
        completion = await ask(llm)
        await llm.close()
        return completion

    assert asyncio.run(run()).value == EVENTS
