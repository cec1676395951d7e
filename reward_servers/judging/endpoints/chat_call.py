"""One call to one OpenAI-compatible endpoint: what came back, or a typed failure. No retries of failures here.

What differs between endpoints is adapted to, within the call: an address without `/v1` or behind a redirect, and
parameters that an endpoint refuses. What worked is remembered for the endpoint and logged once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from reward_servers.judging.endpoints.addresses import Address
from reward_servers.judging.endpoints.answer_text import NotJson, json_object
from reward_servers.judging.endpoints.dialect import ChatQuestion, Dialect
from reward_servers.judging.endpoints.refusals import Refusal, RefusalKind
from reward_servers.judging.endpoints.replies import has_choices, is_broken_json, read_completion
from reward_servers.judging.endpoints.tls import certificates, is_tls_refused
from reward_servers.server.auth import is_loopback
from rlsys.config.run import ConfigError, JudgeConfig
from rlsys.urls import masked_url

if TYPE_CHECKING:
    from openai import AsyncOpenAI

FailureKind = Literal["infra", "setup", "rejected", "too_long", "malformed", "abstain"]
"""How a call fails.

infra: may pass.  setup: this endpoint refuses every call until a person changes something.  rejected: it will never
take this call.  too_long: nor this one, as its texts do not fit.  malformed: an answer that cannot be used.
abstain: the model or its filter refused to answer."""

_log = logging.getLogger(__name__)
_CONNECT_TIMEOUT_S = 5.0
_EXCERPT_CHARS = 300
_CLEANED_CHARS = 4000
_MAX_HOPS = 5
_TEMPORARY, _PERMANENT = frozenset({302, 307}), frozenset({301, 308})
_PARAMETER_STATUS = frozenset({400, 422, 500, 501})  # llama.cpp answers 500 to a template without a system role
_KINDS: Mapping[RefusalKind, FailureKind] = {
    "passing": "infra",
    "filtered": "abstain",
    "quota": "setup",
    "key": "setup",
    "model": "setup",
    "place": "setup",
    "budget": "setup",
    "context": "too_long",
    "request": "rejected",
}


class CallFailed(Exception):
    """One call without a usable answer. reason: names endpoint, status and remedy, never the key.

    tokens: that it cost, None when unknown.  hung_up: this side left while the endpoint was at work.
    was_cut: the answer ended at the limit of tokens.
    """

    def __init__(
        self,
        kind: FailureKind,
        reason: str,
        *,
        retry_after: float = 0.0,
        tokens: int | None = None,
        hung_up: bool = False,
        was_cut: bool = False,
    ) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason
        self.retry_after_s, self.tokens, self.hung_up, self.was_cut = retry_after, tokens, hung_up, was_cut


@dataclass(frozen=True, kw_only=True)
class ChatAnswer:
    """A usable answer.

    value: the JSON object that the model wrote.  tokens: of prompt and answer; None when the endpoint is silent.
    """

    value: dict[str, Any]
    tokens: int | None


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How an endpoint is called: where, and with which parameters."""

    address: Address
    dialect: Dialect


@dataclass
class _Try:
    """One call while it adapts. place: where it is sent, which a temporary redirect moves away from `setup`."""

    setup: Setup
    place: Address
    num_hops: int = 0
    elsewhere: list[str] = field(default_factory=list)
    """What came back at the addresses that were tried before."""

    def move(self, address: Address, *, is_lasting: bool) -> None:
        if is_lasting and self.place == self.setup.address:
            self.setup = replace(self.setup, address=address)
        self.place = address


class ChatCaller:
    """Calls endpoints. Use it from one event loop. The key is in no message, log line, repr or pickle.

    setups: what is known of endpoints by their configured URL; those have answered before.
    """

    def __init__(self, config: JudgeConfig, api_key: str | None, setups: Mapping[str, Setup] | None = None) -> None:
        import openai  # 0.6 s, which drivers and rule scorers import this module without

        self._openai = openai
        self._config = config
        self._key = checked_key(api_key, config.api_key_env)
        self._clients: dict[str, AsyncOpenAI] = {}  # by base: a query may differ in every redirect
        self.setups: dict[str, Setup] = dict(setups or {})
        self._noted: set[str] = set()
        self._reported: dict[str, str] = {url: _differences(url, setup) for url, setup in self.setups.items()}

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a ChatCaller holds a key and open connections; build one in the process that calls.")

    async def call(
        self,
        url: str,
        question: ChatQuestion,
        timeout_s: float,
        *,
        max_tokens: int | None = None,
        is_spelled_out: bool = False,
    ) -> ChatAnswer:
        """Return the endpoint's answer within `timeout_s`, however slowly it trickles in. Raises CallFailed.

        max_tokens: None takes `reward.judge.max_output_tokens`.  is_spelled_out: put the schema into the prompt, for
        an endpoint that seems to ignore it.
        """
        budget = max_tokens or self._config.max_output_tokens
        try:
            async with asyncio.timeout(timeout_s):
                return await self._adapted(url, question, budget, is_spelled_out)
        except TimeoutError:
            raise CallFailed("infra", f"{url}: no whole answer within {timeout_s:.1f} s", hung_up=True) from None
        except self._openai.APIConnectionError as error:
            raise self._unconnected(url, error.__cause__ or error) from None

    async def close(self) -> None:
        """End the connections."""
        for client in self._clients.values():
            await client.close()
        self._clients.clear()

    async def _adapted(self, url: str, question: ChatQuestion, budget: int, is_spelled_out: bool) -> ChatAnswer:
        setup = self.setups.get(url) or Setup(address=Address.of(url), dialect=Dialect())
        if is_spelled_out:
            setup = replace(setup, dialect=replace(setup.dialect, is_spelled_out=True))
        attempt = _Try(setup=setup, place=setup.address)
        while True:  # every round moves on, to another address or to fewer parameters
            reply = await self._reply(url, attempt, question, budget)
            if not isinstance(reply, Refusal):
                return self._answer(url, attempt, reply)
            if not self._moved_on(url, attempt, reply):
                raise self._failed(url, attempt, reply, budget)

    async def _reply(self, url: str, attempt: _Try, question: ChatQuestion, budget: int) -> bytes | Refusal:
        """Return the body of a reply with status 200 from a chat endpoint, or why there is none."""
        try:
            # raw: the client's own parsing raises bare JSON errors on half an answer and lets anything else through
            raw = await self._client(attempt.place).chat.completions.with_raw_response.create(
                model=self._config.model,
                **attempt.setup.dialect.request(question, budget),
                extra_headers=self._headers(attempt.place),
                extra_query=dict(attempt.place.query),
            )
        except self._openai.APIStatusError as error:
            return Refusal.of(error.status_code, error.body, error.response.headers)
        body = raw.content
        found = read_completion(body)
        if isinstance(found, dict):  # an error with status 200
            return Refusal.in_body(found, raw.headers)
        if found is None and not has_choices(body):
            if is_broken_json(body):
                raise CallFailed("infra", f"{url}: HTTP {raw.status_code} with broken JSON: {self._excerpt(body)!r}")
            excerpt = body[:_EXCERPT_CHARS].decode("utf-8", "replace")
            return Refusal(status=raw.status_code, text=excerpt, is_foreign=True)
        return body

    def _moved_on(self, url: str, attempt: _Try, reply: Refusal) -> bool:
        """Adapt `attempt` to a refusal. Return False where nothing can be adapted."""
        location = reply.headers.get("location", "")
        if reply.status in _TEMPORARY | _PERMANENT and (target := attempt.place.redirected(location)) is not None:
            return self._follow(url, attempt, target, is_lasting=reply.status in _PERMANENT)
        if url not in self.setups and reply.may_be_misplaced and reply.kind(self._config.model) != "model":
            attempt.elsewhere.append(self._came_back(attempt.place, reply))
            other = attempt.place.with_version() if len(attempt.elsewhere) == 1 else None
            if other is not None:
                attempt.move(other, is_lasting=True)
            return other is not None
        if reply.status not in _PARAMETER_STATUS or reply.kind(self._config.model) in ("context", "budget", "filtered"):
            return False
        dialect = attempt.setup.dialect.without(reply.param, reply.text)
        if dialect is not None:
            attempt.setup = replace(attempt.setup, dialect=dialect)
        return dialect is not None

    def _follow(self, url: str, attempt: _Try, target: Address, *, is_lasting: bool) -> bool:
        attempt.num_hops += 1
        if attempt.num_hops > _MAX_HOPS or target == attempt.place:
            return False
        if self._key and not attempt.place.may_share_key(target):
            raise CallFailed(
                "setup",
                f"{url} redirects to {self._clean(str(target))}, and the key in {self._config.api_key_env} is not sent "
                "to another host or without TLS. Remedy: set reward.judge.urls to that address if it may have the key.",
            )
        attempt.move(target, is_lasting=is_lasting)
        return True

    def _answer(self, url: str, attempt: _Try, body: bytes) -> ChatAnswer:
        completion = read_completion(body)
        if completion is None or isinstance(completion, dict):
            raise CallFailed("infra", f"{url}: HTTP 200 without a chat completion: {self._excerpt(body)!r}")
        tokens = completion.tokens
        self._learn(url, attempt)
        self._note_model(url, completion.other_model(self._config.model))
        if completion.failure:
            reason = f"{url}: the endpoint gave up in the middle of the answer: {self._clean(completion.failure)}"
            raise CallFailed("infra", reason, tokens=tokens)
        if completion.refusal:
            reason = f"{url}: the judge refused to answer: {self._clean(completion.refusal)}"
            raise CallFailed("abstain", reason, tokens=tokens)
        if completion.is_cut:
            limit = f"reward.judge.max_output_tokens={self._config.max_output_tokens}"
            reason = f"{url}: the answer was cut off ({limit}); raise it"
            raise CallFailed("malformed", reason, tokens=tokens, was_cut=True)
        try:
            value = json_object(completion.text)
        except NotJson as error:
            reason = f"{url}: the answer is not JSON: {error}"
            raise CallFailed("malformed", reason, tokens=tokens) from None
        self._learn(url, attempt, is_read=True)
        return ChatAnswer(value=value, tokens=tokens)

    def _learn(self, url: str, attempt: _Try, *, is_read: bool = False) -> None:
        """Remember what worked, and log what differs from the config once.

        is_read: the answer could be used, so a schema in the prompt is known to help.
        """
        known = self.setups.get(url)
        dialect = attempt.setup.dialect
        if not is_read:
            dialect = replace(dialect, is_spelled_out=False)
        if known is not None:
            dialect = dialect.joined(known.dialect)
        self.setups[url] = replace(attempt.setup, dialect=dialect)
        differences = _differences(url, self.setups[url])
        if attempt.place != attempt.setup.address:
            differences += f"; each call is redirected to {masked_url(str(attempt.place))}"
        if differences and differences != self._reported.get(url):
            _log.warning("judge endpoint %s: adapted to what it takes: %s", url, differences.removeprefix("; "))
        self._reported[url] = differences

    def _note_model(self, url: str, other: str) -> None:
        """Log once for each endpoint that another model answers, as a router does that falls back to one."""
        if other and url not in self._noted:
            self._noted.add(url)
            asked = f"reward.judge.model={self._config.model}"
            _log.warning("judge endpoint %s: asked for %s, it answers as %s", url, asked, self._clean(other))

    def _unconnected(self, url: str, cause: BaseException) -> CallFailed:
        """Return why there is no reply. What a person must change is told from what passes."""
        from reward_servers.judging.endpoints.reply_bounds import NotOffered

        reason = self._clean(f"{type(cause).__name__}: {cause}")
        if isinstance(cause, NotOffered) and url not in self.setups:
            remedy = "turn that compression off in the server or the proxy before it"
            return CallFailed("setup", f"{url}: {reason}. Remedy: {remedy}.")
        if is_tls_refused(cause) and url not in self.setups:
            remedy = "use http:// in reward.judge.urls if it speaks no TLS; else trust its certificate here"
            return CallFailed("setup", f"{url}: {reason}. Remedy: {remedy}.", tokens=0)
        # ConnectError and ConnectTimeout: it never got there, so it cost nothing
        tokens = 0 if type(cause).__name__.startswith("Connect") else None
        return CallFailed("infra", f"{url}: no connection, or one that broke off: {reason}", tokens=tokens)

    def _failed(self, url: str, attempt: _Try, reply: Refusal, budget: int) -> CallFailed:
        meaning = reply.kind(self._config.model)
        reason = f"{url}: {self._came_back(attempt.place, reply) if reply.is_foreign else self._status(reply)}"
        if len(attempt.elsewhere) > 1:
            reason = f"{url}: no chat completions: {'; '.join(attempt.elsewhere)}"
        if reply.is_foreign or meaning == "place":
            # a proxy that restarts has no routes for a moment, but what has never answered is a wrong address
            kind: FailureKind = "infra" if url in self.setups else "setup"
        else:
            kind = _KINDS[meaning]
        if budget > self._config.max_output_tokens and meaning in ("budget", "context"):
            limit = f"reward.judge.max_output_tokens={self._config.max_output_tokens}"
            return CallFailed("malformed", f"{url}: the answer was cut off ({limit}), and more is refused: {reason}")
        if kind == "infra":
            asks = f" (it asks for a pause of {reply.retry_after_s:.0f} s)" if reply.retry_after_s else ""
            return CallFailed("infra", reason + asks, retry_after=reply.retry_after_s)
        if kind == "abstain":
            return CallFailed("abstain", f"{url}: the judge's content filter refused the question")
        return CallFailed(kind, f"{reason.rstrip('.')}. Remedy: {self._remedy(meaning)}.")

    def _remedy(self, meaning: RefusalKind) -> str:
        config = self._config
        remedies: dict[RefusalKind, str] = {
            "quota": "its quota or credit is spent, which no retry changes; pay or raise it, or use another endpoint",
            "key": f"{config.api_key_env} holds {'a key it refuses' if self._key else 'no key'}; "
            "set it to the endpoint's key where the judge runs",
            "budget": f"lower reward.judge.max_output_tokens={config.max_output_tokens}",
            "context": "the texts do not fit the judge's context; serve the model with a longer one, or lower "
            f"reward.judge.max_output_tokens={config.max_output_tokens}",
            "request": "texts may be longer than the judge takes, or it has no response_format json_schema",
        }
        return remedies.get(
            meaning,
            "reward.judge.urls must be base URLs such as http://host:8000/v1, and "
            f"reward.judge.model={config.model!r} a model that they serve",
        )

    def _client(self, address: Address) -> AsyncOpenAI:
        from reward_servers.judging.endpoints.reply_bounds import bound_reply  # imports the client's HTTP library

        if address.base not in self._clients:
            http = self._openai.DefaultAsyncHttpxClient(
                verify=certificates(),
                # a proxy from the environment cannot reach this machine's loopback
                trust_env=not is_loopback(urlsplit(address.base).hostname or ""),
                # the client would turn a POST into a GET, and send the key along to any host
                follow_redirects=False,
                event_hooks={"response": [bound_reply]},
            )
            self._clients[address.base] = self._openai.AsyncOpenAI(
                base_url=address.base,
                api_key=self._key or "none",
                max_retries=0,
                timeout=self._openai.Timeout(self._config.call_timeout_s, connect=_CONNECT_TIMEOUT_S),
                http_client=http,
            )
        return self._clients[address.base]

    def _headers(self, address: Address) -> dict[str, Any]:
        # else the client sends what its own environment variables hold, which are for another service
        from reward_servers.judging.endpoints.reply_bounds import ACCEPTED

        nothing = self._openai.Omit()
        headers: dict[str, Any] = {**ACCEPTED, "OpenAI-Organization": nothing, "OpenAI-Project": nothing}
        if not self._key:
            return {**headers, "Authorization": nothing}
        # Azure takes a key in a header of its own
        return {**headers, "api-key": self._key} if "api-version" in dict(address.query) else headers

    def _came_back(self, place: Address, reply: Refusal) -> str:
        shown = f"HTTP {reply.status} without a chat completion: {self._excerpt(reply.text.encode())!r}"
        return f"{masked_url(str(place))} gave {shown if reply.is_foreign else self._status(reply)}"

    def _status(self, reply: Refusal) -> str:
        location = reply.headers.get("location")
        text = f"a redirect to {masked_url(location)}" if location and 300 <= reply.status < 400 else reply.text
        status = "HTTP 200 with an error" if reply.has_no_status else f"HTTP {reply.status}"
        return f"{status}: {self._clean(text)}"

    def _excerpt(self, body: bytes) -> str:
        return self._clean(body[:_EXCERPT_CHARS].decode("utf-8", "replace"))

    def _clean(self, text: str) -> str:
        """Return `text` on one line, short, without the key, which endpoints like to repeat."""
        hidden = text.replace(self._key, "***") if self._key else text
        text = masked_url(" ".join(hidden[:_CLEANED_CHARS].split()))
        return text if len(text) <= _EXCERPT_CHARS else text[:_EXCERPT_CHARS] + "…"


def checked_key(api_key: str | None, variable: str) -> str:
    """Return the key without white space around it, "" for none.

    Raises ConfigError, without the key, when no header can hold it.
    """
    key = (api_key or "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"{variable}: a key is one word of printable ASCII characters; this one is not.")
    return key


def _differences(url: str, setup: Setup) -> str:
    """Return how calls differ from what the config says, for a person; "" where they do not."""
    moved = [] if setup.address.base == url.partition("?")[0].rstrip("/") else [f"called at {setup.address.base}"]
    return "; ".join([*moved, *setup.dialect.changes()])
