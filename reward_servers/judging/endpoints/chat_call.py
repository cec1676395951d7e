"""One call to one OpenAI-compatible endpoint: what came back, or a typed failure. No retries here."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import openai
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, Omit
from pydantic import BaseModel, ConfigDict, ValidationError

from reward_servers.client.retry_after import retry_after_s
from reward_servers.server.auth import is_loopback
from rlsys.config.run import ConfigError, JudgeConfig

FailureKind = Literal["infra", "setup", "rejected", "malformed", "abstain"]
"""infra: may pass.  setup: this endpoint refuses every call until its setup is changed.  rejected: it will never
take this call.  malformed: an answer that cannot be used.  abstain: the model or its filter refused to answer."""

_CONNECT_TIMEOUT_S = 5.0
_PASSING = frozenset({408, 409, 425, 429})  # and every 5xx
_REJECTED = frozenset({400, 413, 422})
_EXCERPT_CHARS = 300


class CallFailed(Exception):
    """One call without a usable answer. reason: names endpoint, status and remedy, never the key.

    tokens: that it cost, None when unknown.  hung_up: this side left while the endpoint was at work.
    """

    def __init__(
        self,
        kind: FailureKind,
        reason: str,
        *,
        retry_after: float = 0.0,
        tokens: int | None = None,
        hung_up: bool = False,
    ) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason
        self.retry_after_s, self.tokens, self.hung_up = retry_after, tokens, hung_up


@dataclass(frozen=True, kw_only=True)
class ChatAnswer:
    """value: the JSON object that the model wrote.  tokens: of prompt and answer; None when the endpoint is silent."""

    value: dict[str, Any]
    tokens: int | None


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    total_tokens: int | None = None


class _Completion(BaseModel):
    """The parts of a chat completion that are used; compatible servers omit or add others."""

    model_config = ConfigDict(extra="ignore")

    choices: list[_Choice]
    usage: _Usage | None = None


class ChatCaller:
    """Calls endpoints. Use it from one event loop. The key is in no message, log line, repr or pickle."""

    def __init__(self, config: JudgeConfig, api_key: str | None) -> None:
        self._config = config
        self._key = checked_key(api_key, config.api_key_env)
        self._clients: dict[str, AsyncOpenAI] = {}
        self._has_answered: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a ChatCaller holds a key and open connections; build one in the process that calls.")

    async def call(self, url: str, messages: list[Any], response_format: Any, timeout_s: float) -> ChatAnswer:
        """The endpoint's answer within `timeout_s`, however slowly it trickles in. Raises CallFailed."""
        try:
            async with asyncio.timeout(timeout_s):
                body = await self._body(url, messages, response_format)
        except TimeoutError:
            raise CallFailed("infra", f"{url}: no whole answer within {timeout_s:.1f} s", hung_up=True) from None
        except openai.APIStatusError as error:
            raise self._refused(url, error) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            reason = self._clean(f"{type(cause).__name__}: {cause}")
            # ConnectError and ConnectTimeout: it never got there, so it cost nothing
            tokens = 0 if type(cause).__name__.startswith("Connect") else None
            raise CallFailed("infra", f"{url}: no connection, or one that broke off: {reason}", tokens=tokens) from None
        return self._answer(url, body)

    async def close(self) -> None:
        """Ends the connections."""
        for client in self._clients.values():
            await client.close()
        self._clients.clear()

    async def _body(self, url: str, messages: list[Any], response_format: Any) -> bytes:
        # raw: the client's own parsing raises bare JSON errors on half an answer and lets anything else through
        raw = await self._client(url).chat.completions.with_raw_response.create(
            model=self._config.model,
            messages=messages,
            response_format=response_format,
            temperature=0.0,
            max_tokens=self._config.max_output_tokens,
            extra_headers=_headers(self._key),
        )
        return raw.content

    def _client(self, url: str) -> AsyncOpenAI:
        if url not in self._clients:
            # a proxy from the environment cannot reach this machine's loopback
            http = DefaultAsyncHttpxClient(trust_env=not is_loopback(urlsplit(url).hostname or ""))
            self._clients[url] = AsyncOpenAI(
                base_url=url,
                api_key=self._key or "none",
                max_retries=0,
                timeout=openai.Timeout(self._config.call_timeout_s, connect=_CONNECT_TIMEOUT_S),
                http_client=http,
            )
        return self._clients[url]

    def _answer(self, url: str, body: bytes) -> ChatAnswer:
        try:
            completion = _Completion.model_validate_json(body)
            choice = completion.choices[0]
        except (ValidationError, IndexError):
            excerpt = self._clean(body[:_EXCERPT_CHARS].decode("utf-8", "replace"))
            raise CallFailed("infra", f"{url}: HTTP 200 without a chat completion: {excerpt!r}") from None
        self._has_answered.add(url)
        tokens = completion.usage.total_tokens if completion.usage else None
        if choice.message.refusal or choice.finish_reason == "content_filter":
            excerpt = self._clean(choice.message.refusal or "its content filter")
            raise CallFailed("abstain", f"{url}: the judge refused to answer: {excerpt}", tokens=tokens)
        if choice.finish_reason == "length":
            limit = f"reward.judge.max_output_tokens={self._config.max_output_tokens}"
            raise CallFailed("malformed", f"{url}: the answer was cut off ({limit}); raise it", tokens=tokens)
        try:
            value = json.loads(choice.message.content or "", parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise CallFailed("malformed", f"{url}: the answer is not JSON: {error}", tokens=tokens) from None
        if not isinstance(value, dict):
            raise CallFailed(
                "malformed", f"{url}: the answer is a JSON {type(value).__name__}, not an object", tokens=tokens
            )
        return ChatAnswer(value=value, tokens=tokens)

    def _refused(self, url: str, error: openai.APIStatusError) -> CallFailed:
        status = error.status_code
        reason = f"{url}: HTTP {status}: {self._clean(error.message)}"
        # 404: a proxy that restarts has no routes for a moment, but one that never answered is a wrong address
        if status in _PASSING or status >= 500 or (status == 404 and url in self._has_answered):
            return CallFailed("infra", reason, retry_after=retry_after_s(error.response.headers))
        if error.code == "content_filter":
            return CallFailed("abstain", f"{url}: the judge's content filter refused the question")
        if status in _REJECTED:
            remedy = "texts may be longer than the judge takes, or it has no response_format json_schema"
            return CallFailed("rejected", f"{reason}. Remedy: {remedy}.")
        if status in (401, 403):
            has = "a key it refuses" if self._key else "no key"
            remedy = f"{self._config.api_key_env} holds {has}; set it to the endpoint's key where the judge runs"
        else:
            remedy = (
                "reward.judge.urls must be base URLs such as http://host:8000/v1, and "
                f"reward.judge.model={self._config.model!r} a model that they serve"
            )
        return CallFailed("setup", f"{reason}. Remedy: {remedy}.")

    def _clean(self, text: str) -> str:
        """`text` on one line, short, without the key, which endpoints like to repeat."""
        text = " ".join(text.replace(self._key, "***").split() if self._key else text.split())
        return text if len(text) <= _EXCERPT_CHARS else text[:_EXCERPT_CHARS] + "…"


def checked_key(api_key: str | None, variable: str) -> str:
    """The key without white space around it, "" for none. ConfigError, without the key, when no header can hold it."""
    key = (api_key or "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"{variable}: a key is one word of printable ASCII characters; this one is not.")
    return key


def _headers(key: str) -> dict[str, Any]:
    # else the client sends what its own environment variables hold, which are for another service
    ambient = {"OpenAI-Organization": Omit(), "OpenAI-Project": Omit()}
    return ambient if key else {**ambient, "Authorization": Omit()}


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
