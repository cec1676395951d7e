"""Ask the judge's language model, with limits, retries at other endpoints, hedging and a hard deadline.

Everything that is not an answer is a JudgeFailure with a status, so that trouble can never pass for a verdict.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from reward_servers.judging.endpoints.chat_call import CallFailed, ChatAnswer, ChatCaller, Setup
from reward_servers.judging.endpoints.dialect import ChatQuestion
from reward_servers.judging.endpoints.endpoint_state import MAX_PAUSE_S
from reward_servers.judging.endpoints.endpoints import checked_urls
from reward_servers.judging.endpoints.leases import UNUSED, Board, CallReport, Lease, NoEndpoint, Outcome
from rlsys.config.run import JudgeConfig

_log = logging.getLogger(__name__)
_BACKOFF = wait_random_exponential(multiplier=0.25, max=10)  # seconds; full jitter, so that callers spread out
_MARGIN_S = 0.25  # waits and calls end this long before the deadline, so that their reasons still arrive
_MARGIN_SHARE = 0.1  # or this share of the time there is, if that is less
_CLOSE_S = 2.0
_BYTES_PER_TOKEN = 3  # fewer than in any usual text, so that the estimate is rather too high
_MAX_MALFORMED = 2
_LARGER = 2  # times `max_output_tokens` for the second try of an answer that was cut off
_OUTCOMES: Mapping[str, Outcome] = {
    "infra": "infra",
    "setup": "infra",
    "rejected": "rejected",
    "too_long": "rejected",
    "malformed": "malformed",
    "abstain": "abstain",
}


class JudgeFailure(Exception):
    """The judge gave no answer. status: as of `rlsys.types.Score`.  reason: names the endpoint and its error.

    is_final: no endpoint will answer any call until a person changes something.
    """

    def __init__(self, status: Literal["abstain", "infra", "malformed"], reason: str, is_final: bool = False) -> None:
        super().__init__(status, reason, is_final)
        self.status, self.reason, self.is_final = status, reason, is_final

    def __str__(self) -> str:
        return f"{self.status}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Completion:
    """An answer of the model.

    value: the JSON object that it wrote.  url: of the endpoint that answered.  seconds: that its call took.
    tokens: of prompt and answer, estimated where the endpoint does not report them.
    """

    value: dict[str, Any]
    tokens: int
    url: str
    seconds: float


class _TryAgain(Exception):
    """Nothing yet, and a further round may help."""


@dataclass(frozen=True, kw_only=True)
class _Question:
    chat: ChatQuestion
    tokens: int
    deadline_s: float
    margin_s: float

    def left_s(self) -> float:
        """Return the seconds that may still be spent, short of the margin."""
        return max(0.0, self.deadline_s - self.margin_s - time.monotonic())


@dataclass
class _Trail:
    """What happened so far to one question.

    failed: URLs that failed, the latest last.  hopeless: those that would reject every retry.
    unusable: those that would refuse any other question too.  was_cut: an answer ended at the limit of tokens.
    """

    num_calls: int = 0
    num_malformed: int = 0
    failed: list[str] = field(default_factory=list)
    hopeless: set[str] = field(default_factory=set)
    unusable: set[str] = field(default_factory=set)
    was_cut: bool = False
    last: str = "no turn at any endpoint came"
    last_status: Literal["infra", "malformed"] = "infra"
    releases: set[asyncio.Task[None]] = field(default_factory=set)

    def add(self, url: str, failure: CallFailed) -> None:
        self.last = failure.reason
        self.last_status = "malformed" if failure.kind in ("malformed", "too_long") else "infra"
        self.num_malformed += failure.kind == "malformed"
        self.was_cut |= failure.was_cut
        self.failed = [*(other for other in self.failed if other != url), url]
        if failure.kind in ("setup", "rejected", "too_long"):
            self.hopeless.add(url)
        if failure.kind == "setup":
            self.unusable.add(url)

    def avoid(self, urls: tuple[str, ...]) -> tuple[str, ...]:
        """Return the URLs to ask last: those that failed; once all did, the latest one and the hopeless ones."""
        return tuple(self.failed) if set(self.failed) < set(urls) else (*self.hopeless, *self.failed[-1:])

    def failure(self, why: str = "", *, is_final: bool = False) -> JudgeFailure:
        made = f"{self.num_calls} call{'s' * (self.num_calls != 1)} made"
        return JudgeFailure(self.last_status, f"{self.last} ({', '.join(filter(None, (made, why)))})", is_final)


class JudgeLlm:
    """Asks the model behind the endpoints of `config.urls`. Use it from one event loop; it cannot be pickled.

    board: owner of the limits, shared with every other caller of these endpoints.  api_key: None sends none.
    setups: what is known of endpoints already, by URL.
    """

    def __init__(
        self, config: JudgeConfig, board: Board, api_key: str | None, setups: Mapping[str, Setup] | None = None
    ) -> None:
        self._config = config
        self._urls = checked_urls(config.urls)
        self._board = board
        self._caller = ChatCaller(config, api_key, setups)
        self._away_until_s: dict[str, float] = {}  # by URL, of time.monotonic: pauses that were logged
        self._background: set[asyncio.Future[Any]] = set()  # else they could be collected while they run

    async def complete(
        self, system: str, user: str, schema: Mapping[str, Any], schema_name: str, deadline_s: float
    ) -> Completion:
        """Return the model's JSON answer in the form of `schema`, by `deadline_s` (of time.monotonic).

        Whether it has that form is for the caller to see: an endpoint may ignore the schema.
        Raises JudgeFailure: "abstain" when the model refuses, "malformed" after two answers that are cut off or no
        JSON object and for texts that do not fit its context, "infra" for everything else, by the deadline at the
        latest; final when every endpoint needs a change.
        """
        question = self._question(system, user, schema, schema_name, deadline_s)
        trail = _Trail()
        retrying = AsyncRetrying(retry=retry_if_exception_type(_TryAgain), wait=_BACKOFF, stop=_never, reraise=True)
        try:
            async with asyncio.timeout(max(0.0, deadline_s - time.monotonic())):
                async for attempt in retrying:
                    with attempt:
                        return await self._round(question, trail)
        except TimeoutError:
            raise trail.failure("then the caller's time was up") from None
        raise trail.failure()

    async def close(self) -> None:
        """Report what is still unreported and close the connections. No caller may be waiting for an answer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                while self._background:
                    await asyncio.wait(set(self._background))
        for work in set(self._background):
            work.cancel()
        await self._caller.close()

    def _question(
        self, system: str, user: str, schema: Mapping[str, Any], schema_name: str, deadline_s: float
    ) -> _Question:
        # a lone surrogate cannot be written as UTF-8, and no verdict hangs on one
        system, user = (text.encode("utf-8", "replace").decode() for text in (system, user))
        num_bytes = len(f"{system}{user}{schema_name}{dict(schema)}".encode())
        return _Question(
            chat=ChatQuestion(system=system, user=user, schema=schema, schema_name=schema_name),
            tokens=-(-num_bytes // _BYTES_PER_TOKEN) + self._config.max_output_tokens,
            deadline_s=deadline_s,
            margin_s=min(_MARGIN_S, max(0.0, deadline_s - time.monotonic()) * _MARGIN_SHARE),
        )

    async def _round(self, question: _Question, trail: _Trail) -> Completion:
        """Make one call, and its hedge. Raises _TryAgain, or JudgeFailure when nothing more is worth trying."""
        if trail.releases:
            await asyncio.wait(trail.releases)  # the owner must know of the last failure before the next request
        if question.left_s() == 0:
            raise trail.failure("then the caller's time was up")
        lease = await self._lease(question, trail)
        calls = {self._start(lease, question, trail): lease.url}
        try:
            if self._config.hedge:
                await self._hedge(calls, lease.url, question, trail)
            return await self._first_answer(calls, trail)
        finally:
            for call in calls:
                call.cancel()  # its lease is then reported as abandoned

    async def _lease(self, question: _Question, trail: _Trail) -> Lease:
        try:
            lease = await self._acquire(question.tokens, trail.avoid(self._urls), question.left_s(), trail)
        except NoEndpoint as error:
            trail.last, trail.last_status = error.reason, "infra"
            raise _TryAgain from None
        if lease.url in trail.hopeless:
            self._release(lease, UNUSED, trail)
            raise _TryAgain  # the others are away for now
        return lease

    async def _acquire(self, tokens: int, avoid: tuple[str, ...], wait_s: float, trail: _Trail) -> Lease:
        # never cancelled: an owner in another process might grant it all the same, and it would never be given back
        asking = self._keep(asyncio.ensure_future(self._board.acquire(tokens, avoid, wait_s)))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            if asking.done():
                self._give_back(trail, asking)
            else:
                asking.add_done_callback(partial(self._give_back, trail))
            raise

    def _give_back(self, trail: _Trail, asking: asyncio.Future[Lease]) -> None:
        error = None if asking.cancelled() else asking.exception()
        if isinstance(error, NoEndpoint):
            trail.last, trail.last_status = error.reason, "infra"  # both ended at once: this message has more detail
        elif not asking.cancelled() and error is None:
            self._release(asking.result(), UNUSED)

    def _start(self, lease: Lease, question: _Question, trail: _Trail) -> asyncio.Task[Completion]:
        """Start the call of `lease` as a task that reports its end to the owner, whatever that end is."""
        trail.num_calls += 1
        if trail.num_calls == 1:
            trail.last = f"{lease.url}: no answer yet"
        timeout_s = min(self._config.call_timeout_s, question.left_s())
        call = asyncio.create_task(self._call(lease, question, timeout_s, trail))
        self._background.add(call)
        call.add_done_callback(self._background.discard)
        call.add_done_callback(partial(self._report, lease, timeout_s, time.monotonic(), trail))
        return call

    async def _call(self, lease: Lease, question: _Question, timeout_s: float, trail: _Trail) -> Completion:
        started_s = time.monotonic()
        answer: ChatAnswer = await self._caller.call(
            lease.url,
            question.chat,
            timeout_s,
            max_tokens=self._config.max_output_tokens * (_LARGER if trail.was_cut else 1),
            is_spelled_out=trail.num_malformed > 0 and not trail.was_cut,
        )
        tokens = question.tokens if answer.tokens is None else answer.tokens
        return Completion(value=answer.value, tokens=tokens, url=lease.url, seconds=time.monotonic() - started_s)

    def _report(
        self, lease: Lease, timeout_s: float, started_s: float, trail: _Trail, call: asyncio.Task[Completion]
    ) -> None:
        seconds = time.monotonic() - started_s
        error = None if call.cancelled() else call.exception()
        if call.cancelled():
            report = CallReport(outcome="abandoned", seconds=seconds, hung_up=True)
        elif isinstance(error, CallFailed):
            self._log_long_pause(lease.url, error.retry_after_s)
            # a call that was given little time is no evidence about the endpoint
            was_hurried = error.hung_up and timeout_s < self._config.call_timeout_s / 2
            report = CallReport(
                outcome="abandoned" if was_hurried else _OUTCOMES[error.kind],
                seconds=seconds,
                tokens=error.tokens,
                retry_after_s=error.retry_after_s,
                error=error.reason,
                hung_up=error.hung_up,
                is_lasting=error.kind == "setup",
            )
        elif error is not None:
            report = CallReport(outcome="abandoned", seconds=seconds, error=type(error).__name__)
        else:
            report = CallReport(outcome="ok", seconds=seconds, tokens=call.result().tokens)
        self._release(lease, report, trail)

    def _log_long_pause(self, url: str, pause_s: float) -> None:
        now_s = time.monotonic()
        if pause_s <= self._config.call_timeout_s or now_s < self._away_until_s.get(url, 0.0):
            return
        self._away_until_s[url] = now_s + min(pause_s, MAX_PAUSE_S)
        _log.warning(
            "judge endpoint %s asks to be left alone for %.0f s (Retry-After) and gets no calls for %.0f s. Rows "
            "wait for reward.timeout_s, and then a run pauses for at most reward.max_pause_s.",
            url,
            pause_s,
            min(pause_s, MAX_PAUSE_S),
        )

    def _release(self, lease: Lease, report: CallReport, trail: _Trail | None = None) -> None:
        # in the background: neither a cancelled caller nor one whose time is up can wait for the owner
        release = self._keep(asyncio.ensure_future(self._board.release(lease.lease_id, report)))
        if trail is not None:
            trail.releases.add(release)
            release.add_done_callback(trail.releases.discard)

    async def _hedge(
        self, calls: dict[asyncio.Task[Completion], str], url: str, question: _Question, trail: _Trail
    ) -> None:
        """Add a second call once the first takes longer than most do, if an endpoint has room at once."""
        try:
            after_s = await self._board.hedge_after_s()
            if after_s is None or trail.num_calls >= self._config.max_attempts:
                return
            done, _ = await asyncio.wait(calls, timeout=after_s)
            if done:
                return
            lease = await self._acquire(question.tokens, (*trail.avoid(self._urls), url), 0.0, trail)
        except NoEndpoint:
            return  # no room, or no owner to ask: the first call continues
        if lease.url in trail.hopeless:
            self._release(lease, UNUSED)
        else:
            calls[self._start(lease, question, trail)] = lease.url

    async def _first_answer(self, calls: Mapping[asyncio.Task[Completion], str], trail: _Trail) -> Completion:
        pending = set(calls)
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for call in [call for call in calls if call in done]:
                try:
                    return call.result()
                except CallFailed as failure:
                    if failure.kind == "abstain":
                        raise JudgeFailure("abstain", failure.reason) from None
                    trail.add(calls[call], failure)
        if (
            trail.num_malformed >= _MAX_MALFORMED
            or trail.num_calls >= self._config.max_attempts
            or trail.hopeless >= set(self._urls)
        ):
            raise trail.failure(is_final=trail.unusable >= set(self._urls))
        raise _TryAgain

    def _keep(self, work: asyncio.Future[Any]) -> Any:
        self._background.add(work)
        work.add_done_callback(self._forget)
        return work

    def _forget(self, work: asyncio.Future[Any]) -> None:
        self._background.discard(work)
        if not work.cancelled() and (error := work.exception()) is not None and not isinstance(error, NoEndpoint):
            _log.error("the owner of the judge's limits failed: %s: %s", type(error).__name__, error)


def _never(_: RetryCallState) -> bool:
    return False  # the rounds themselves decide when to stop
