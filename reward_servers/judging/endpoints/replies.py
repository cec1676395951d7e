"""The body of a chat completion: what is in it, and the JSON object that the model wrote."""

from __future__ import annotations

import json
import re
from json import JSONDecodeError
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

_STARTS = re.compile(r'\{\s*["}]')
_MAX_FAILED_STARTS = 256  # each may cost a pass over what follows; prose has few, a hostile answer has many
_THINK_END = "</think>"


class NotJson(ValueError):
    """The model's text holds no JSON object, or several that differ; the message says which."""


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _in_parts(cls, content: Any) -> Any:
        if isinstance(content, list):  # [{"type": "text", "text": …}, …]
            return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
        return content

    @field_validator("reasoning", "reasoning_content", mode="before")
    @classmethod
    def _only_text(cls, reasoning: Any) -> Any:
        return reasoning if isinstance(reasoning, str) else None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    total_tokens: int | None = None


class Completion(BaseModel):
    """The parts of a chat completion that are used; compatible servers omit or add others."""

    model_config = ConfigDict(extra="ignore")

    choices: list[_Choice]
    usage: _Usage | None = None

    @property
    def refusal(self) -> str | None:
        """Return why the model or its filter refused to answer, or None."""
        first = self.choices[0]
        return first.message.refusal or ("its content filter" if first.finish_reason == "content_filter" else None)

    @property
    def is_cut(self) -> bool:
        """Whether the answer ended at the limit of tokens."""
        return self.choices[0].finish_reason in ("length", "max_tokens", "model_length")

    @property
    def tokens(self) -> int | None:
        """Return the tokens of prompt and answer; None where the endpoint does not report them."""
        return self.usage.total_tokens if self.usage else None

    @property
    def text(self) -> str:
        """Return what the model wrote; its reasoning if all of the answer is there."""
        message = self.choices[0].message
        written = (message.content, message.reasoning_content, message.reasoning)
        return next((text for text in written if text and text.strip()), "")


def read_completion(body: bytes) -> Completion | dict[str, Any] | None:
    """Return the completion in `body`, the error that it holds instead, or None for anything else."""
    try:
        completion = Completion.model_validate_json(body)
        return completion if completion.choices else None
    except ValidationError:
        pass
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    error = value.get("error") if isinstance(value, dict) else None
    if not error or value.get("choices"):
        return None
    return error if isinstance(error, dict) else {"message": str(error)}


def has_choices(body: bytes) -> bool:
    """Return whether `body` is JSON with `choices`, as only chat endpoints write it, however broken they are."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "choices" in value


def json_object(text: str) -> dict[str, Any]:
    """Return the one JSON object in a model's answer: alone, in a fence, after its reasoning or amid other text.

    An answer that gives two different objects is not guessed at. Raises NotJson.
    """
    if not text.strip():
        raise NotJson("it is empty")
    try:
        whole = _DECODER.decode(text.strip())
    except (ValueError, RecursionError) as error:
        whole, problem = None, error
    else:
        if isinstance(whole, dict):
            return whole
        raise NotJson(f"a JSON {type(whole).__name__}, not an object")
    if isinstance(problem, _Refused):
        raise NotJson(str(problem))
    _, end, answer = text.rpartition(_THINK_END)
    found = _objects(answer) or (_objects(text) if end else [])
    if not found:
        raise NotJson(str(problem))
    if any(other != found[0] for other in found):
        raise NotJson(f"{len(found)} JSON objects that differ")
    return found[0]


def _objects(text: str) -> list[dict[str, Any]]:
    """Return the JSON objects that stand in `text`, not those inside another one."""
    found, at, num_failed = [], 0, 0
    while num_failed < _MAX_FAILED_STARTS and (start := _STARTS.search(text, at)) is not None:
        try:
            value, at = _DECODER.raw_decode(text, start.start())
            found.append(value)
        except _Refused as error:
            raise NotJson(str(error)) from None
        except (JSONDecodeError, RecursionError):
            num_failed += 1
            at = start.start() + 1
    return found


class _Refused(ValueError):
    """JSON as Python reads it, but none that has one meaning."""


def _refuse_constant(name: str) -> None:
    raise _Refused(f"{name} is no JSON number")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise _Refused("a JSON object names a key twice")
    return value


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_without_duplicates)
