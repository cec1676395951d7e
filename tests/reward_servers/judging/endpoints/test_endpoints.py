"""Who may call which endpoint when, in virtual time: hours of limits pass in milliseconds."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reward_servers.judging.endpoints.endpoints import ARRIVAL_S, LEASE_GRACE_S, EndpointBoard
from reward_servers.judging.endpoints.leases import UNUSED, CallReport, Lease, NoEndpoint
from rlsys.config.run import ConfigError, JudgeConfig

A, B = "http://a:1/v1", "http://b:1/v1"
OK = CallReport(outcome="ok", seconds=1.0, tokens=10)
FAILED = CallReport(outcome="infra", seconds=1.0, error="HTTP 500: broken")
HUNG_UP = CallReport(outcome="abandoned", seconds=1.0, hung_up=True)
MINUTE_S = 60.0 + ARRIVAL_S
Result = TypeVar("Result")


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        super().__init__()
        self._virtual_s = 0.0
        selector = self._selector  # type: ignore[has-type]
        real = selector.select

        def select(timeout: float | None = None) -> list[Any]:
            if timeout is None:
                raise RuntimeError("everybody waits and nobody will wake them")
            self._virtual_s += max(0.0, timeout)
            return real(0)

        selector.select = select

    def time(self) -> float:
        return self._virtual_s


def in_virtual_time(work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work())


def board(*urls: str, quiet_s: float = 0.0, **limits: Any) -> EndpointBoard:
    """A board in virtual time, of endpoint A unless others are named."""
    clock = asyncio.get_running_loop().time
    return EndpointBoard(JudgeConfig(urls=urls or (A,), **limits), clock, quiet_s=quiet_s)


def now() -> float:
    return asyncio.get_running_loop().time()


async def take(of: EndpointBoard, count: int, wait_s: float = 0.0, avoid: tuple[str, ...] = ()) -> list[Lease]:
    return [await of.acquire(10, avoid, wait_s) for _ in range(count)]


async def fails(waiting: Awaitable[Lease]) -> str:
    """The reason for which no lease came."""
    with pytest.raises(NoEndpoint) as caught:
        await waiting
    return caught.value.reason


async def state_of(of: EndpointBoard, url: str = A) -> dict[str, Any]:
    return (await of.snapshot())["endpoints"][url]


def test_no_more_calls_than_the_concurrency_and_the_next_in_line_gets_the_first_that_ends() -> None:
    async def work() -> None:
        it = board(max_concurrency=2)
        first, second = await take(it, 2)
        order: list[int] = []

        async def wait(number: int) -> None:
            lease = await it.acquire(10, (), 100.0)
            order.append(number)
            await asyncio.sleep(1.0)
            await it.release(lease.lease_id, OK)

        waiters = [asyncio.create_task(wait(number)) for number in range(5)]
        await asyncio.sleep(1.0)
        assert order == []
        assert (await it.snapshot())["waiting"] == 5
        await it.release(second.lease_id, OK)
        await asyncio.sleep(0)
        assert order == [0]
        await it.release(first.lease_id, OK)
        await asyncio.gather(*waiters)
        assert order == [0, 1, 2, 3, 4]
        assert (await state_of(it))["in_flight"] == 0

    in_virtual_time(work)


def test_calls_go_to_the_least_loaded_endpoint() -> None:
    async def work() -> None:
        it = board(A, B)
        leases = await take(it, 6)
        assert [lease.url for lease in leases] == [A, B, A, B, A, B]
        for lease in leases[::2]:
            await it.release(lease.lease_id, OK)
        assert [lease.url for lease in await take(it, 3)] == [A, A, A]

    in_virtual_time(work)


def test_an_avoided_endpoint_is_waited_past_while_the_other_is_only_busy() -> None:
    async def work() -> None:
        it = board(A, B, max_concurrency=1)
        (on_b,) = await take(it, 1, avoid=(A,))
        waiting = asyncio.create_task(it.acquire(10, (A,), 100.0))
        await asyncio.sleep(5.0)
        assert not waiting.done()
        (on_a,) = await take(it, 1)  # somebody behind who avoids nothing need not wait
        assert (on_b.url, on_a.url) == (B, A)
        await it.release(on_b.lease_id, OK)
        assert (await waiting).url == B

    in_virtual_time(work)


@pytest.mark.parametrize("why", ["only one", "open", "paused", "spent"])
def test_an_avoided_endpoint_is_taken_when_no_other_can_be_had(why: str) -> None:
    async def work() -> None:
        if why == "only one":
            it = board(A)
        else:
            it = board(A, B, breaker_failures=1, requests_per_minute=1 if why == "spent" else 0)
            (on_b,) = await take(it, 1, avoid=(A,))
            paused = CallReport(outcome="infra", retry_after_s=30.0)
            await it.release(on_b.lease_id, {"open": FAILED, "paused": paused, "spent": OK}[why])
        (lease,) = await take(it, 1, avoid=(A,))
        assert lease.url == A

    in_virtual_time(work)


def test_requests_per_minute_hold_over_every_minute_and_are_used_up() -> None:
    async def work() -> None:
        it = board(requests_per_minute=3)
        starts = []
        for _ in range(10):
            lease = await it.acquire(10, (), 1000.0)
            starts.append(now())
            await asyncio.sleep(1.0)
            await it.release(lease.lease_id, OK)
        assert starts == [0, 1, 2, 61, 62, 63, 122, 123, 124, 183]  # a minute after the end of each, one second long

    in_virtual_time(work)


def test_tokens_are_estimated_first_and_corrected_when_the_call_is_over() -> None:
    async def work() -> None:
        it = board(tokens_per_minute=100)
        first = await it.acquire(90, (), 0.0)
        assert "at its limit" in await fails(it.acquire(20, (), 0.0))
        await it.release(first.lease_id, CallReport(outcome="ok", tokens=30))
        assert (await state_of(it))["tokens_in_window"] == 30
        second = await it.acquire(70, (), 0.0)
        await it.release(second.lease_id, CallReport(outcome="ok", tokens=200))  # dearer than thought
        await it.acquire(100, (), 1000.0)
        assert now() == 60.0

    in_virtual_time(work)


def test_a_call_larger_than_the_limit_goes_alone() -> None:
    async def work() -> None:
        it = board(tokens_per_minute=100)
        await it.acquire(10_000, (), 0.0)
        await it.acquire(10_000, (), 1000.0)
        assert now() == MINUTE_S

    in_virtual_time(work)


def test_small_calls_do_not_overtake_a_large_one_for_ever() -> None:
    async def work() -> None:
        it = board(tokens_per_minute=100)
        await it.acquire(60, (), 0.0)
        large = asyncio.create_task(it.acquire(100, (), 1000.0))
        await asyncio.sleep(0)
        assert "at its limit" in await fails(it.acquire(1, (), 5.0))
        await large
        assert now() == MINUTE_S

    in_virtual_time(work)


def test_who_gives_up_makes_room_for_those_behind() -> None:
    async def work() -> None:
        it = board(tokens_per_minute=100)
        await it.acquire(60, (), 0.0)
        large = asyncio.create_task(it.acquire(100, (), 3.0))
        await asyncio.sleep(0)
        await it.acquire(1, (), 1000.0)
        assert now() == 3.0
        await fails(large)

    in_virtual_time(work)


def test_retry_after_pauses_the_endpoint_for_everybody() -> None:
    async def work() -> None:
        it = board(breaker_failures=1)
        first, second = await take(it, 2)
        await it.release(first.lease_id, CallReport(outcome="infra", retry_after_s=20.0, error="HTTP 429"))
        await it.release(second.lease_id, CallReport(outcome="infra", retry_after_s=5.0))  # does not shorten it
        assert (await state_of(it))["state"] == "paused"
        assert "paused for 20.0 s more" in await fails(it.acquire(10, (), 0.0))
        await it.acquire(10, (), 100.0)
        assert now() == 20.0

    in_virtual_time(work)


def test_no_endpoint_is_paused_for_longer_than_an_hour() -> None:
    async def work() -> None:
        it = board()
        (lease,) = await take(it, 1)
        await it.release(lease.lease_id, CallReport(outcome="infra", retry_after_s=1e9))
        await it.acquire(10, (), 1e6)
        assert now() == 3600.0

    in_virtual_time(work)


def test_the_breaker_opens_lets_one_call_try_and_closes() -> None:
    async def work() -> None:
        it = board(breaker_failures=3, breaker_open_s=10.0)
        for _ in range(2):
            (lease,) = await take(it, 1)
            await it.release(lease.lease_id, FAILED)
        (lease,) = await take(it, 1)
        await it.release(lease.lease_id, OK)  # in a row, so the count starts anew
        late, *leases = await take(it, 4)
        for lease in leases:
            await it.release(lease.lease_id, FAILED)
        assert (await state_of(it))["state"] == "open"
        reason = await fails(it.acquire(10, (), 4.0))
        assert "paused for 6.0 s more after failures in a row" in reason
        assert "HTTP 500: broken" in reason
        (probe,) = await take(it, 1, wait_s=100.0)
        assert now() == 10.0
        assert "being tried with one call" in await fails(it.acquire(10, (), 1.0))
        await it.release(late.lease_id, OK)  # began before it opened, so it says nothing new
        assert (await state_of(it))["state"] == "half_open"
        await it.release(probe.lease_id, FAILED)
        (probe,) = await take(it, 1, wait_s=100.0)
        assert now() == 21.0
        await it.release(probe.lease_id, OK)
        assert (await state_of(it))["state"] == "closed"
        assert len(await take(it, 5)) == 5

    in_virtual_time(work)


@pytest.mark.parametrize("report", [UNUSED, HUNG_UP], ids=["unused", "hung up"])
def test_a_probe_that_says_nothing_is_followed_by_another(report: CallReport) -> None:
    async def work() -> None:
        it = board(breaker_failures=1, breaker_open_s=10.0)
        (lease,) = await take(it, 1)
        await it.release(lease.lease_id, FAILED)
        (probe,) = await take(it, 1, wait_s=100.0)
        await it.release(probe.lease_id, report)
        await take(it, 1, wait_s=0.0)

    in_virtual_time(work)


def test_a_probe_whose_holder_is_gone_is_followed_by_another() -> None:
    async def work() -> None:
        it = board(breaker_failures=1, breaker_open_s=10.0, call_timeout_s=30.0)
        (lease,) = await take(it, 1)
        await it.release(lease.lease_id, FAILED)
        await take(it, 2, wait_s=1000.0)
        assert now() == 10.0 + 30.0 + LEASE_GRACE_S

    in_virtual_time(work)


def test_a_lasting_failure_opens_at_once() -> None:
    async def work() -> None:
        it = board(breaker_failures=5)
        (lease,) = await take(it, 1)
        await it.release(lease.lease_id, CallReport(outcome="infra", error="HTTP 401", is_lasting=True))
        assert (await state_of(it))["state"] == "open"

    in_virtual_time(work)


@pytest.mark.parametrize("outcome", ["ok", "abstain", "malformed", "rejected"])
def test_an_endpoint_that_answers_is_well_whatever_it_says(outcome: Any) -> None:
    async def work() -> None:
        it = board(breaker_failures=2)
        for report in (FAILED, CallReport(outcome=outcome), FAILED):
            (lease,) = await take(it, 1)
            await it.release(lease.lease_id, report)
        assert (await state_of(it))["state"] == "closed"

    in_virtual_time(work)


def test_a_lease_whose_holder_is_gone_runs_out() -> None:
    async def work() -> None:
        it = board(max_concurrency=1, call_timeout_s=30.0)
        (lost,) = await take(it, 1)
        await take(it, 1, wait_s=1000.0)
        assert now() == 30.0 + LEASE_GRACE_S
        assert (await state_of(it))["outcomes"] == {"lost": 1}
        await it.release(lost.lease_id, OK)  # too late
        assert (await state_of(it))["in_flight"] == 1

    in_virtual_time(work)


def test_an_unused_lease_costs_nothing() -> None:
    async def work() -> None:
        it = board(requests_per_minute=1, tokens_per_minute=10, max_concurrency=1)
        for _ in range(5):
            (lease,) = await take(it, 1)
            await it.release(lease.lease_id, UNUSED)
        state = await state_of(it)
        assert (state["calls"], state["calls_in_window"], state["tokens_in_window"]) == (0, 0, 0)

    in_virtual_time(work)


def test_an_endpoint_gets_a_moment_to_notice_that_its_caller_hung_up() -> None:
    async def work() -> None:
        it = board(max_concurrency=1)
        (lease,) = await take(it, 1)
        await it.release(lease.lease_id, HUNG_UP)
        await take(it, 1, wait_s=10.0)
        assert now() == 0.25

    in_virtual_time(work)


def test_after_a_restart_nothing_is_granted_while_old_calls_may_run() -> None:
    async def work() -> None:
        old = board()
        (lease,) = await take(old, 1)
        it = board(quiet_s=30.0)
        await it.release(lease.lease_id, OK)  # of the owner before: ignored
        assert (await state_of(it))["calls"] == 0
        assert "the owner of the limits restarted" in await fails(it.acquire(10, (), 0.0))
        (new,) = await take(it, 1, wait_s=100.0)
        assert now() == 30.0
        assert new.lease_id != lease.lease_id
        limited = board(quiet_s=30.0, requests_per_minute=5)  # what the last minute held is not known either
        await take(limited, 1, wait_s=100.0)
        assert now() == 30.0 + 60.0

    in_virtual_time(work)


def test_the_moment_of_the_hedge_is_the_95th_percentile_once_there_are_twenty_calls() -> None:
    async def work() -> None:
        it = board(A, B)
        for seconds in range(1, 20):
            (lease,) = await take(it, 1)
            await it.release(lease.lease_id, CallReport(outcome="ok", seconds=float(seconds)))
        assert await it.hedge_after_s() is None
        (lease,) = await take(it, 1)
        await it.release(lease.lease_id, CallReport(outcome="abandoned", seconds=100.0, hung_up=True))
        assert await it.hedge_after_s() == 19.0  # of 1, …, 19, 100

    in_virtual_time(work)


def test_a_waiter_that_is_cancelled_takes_nothing() -> None:
    async def work() -> None:
        it = board(max_concurrency=1)
        (lease,) = await take(it, 1)
        waiting = asyncio.create_task(it.acquire(10, (), 100.0))
        granted = asyncio.create_task(it.acquire(10, (), 100.0))
        await asyncio.sleep(1.0)
        waiting.cancel()
        await asyncio.sleep(0)
        await it.release(lease.lease_id, OK)
        granted.cancel()  # after it was granted, before it could run
        await asyncio.gather(waiting, granted, return_exceptions=True)
        snapshot = await it.snapshot()
        assert (snapshot["waiting"], snapshot["endpoints"][A]["in_flight"]) == (0, 0)
        assert snapshot["endpoints"][A]["calls_in_window"] == 1

    in_virtual_time(work)


def test_everything_that_goes_in_or_out_can_be_pickled() -> None:
    async def work() -> list[Any]:
        it = board(A, B)
        (lease,) = await take(it, 1)
        await it.release(lease.lease_id, FAILED)
        return [lease, FAILED, UNUSED, await it.snapshot(), await it.hedge_after_s(), NoEndpoint("why")]

    for value in in_virtual_time(work):
        copy = pickle.loads(pickle.dumps(value))
        assert repr(copy) == repr(value)
    assert pickle.loads(pickle.dumps(NoEndpoint("why"))).reason == "why"


@pytest.mark.parametrize(
    ("urls", "said"),
    [
        ((), "at least one"),
        ((A, A + "/"), "each once"),
        (("host:8000/v1",), "no base URL"),
        (("ftp://host/v1",), "no base URL"),
        (("http://host:99999/v1",), "no base URL"),
        (("http://me:sk-secret@host/v1",), "api_key_env"),
        (("http://host/v1?key=sk-secret",), "api_key_env"),
    ],
)
def test_urls_that_cannot_be_called_or_hold_a_secret_are_refused(urls: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=r"reward\.judge\.urls") as caught:
        EndpointBoard(JudgeConfig(urls=urls))
    assert said in str(caught.value)
    assert "sk-secret" not in str(caught.value)


class Ledger:
    """What an onlooker at the endpoints sees, and the limits that it checks by counting everything again."""

    def __init__(self, limits: dict[str, Any]) -> None:
        self.limits = limits
        self.starts: dict[str, list[tuple[float, str]]] = {A: [], B: []}
        self.tokens: dict[str, int] = {}
        self.running: dict[str, int] = {A: 0, B: 0}
        self.pauses: dict[str, list[tuple[float, float]]] = {A: [], B: []}

    def start(self, lease: Lease, tokens: int) -> None:
        at = now()
        # a pause that is asked for in the instant of the start may come after the lease was granted
        assert not [until for asked_at, until in self.pauses[lease.url] if asked_at < at < until]
        self.tokens[lease.lease_id] = tokens
        recent = [name for start, name in self.starts[lease.url] if start + 60.0 > at]
        assert len(recent) < self.limits["requests_per_minute"]
        held = sum(self.tokens[name] for name in recent)
        assert held + tokens <= self.limits["tokens_per_minute"]
        assert self.running[lease.url] < self.limits["max_concurrency"]
        self.starts[lease.url].append((at, lease.lease_id))
        self.running[lease.url] += 1

    def end(self, lease: Lease, report: CallReport) -> None:
        self.running[lease.url] -= 1
        self.tokens[lease.lease_id] = self.tokens[lease.lease_id] if report.tokens is None else report.tokens
        if report.retry_after_s:
            self.pauses[lease.url].append((now(), now() + report.retry_after_s))


async def caller(it: EndpointBoard, ledger: Ledger, dice: random.Random) -> None:
    await asyncio.sleep(dice.uniform(0, 100))
    tokens = dice.randint(1, 40)
    avoid = dice.choice([(), (A,), (B,), (A, B)])
    try:
        lease = await it.acquire(tokens, avoid, dice.choice([0.0, 5.0, 1e6]))
    except NoEndpoint:
        return
    ledger.start(lease, tokens)
    report = CallReport(outcome="abandoned", hung_up=True)
    try:
        await asyncio.sleep(dice.choice([0.0, 0.1, 3.0, 20.0]))
        # never dearer than estimated: that is what an onlooker can hold the board to
        billed = dice.choice([None, tokens, tokens // 2])
        pause_s = dice.choice([0.0, 0.0, 0.0, 15.0])
        report = CallReport(outcome=dice.choice(["ok", "ok", "infra"]), tokens=billed)
        if report.outcome == "infra":
            report = CallReport(outcome="infra", tokens=billed, retry_after_s=pause_s, error="made to fail")
    finally:
        ledger.end(lease, report)
        await it.release(lease.lease_id, report)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    max_concurrency=st.integers(1, 5),
    requests_per_minute=st.integers(1, 30),
    tokens_per_minute=st.integers(40, 400),
    breaker_failures=st.integers(1, 5),
)
@example(seed=25063, max_concurrency=3, requests_per_minute=11, tokens_per_minute=174, breaker_failures=1)
def test_whatever_happens_limits_hold_and_nothing_is_left_behind(seed: int, **limits: int) -> None:
    async def work() -> None:
        dice = random.Random(seed)
        it = board(A, B, call_timeout_s=30.0, **limits)
        ledger = Ledger(limits)
        callers = [asyncio.create_task(caller(it, ledger, dice)) for _ in range(60)]
        for victim in dice.sample(callers, 15):
            asyncio.get_running_loop().call_later(dice.uniform(0, 200), victim.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            outcomes = await asyncio.gather(*callers, return_exceptions=True)
        assert not [one for one in outcomes if isinstance(one, Exception)]
        await asyncio.sleep(1.0)
        snapshot = await it.snapshot()
        assert snapshot["waiting"] == 0
        assert [one["in_flight"] for one in snapshot["endpoints"].values()] == [0, 0]
        assert sum(one["calls"] for one in snapshot["endpoints"].values()) == sum(map(len, ledger.starts.values()))
        await asyncio.sleep(MINUTE_S)
        drained = (await it.snapshot())["endpoints"].values()
        assert [(one["calls_in_window"], one["tokens_in_window"]) for one in drained] == [(0, 0), (0, 0)]

    in_virtual_time(work)
