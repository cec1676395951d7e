"""The body of a chat completion: what is in it. Servers differ in all but the answer, so only that is strict."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

_MAX_TOKENS = 10**9


def _content(value: Any) -> Any:
    """Return the text of a message's content: as it is, in parts, or an object that somebody has parsed already."""
    if isinstance(value, list):  # [{"type": "text", "text": …}, …]
        return "".join(part if isinstance(part, str) else _text_of_part(part) for part in value)
    if isinstance(value, dict):
        return _text_of_part(value) or json.dumps(value)
    return value


def _text_of_part(part: Any) -> str:
    return str(part.get("text") or "") if isinstance(part, dict) else ""


def _arguments(calls: Any) -> str | None:
    """Return the arguments of the only call of a tool, which some servers turn a schema into."""
    match calls:
        case [{"function": {"arguments": str(text)}}]:
            return text
        case [{"function": {"arguments": dict(value)}}]:
            return json.dumps(value)
    return None


def _only_text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _said(value: Any) -> str | None:
    """Return what `value` says, for a person; None where it says nothing."""
    return (value if isinstance(value, str) else json.dumps(value)) if value else None


def _only_dict(value: Any) -> Any:
    return value if isinstance(value, dict) else None


def _count(value: Any) -> int | None:
    is_count = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MAX_TOKENS
    return int(value) if is_count else None


Text = Annotated[str | None, BeforeValidator(_only_text)]
Said = Annotated[str | None, BeforeValidator(_said)]


_OF_A_VERSION = re.compile(r"(?:[-@][0-9][0-9.-]*)?(?::[\w-]+)?")
"""What the name of a model may have behind it: a date or number of its version, and a router's mark such as `:free`."""


class _Message(BaseModel):
    content: Annotated[str | None, BeforeValidator(_content)] = None
    refusal: Said = None
    reasoning_content: Text = None
    reasoning: Text = None
    tool_calls: Annotated[str | None, BeforeValidator(_arguments)] = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: Text = None
    error: Said = None

    @property
    def ending(self) -> str:
        return (self.finish_reason or "").casefold()


class _Usage(BaseModel):
    total_tokens: Annotated[int | None, BeforeValidator(_count)] = None


class Completion(BaseModel):
    """The parts of a chat completion that are used; compatible servers omit or add others."""

    model_config = ConfigDict(extra="ignore")

    choices: list[_Choice]
    model: Text = None
    usage: Annotated[_Usage | None, BeforeValidator(_only_dict)] = None

    def other_model(self, asked: str) -> str:
        """Return the name of the model that answered, "" if it is `asked`, another form of its name, or not told.

        Endpoints add a date, leave out the owner, or write small letters; a router may answer with another model.
        """
        if not self.model:
            return ""
        names = (name.casefold().rstrip("/").rpartition("/")[2] for name in (self.model, asked))
        short, long = sorted(names, key=len)
        is_same = long.startswith(short) and _OF_A_VERSION.fullmatch(long.removeprefix(short))
        return "" if is_same else self.model

    @property
    def failure(self) -> str | None:
        """Return why the endpoint gave up in the middle of the answer, or None."""
        first = self.choices[0]
        return first.error or ("it gives no reason" if first.ending == "error" else None)

    @property
    def refusal(self) -> str | None:
        """Return why the model or its filter refused to answer, or None."""
        first = self.choices[0]
        is_filtered = first.ending in ("content_filter", "safety")
        return first.message.refusal or ("its content filter" if is_filtered else None)

    @property
    def is_cut(self) -> bool:
        """Whether the answer ended at the limit of tokens."""
        return self.choices[0].ending in ("length", "max_tokens", "model_length")

    @property
    def tokens(self) -> int | None:
        """Return the tokens of prompt and answer; None where the endpoint does not report them."""
        return self.usage.total_tokens if self.usage else None

    @property
    def text(self) -> str:
        """Return what the model wrote; its call of a tool or its reasoning if all of the answer is there."""
        message = self.choices[0].message
        written = (message.content, message.tool_calls, message.reasoning_content, message.reasoning)
        return next((text for text in written if text and text.strip()), "")


def read_completion(body: bytes) -> Completion | dict[str, Any] | None:
    """Return the completion in `body`, the error that it holds instead, or None for anything else."""
    try:
        completion = Completion.model_validate_json(_decoded(body))
        return completion if completion.choices else None
    except ValidationError:
        pass
    value = _json_of(body)
    error = value.get("error") if isinstance(value, dict) else None
    if not error or value.get("choices"):
        return None
    return error if isinstance(error, dict) else {"message": str(error)}


def has_choices(body: bytes) -> bool:
    """Return whether `body` is JSON with `choices`, as only chat endpoints write it, however broken they are."""
    value = _json_of(body)
    return isinstance(value, dict) and "choices" in value


def is_broken_json(body: bytes) -> bool:
    """Return whether `body` begins as a JSON object and is none, as a reply does that broke off on its way."""
    return _decoded(body).lstrip().startswith("{") and _json_of(body) is None


def _decoded(body: bytes) -> str:
    return body.decode("utf-8-sig", "replace")


def _json_of(body: bytes) -> Any:
    """Return the value of the JSON in `body`; None where it is no JSON."""
    try:
        return json.loads(_decoded(body))
    except (ValueError, RecursionError):
        return None
