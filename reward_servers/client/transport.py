"""One request to the reward servers over HTTP, retried until a deadline."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
from pydantic import BaseModel, ConfigDict, ValidationError
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_before_delay,
    wait_random_exponential,
)

from reward_servers.client.retry_after import retry_after_s
from reward_servers.schema import REPLIES, SLOW_HEADER, ScoreReply
from reward_servers.server.auth import is_loopback
from rlsys.config.run import RewardConfig
from rlsys.errors import UserError
from rlsys.urls import why_not_http

_log = logging.getLogger(__name__)
_WARN_EVERY_S = 300.0
MAX_REPLY_BYTES = 32 << 20
"""Most bytes of one answer: 1,024 rows with 32 kB of evidence each."""
_MAX_ERROR_BYTES = 64 << 10  # of an answer that is quoted in an error
_HEADERS = {"Accept-Encoding": "identity"}  # what is compressed has no size before it is unpacked
_BACKOFF = wait_random_exponential(multiplier=0.25, max=10)  # seconds; full jitter, so that clients spread out
_CONNECT_TIMEOUT_S = 5.0
_STATUS_TIMEOUT_S = 30.0
_MAX_CONNECTIONS = 64
_MARGIN_S = 2.0  # the servers give up this long before the caller does, so that their partial results still arrive


class RewardServerError(UserError, RuntimeError):
    """The reward servers cannot be used as configured; the message names the URL and the remedy."""


class Unanswered(Exception):
    """An attempt failed, but a retry may succeed. retry_after_s: the pause that the server requested, or 0."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class ServiceInfo(BaseModel):
    """The answer of GET /healthz: the tasks that can be scored, the kind of judge or None, names of custom scores."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    tasks: tuple[str, ...]
    judge: str | None
    scorers: tuple[str, ...]


class Transport:
    """Requests to the servers at `url`. Use it from one event loop.

    was_healthy: whether they have answered before, to `wait_until_healthy`.
    """

    def __init__(self, reward: RewardConfig, url: str, token: str | None, *, was_healthy: bool = False) -> None:
        self.url = _checked(url)
        self._reward = reward
        self._http = _http_client(self.url, token, reward.timeout_s)
        self._has_answered = was_healthy
        self._warn_at_s = 0.0
        self.num_requests = self.num_retries = 0

    async def close(self) -> None:
        await self._http.aclose()

    async def ask(self, request: Mapping[str, Any]) -> Mapping[str, ScoreReply]:
        """Return the reply per rollout id to the body `request` of a ScoreRequest, which gets its `timeout_s` here.

        Raises Unanswered, with the last failure, when `reward.timeout_s` passes first, and RewardServerError for
        what no retry can fix.
        """
        deadline_s = time.monotonic() + self._reward.timeout_s
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(Unanswered),
            wait=_wait_s,
            stop=stop_before_delay(self._reward.timeout_s),
            reraise=True,
        )
        last = "no answer yet"
        try:
            async with asyncio.timeout(self._reward.timeout_s):
                async for attempt in retrying:
                    with attempt:
                        try:
                            return await self._attempt(
                                request, deadline_s, is_retry=attempt.retry_state.attempt_number > 1
                            )
                        except Unanswered as error:
                            last = str(error)
                            raise
        except TimeoutError:
            raise Unanswered(f"{last} (reward.timeout_s={self._reward.timeout_s:g} passed)") from None
        raise Unanswered(last)

    async def _attempt(
        self, request: Mapping[str, Any], deadline_s: float, *, is_retry: bool
    ) -> Mapping[str, ScoreReply]:
        self.num_requests += 1
        self.num_retries += is_retry
        left_s = deadline_s - time.monotonic()
        timeout_s = max(left_s - _MARGIN_S, left_s / 2, 0.01)
        try:
            async with self._http.stream(
                "POST", "/v1/score", content=json.dumps({**request, "timeout_s": timeout_s})
            ) as response:
                content = await self._content(response)
        except httpx.TransportError as error:
            raise Unanswered(f"{type(error).__name__}: {error}") from error
        if response.status_code != 200:
            self._raise_for(response, content)
        replies = _replies(content, [row["rollout_id"] for row in request["rows"]])
        self._has_answered = True
        self._warn_of_slow(response.headers.get(SLOW_HEADER, ""))
        return replies

    def _warn_of_slow(self, header: str) -> None:
        """Log which custom scorers are slow, now and then."""
        if not header or time.monotonic() < self._warn_at_s:
            return
        try:
            slow = {str(name): float(seconds) for name, seconds in dict(json.loads(header)).items()}
        except (ValueError, TypeError):
            return  # of another version
        self._warn_at_s = time.monotonic() + _WARN_EVERY_S
        named = ", ".join(f"{name!r} {seconds:.2g} s" for name, seconds in slow.items())
        _log.warning("slow custom scorers at %s (reward.scorers), seconds of a call: %s", self.url, named)

    async def _content(self, response: httpx.Response) -> bytes:
        """Return the body of an answer, the beginning of one that is an error.

        Raises Unanswered where it is too large, RewardServerError where it is compressed.
        """
        is_error = response.status_code != 200
        content = bytearray()
        if not is_error:
            _refuse_compressed(response)
        async for part in response.aiter_raw():
            content += part
            if is_error and len(content) > _MAX_ERROR_BYTES:
                break
            if len(content) > MAX_REPLY_BYTES:
                raise Unanswered(_too_large(response))
        return bytes(content)

    def _raise_for(self, response: httpx.Response, content: bytes) -> None:
        """Raise Unanswered for a status that may pass, RewardServerError for one that will not."""
        status, detail = response.status_code, content.decode("utf-8", "replace")[:500]
        # 404: a proxy that restarts has no routes for a moment, but one that never answered is a wrong address
        if status in (408, 425, 429) or status >= 500 or (status == 404 and self._has_answered):
            raise Unanswered(f"HTTP {status}: {detail}", retry_after_s(response.headers))
        if status in (401, 403):
            remedy = (
                f"set the environment variable {self._reward.token_env} to the token that the servers were started with"
            )
        elif status == 413:
            remedy = "lower rollout.group_size or rollout.max_tokens"
        elif status == 422:
            remedy = "client and servers disagree on the request; run the same version of rlsys on both sides"
        else:
            remedy = "reward.url must be the base URL of rlsys reward servers, for example http://127.0.0.1:8000"
        raise RewardServerError(f"{self.url}/v1/score answered HTTP {status}: {detail} Remedy: {remedy}.")


def wait_until_healthy(url: str, timeout_s: float) -> ServiceInfo:
    """Wait until GET /healthz of the servers at `url` answers, and return the answer.

    Raises RewardServerError after `timeout_s`."""
    url = _checked(url)
    deadline_s = time.monotonic() + timeout_s
    last = "no answer"
    with httpx.Client(
        base_url=url, headers=_HEADERS, timeout=_CONNECT_TIMEOUT_S, trust_env=_trusts_proxies(url)
    ) as http:
        while True:
            try:
                status, content = _got(http, "/healthz", deadline_s)
                if status == 200:
                    return ServiceInfo.model_validate_json(content)
                last = f"HTTP {status}: {content.decode('utf-8', 'replace')[:200]}"
            except httpx.TransportError as error:
                last = f"{type(error).__name__}: {error}"
            except ValueError as error:
                last = f"this is no rlsys reward server ({type(error).__name__}: {error})"
            if time.monotonic() > deadline_s:
                raise RewardServerError(
                    f"{url}/healthz: not healthy after {timeout_s:g} s ({last}); "
                    "check reward.url, or leave it empty to start the servers with the run."
                )
            time.sleep(0.05)


def fetch_status(url: str, token: str | None) -> dict[str, Any]:
    """Return the answer of GET /v1/status of the servers at `url`. Raises RewardServerError when there is none."""
    url = _checked(url)
    headers = _HEADERS | ({"Authorization": f"Bearer {token}"} if token else {})
    with httpx.Client(base_url=url, timeout=_STATUS_TIMEOUT_S, headers=headers, trust_env=_trusts_proxies(url)) as http:
        try:
            status, content = _got(http, "/v1/status", time.monotonic() + _STATUS_TIMEOUT_S)
        except httpx.TransportError as error:
            raise RewardServerError(
                f"{url}: no reward servers answer there ({type(error).__name__}: {error})."
            ) from error
    if status != 200:
        raise RewardServerError(f"{url}/v1/status answered HTTP {status}: {content.decode('utf-8', 'replace')[:300]}")
    try:
        return dict(json.loads(content))
    except (ValueError, TypeError) as error:
        raise RewardServerError(f"{url}/v1/status: this is no rlsys reward server ({error}).") from error


def _got(http: httpx.Client, path: str, deadline_s: float) -> tuple[int, bytes]:
    """Return status and body of GET `path`. Raises RewardServerError for an answer that is too large or compressed.

    Raises ReadTimeout for one that is not complete at the deadline."""
    content = bytearray()
    with http.stream("GET", path) as response:
        if response.status_code == 200:
            _refuse_compressed(response)
        for part in response.iter_raw():
            content += part
            if len(content) > MAX_REPLY_BYTES:
                raise RewardServerError(_too_large(response))
            if time.monotonic() > deadline_s + _CONNECT_TIMEOUT_S:
                raise httpx.ReadTimeout("the answer was not complete in time")
    return response.status_code, bytes(content)


def _too_large(response: httpx.Response) -> str:
    return f"{response.url} answered with more than {MAX_REPLY_BYTES >> 20} MiB, which no reward server does"


def _refuse_compressed(response: httpx.Response) -> None:
    encoding = response.headers.get("content-encoding", "identity")
    if encoding.lower() not in ("identity", ""):
        raise RewardServerError(
            f"{response.url} answered with Content-Encoding {encoding[:40]}, which was not asked for; turn compression "
            "off in the proxy between the run and its reward servers, and check reward.url."
        )


def _checked(url: str) -> str:
    if why := why_not_http(url):
        raise RewardServerError(f"reward.url={url} {why}; write a base URL such as http://127.0.0.1:8000/rewards.")
    return url.rstrip("/")


def _http_client(url: str, token: str | None, timeout_s: float) -> httpx.AsyncClient:
    headers = {**_HEADERS, "Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    return httpx.AsyncClient(
        base_url=url,
        headers=headers,
        timeout=httpx.Timeout(timeout_s, connect=min(_CONNECT_TIMEOUT_S, timeout_s)),
        limits=httpx.Limits(max_connections=_MAX_CONNECTIONS, max_keepalive_connections=_MAX_CONNECTIONS),
        trust_env=_trusts_proxies(url),
    )


def _trusts_proxies(url: str) -> bool:
    # a proxy from the environment cannot reach this machine's loopback
    return not is_loopback(httpx.URL(url).host)


def _wait_s(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    return _BACKOFF(state) + (error.retry_after_s if isinstance(error, Unanswered) else 0.0)


def _replies(content: bytes, ids: Sequence[str]) -> Mapping[str, ScoreReply]:
    """Return the reply per id. Raises Unanswered unless every id came back exactly once and nothing else did."""
    try:
        replies = REPLIES.validate_json(content)
    except ValidationError as error:
        raise Unanswered(f"a reply that is not in the schema: {error.errors(include_url=False)[0]['msg']}") from error
    sent, returned = Counter(ids), Counter(reply.rollout_id for reply in replies)
    if sent != returned:
        wrong = sorted((returned - sent) + (sent - returned))[:5]
        raise Unanswered(f"rollouts missing from the reply, or in it more than once or unasked: {', '.join(wrong)}")
    return {reply.rollout_id: reply for reply in replies}
