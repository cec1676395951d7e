"""Asking reward servers over HTTP: one POST per group, retried until a deadline.

What the servers cannot say is missing data (`is_valid` False), never a reward of 0. What will not get better
by waiting (a wrong token, a wrong address, another version) is a RewardServerError instead.
"""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import json
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import httpx
import numpy as np
from pydantic import ValidationError
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_before_delay,
    wait_random_exponential,
)

from reward_servers.auth import is_loopback
from reward_servers.schema import REPLIES, ScoreReply
from rlsys.config import RewardConfig
from rlsys.errors import UserError
from rlsys.tasks import check_weights, score_weights
from rlsys.types import RolloutGroup, ScoredGroup

_log = logging.getLogger(__name__)
_BACKOFF = wait_random_exponential(multiplier=0.25, max=10)  # seconds; full jitter, so that clients spread out
_CONNECT_TIMEOUT_S = 5.0
_MAX_CONNECTIONS = 64


class RewardServerError(UserError, RuntimeError):
    """The reward servers cannot be used as configured; the message names the URL and the remedy."""


class _Transient(Exception):
    """One attempt failed in a way that another may not. retry_after_s: what the server asked for, or 0."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class RewardClient:
    """Scores groups at the servers of one URL. Use it from one event loop.

    reward: weights and deadline.  url: base URL, as `reward_servers.app.launch` returns it.
    token: bearer token or None.  think: whether the prompts ask for <think>…</think>.
    Raises ConfigError when `reward.weights` names a task or score that does not exist.
    """

    def __init__(self, reward: RewardConfig, url: str, token: str | None = None, *, think: bool = True) -> None:
        check_weights(reward)
        self._reward = reward
        self._think = think
        self._url = _checked(url)
        self._http = _http_client(self._url, token, reward.timeout_s)
        self._has_answered = False
        self._counts = {"reward/requests": 0.0, "reward/retries": 0.0, "reward/unanswered_groups": 0.0}

    async def score(self, group: RolloutGroup, spans: Mapping[str, tuple[float, float]]) -> ScoredGroup:
        """`group` with its scores; `spans` comes back with "score" added (time.monotonic seconds).

        After `reward.timeout_s` without an answer every rollout is invalid, with the last failure as reason.
        Raises RewardServerError for what no retry can mend.
        """
        started_s = time.monotonic()
        ids = [rollout.rollout_id for rollout in group.rollouts]
        failure = ""
        replies: Mapping[str, ScoreReply] = {}
        try:
            replies = await self._ask(_body(group, self._think), ids)
        except _Transient as error:
            waited_s = time.monotonic() - started_s
            failure = f"infra: no usable answer from {self._url}/v1/score in {waited_s:.1f} s; last failure: {error}"
            self._counts["reward/unanswered_groups"] += 1
            _log.warning("%s: %s", group.item.prompt_id, failure)
        weights = score_weights(group.item.task, self._reward)
        ordered = [replies.get(rollout_id) for rollout_id in ids]
        self._check_score_names(ordered, tuple(weights))
        return _scored_group(group, weights, ordered, failure, {**spans, "score": (started_s, time.monotonic())})

    def counters(self) -> dict[str, float]:
        """Requests sent, those that were retries, and groups that stayed without an answer, since the start."""
        return dict(self._counts)

    async def close(self) -> None:
        """Ends the connections."""
        await self._http.aclose()

    async def _ask(self, body: bytes, ids: Sequence[str]) -> Mapping[str, ScoreReply]:
        """One reply per id. _Transient, with the last failure, when the deadline passes first."""
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_Transient),
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
                            return await self._attempt(body, ids, is_retry=attempt.retry_state.attempt_number > 1)
                        except _Transient as error:
                            last = str(error)
                            raise
        except TimeoutError:
            raise _Transient(f"{last} (reward.timeout_s={self._reward.timeout_s:g} passed)") from None
        raise _Transient(last)

    async def _attempt(self, body: bytes, ids: Sequence[str], *, is_retry: bool) -> Mapping[str, ScoreReply]:
        self._counts["reward/requests"] += 1
        self._counts["reward/retries"] += is_retry
        try:
            response = await self._http.post("/v1/score", content=body)
        except httpx.TransportError as error:
            raise _Transient(f"{type(error).__name__}: {error}") from error
        if response.status_code != 200:
            self._raise_for(response)
        replies = _replies(response.content, ids)
        self._has_answered = True
        return replies

    def _raise_for(self, response: httpx.Response) -> None:
        """_Transient for a status that may pass, RewardServerError for one that will not."""
        status, said = response.status_code, response.text[:500]
        # 404: a proxy that restarts has no routes for a moment, but one that never answered is a wrong address
        if status in (408, 425, 429) or status >= 500 or (status == 404 and self._has_answered):
            raise _Transient(f"HTTP {status}: {said}", _retry_after_s(response.headers.get("retry-after")))
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
        raise RewardServerError(f"{self._url}/v1/score answered HTTP {status}: {said} Remedy: {remedy}.")

    def _check_score_names(self, replies: Sequence[ScoreReply | None], names: tuple[str, ...]) -> None:
        for reply in replies:
            if reply is not None and reply.status == "ok" and set(reply.scores) != set(names):
                raise RewardServerError(
                    f"{self._url}: scores {sorted(reply.scores)} came back where {sorted(names)} were due; "
                    "run the same version of rlsys in the job and in its reward servers."
                )


def wait_until_healthy(url: str, timeout_s: float) -> tuple[str, ...]:
    """Tasks that the servers at `url` score, as soon as GET /healthz answers. RewardServerError after `timeout_s`."""
    url = _checked(url)
    deadline_s = time.monotonic() + timeout_s
    last = "no answer"
    with httpx.Client(base_url=url, timeout=_CONNECT_TIMEOUT_S, trust_env=_trusts_proxies(url)) as http:
        while True:
            try:
                response = http.get("/healthz")
                if response.status_code == 200:
                    return tuple(response.json()["tasks"])
                last = f"HTTP {response.status_code}: {response.text[:200]}"
            except httpx.TransportError as error:
                last = f"{type(error).__name__}: {error}"
            except (ValueError, KeyError, TypeError) as error:
                last = f"this is no rlsys reward server ({type(error).__name__}: {error})"
            if time.monotonic() > deadline_s:
                raise RewardServerError(
                    f"{url}/healthz: not healthy after {timeout_s:g} s ({last}); "
                    "check reward.url, or leave it empty to start the servers with the run."
                )
            time.sleep(0.05)


def _checked(url: str) -> str:
    parts = httpx.URL(url)
    if parts.scheme not in ("http", "https") or not parts.host:
        raise RewardServerError(f"reward.url={url!r}: write a base URL such as http://127.0.0.1:8000/rewards.")
    return url.rstrip("/")


def _http_client(url: str, token: str | None, timeout_s: float) -> httpx.AsyncClient:
    headers = {"Content-Type": "application/json"}
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
    return _BACKOFF(state) + (error.retry_after_s if isinstance(error, _Transient) else 0.0)


def _retry_after_s(header: str | None) -> float:
    """Seconds that a Retry-After header asks for, given as a number or a date; 0 when there is none to read."""
    if not header:
        return 0.0
    if header.strip().isascii() and header.strip().isdigit():
        return float(header.strip()[:9])
    try:
        when = email.utils.parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    now = datetime.datetime.now(tz=when.tzinfo)
    return max(0.0, (when - now).total_seconds())


def _body(group: RolloutGroup, think: bool) -> bytes:
    rows = [
        {
            "rollout_id": rollout.rollout_id,
            "task": group.item.task,
            # a lone surrogate cannot be written as UTF-8, and no answer needs one
            "text": rollout.text.encode("utf-8", "replace").decode(),
            "truth": group.item.truth,
            "think": think,
        }
        for rollout in group.rollouts
    ]
    return json.dumps(rows, ensure_ascii=False).encode()


def _replies(content: bytes, ids: Sequence[str]) -> Mapping[str, ScoreReply]:
    """Reply per id; _Transient unless every id came back exactly once and nothing else did."""
    try:
        replies = REPLIES.validate_json(content)
    except ValidationError as error:
        raise _Transient(f"a reply that is not in the schema: {error.errors(include_url=False)[0]['msg']}") from error
    sent, returned = Counter(ids), Counter(reply.rollout_id for reply in replies)
    if sent != returned:
        wrong = sorted((returned - sent) + (sent - returned))[:5]
        raise _Transient(f"rollouts missing from the reply, or in it more than once or unasked: {', '.join(wrong)}")
    return {reply.rollout_id: reply for reply in replies}


def _scored_group(
    group: RolloutGroup,
    weights: Mapping[str, float],
    replies: Sequence[ScoreReply | None],
    failure: str,
    spans: Mapping[str, tuple[float, float]],
) -> ScoredGroup:
    """replies: per rollout, in order; None where there was none, for the reason `failure`."""
    is_valid = np.array([reply is not None and reply.status == "ok" for reply in replies], dtype=bool)
    scores = np.full((len(replies), len(weights)), np.nan, dtype=np.float32)
    for row, reply in enumerate(replies):
        if reply is not None and reply.status == "ok":
            scores[row] = [reply.scores[name] for name in weights]
    return ScoredGroup(
        group=group,
        score_names=tuple(weights),
        scores=scores,
        rewards=scores @ np.array(list(weights.values()), dtype=np.float32),
        is_valid=is_valid,
        reasons=tuple(failure if reply is None else _reason(reply) for reply in replies),
        spans=spans,
    )


def _reason(reply: ScoreReply) -> str:
    return "" if reply.status == "ok" else f"{reply.status}: {reply.reason}"
