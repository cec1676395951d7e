"""What the error of an OpenAI-compatible endpoint means, in the many spellings that servers and vendors have.

Read by the words of OpenAI, Azure, vLLM, llama.cpp, TGI, Ollama, LiteLLM, OpenRouter, DeepSeek, Mistral and Anthropic.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from reward_servers.client.retry_after import retry_after_s

RefusalKind = Literal["passing", "filtered", "quota", "key", "model", "budget", "context", "request", "place"]
"""What a refusal means.

passing: try again later.  filtered: a content filter refused the question.  quota: money or quota is spent.
key: a key is needed or refused.  model: no such model.  budget: `max_tokens` is above what the model may write.
context: prompt and answer do not fit.  request: refused for another reason.  place: no endpoint at this address."""

_ERROR_CODE = re.compile(r"[45][0-9]{2}")
_STATUS_OF_WORDS = {
    "insufficient_quota": 429,
    "rate_limit": 429,
    "invalid_api_key": 401,
    "authentication": 401,
    "permission": 403,
    "model_not_found": 404,
    "context_length": 400,
    "invalid_request": 400,
}
"""The status that OpenAI and Anthropic send with the codes and types of errors, the particular ones first."""
_PASSING = frozenset({408, 409, 425, 429})  # and every 5xx
_REQUEST = frozenset({400, 413, 422})
_TEXT_CHARS = 4000
_ECHOED = frozenset({"input", "ctx", "url"})  # where pydantic's errors repeat the request, which names everything

_SPENT_CODES = re.compile(
    r"insufficient_(quota|balance|funds|credits?)|billing_(hard_limit_reached|not_active)|credit_balance|quota_exhausted"
)
_SPENT = re.compile(
    r"insufficient[_ ](quota|balance|funds?|credits?)|billing|credit balance|(out of|no|not enough) credits"
    r"|exceeded your current quota|quota (is )?(exhausted|used up)|payment required",
    re.I,
)
_EMPTY = re.compile(
    r"balance (is )?(too low|insufficient)|(credits?|funds?) (are |have been )?(insufficient|depleted|exhausted)"
    r"|used all|exceeded your monthly|(spending|usage) limits?|(key|credit) limit exceeded|overdue|arrear"
    r"|in good standing|trial key|欠费|余额不足|充值",
    re.I,
)
"""Money or quota that is spent, in the words of Anthropic, xAI, Google, OpenRouter, Cohere and others."""
_SHORT_CHARS = 500  # of what a provider says itself; a longer message may repeat the request
_PLAIN_HTTP = re.compile(r"plain HTTP request|HTTP request to an HTTPS", re.I)
_COMES_BACK = re.compile(r"(retry|try again) (in|after)|per (second|minute|hour|day)", re.I)
_CONTEXT = re.compile(
    r"context[_ ](length|window|size)|maximum (model|context|input|prompt|sequence) length|max_model_len"
    r"|available context|inputs?\W{1,3}tokens \+|(prompt|input|request)( is)? too (long|large)|too many (input )?tokens"
    r"|reduce the length|string too long|exceeds the (maximum|model'?s?) (number of )?tokens",
    re.I,
)
_BUDGET = re.compile(
    r"\bmax_(completion_|new_)?tokens\b.*(too (large|high)|at most|less than|exceeds?|greater)", re.I | re.S
)
_NO_MODEL = re.compile(
    r"model_?not_?found|deployment_?not_?found|unknown[_ ]model|invalid[_ ]model|no such model"
    r"|\b(model|deployment)\b.{0,200}(not found|not exist|n't exist|is not a valid|is not available|not served|unknown)"
    r"|not a valid model",
    re.I | re.S,
)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A reply of an endpoint that is no answer.

    status: of HTTP, or the one that stands in the body of a 200.  text: for people and for `kind`, without what
    repeats the request.  is_foreign: no reply of a chat endpoint at all, such as an HTML page with status 200.
    has_no_status: it came with HTTP 200, and `status` is read from its words.
    """

    status: int
    text: str
    code: str = ""
    param: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    is_foreign: bool = False
    has_no_status: bool = False

    @classmethod
    def of(cls, status: int, body: object, headers: Mapping[str, str]) -> Refusal:
        """Read a body, parsed where it is JSON. body: the value of its `error` or the whole of it."""
        fields = body if isinstance(body, dict) else {}
        inner = fields.get("error")
        if isinstance(inner, dict):
            fields = inner
        code, kind = (str(fields.get(name) or "") for name in ("code", "type"))
        return cls(
            status=status,
            text=_text_of(body),
            code=f"{code} {kind}".strip(),
            param=str(fields.get("param") or ""),
            headers=headers,
        )

    @classmethod
    def in_body(cls, error: Mapping[str, Any], headers: Mapping[str, str]) -> Refusal:
        """Read the error in the body of a reply with status 200; what it is of stands in numbers or in words."""
        code = str(error.get("code", ""))
        if _ERROR_CODE.fullmatch(code):
            return cls.of(int(code), error, headers)
        refusal = cls.of(500, error, headers)
        status = next((status for word, status in _STATUS_OF_WORDS.items() if word in refusal.code), 500)
        return replace(refusal, status=status, has_no_status=True)

    @property
    def retry_after_s(self) -> float:
        """Seconds that the endpoint asks to wait; 0 if it does not."""
        return retry_after_s(self.headers)

    def kind(self, model: str) -> RefusalKind:
        """Return what the refusal means for a call of `model`."""
        said = f"{self.code} {self.text}"
        if "content_filter" in self.code or "content_policy" in self.code:
            return "filtered"
        if self._is_spent():
            return "quota"
        if self.status == 400 and _PLAIN_HTTP.search(self.text):
            return "place"
        if self.status in (400, 404, 422) and self._misses(model):
            return "model"
        if self.status in _PASSING or self.status >= 500:
            return "passing"
        if self.status in (401, 403, 407):
            return "key"
        if self.status in _REQUEST:
            if _CONTEXT.search(said) or self.status == 413:
                return "context"
            return "budget" if _BUDGET.search(said) else "request"
        return "place"

    @property
    def may_be_misplaced(self) -> bool:
        """Whether another address of the same host may be the right one."""
        return self.is_foreign or 300 <= self.status < 400 or self.status in (404, 405, 501)

    def _is_spent(self) -> bool:
        if self.status == 402 or (self.status in (400, 403, 429) and _SPENT_CODES.search(self.code)):
            return True
        # the same words with a time to come back are a limit per minute or day, which passes
        is_limit = self.retry_after_s > 0 or bool(_COMES_BACK.search(self.text))
        if is_limit:
            return False
        is_empty = len(self.text) < _SHORT_CHARS and bool(_EMPTY.search(f"{self.code} {self.text}"))
        return (self.status in (400, 403, 412, 429) and is_empty) or (
            self.status in (403, 429) and bool(_SPENT.search(self.text))
        )

    def _misses(self, model: str) -> bool:
        said = f"{self.code} {self.text}"
        if self.status == 404:
            return bool(_NO_MODEL.search(said)) or (len(model) > 3 and f"'{model}'" in said.translate(_QUOTES))
        return bool(_NO_MODEL.search(said))


_QUOTES = str.maketrans('`"', "''")


def _text_of(body: object) -> str:
    if isinstance(body, dict) and isinstance(body.get("message"), str) and body["message"]:
        return body["message"][:_TEXT_CHARS]
    if isinstance(body, dict) and "error" in body:
        return _text_of(body["error"])
    if isinstance(body, dict | list):
        return json.dumps(_without_echo(body), ensure_ascii=False)[:_TEXT_CHARS]
    return str(body or "")[:_TEXT_CHARS]


def _without_echo(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_echo(child) for key, child in value.items() if key not in _ECHOED}
    return [_without_echo(child) for child in value] if isinstance(value, list) else value
