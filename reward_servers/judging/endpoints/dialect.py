"""The parameters of a chat completion that an endpoint takes, and how a refusal of one of them is recognised."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

Answers = Literal["json_schema", "json_object", "text"]
_ANSWERS: tuple[Answers, ...] = ("json_schema", "json_object", "text")
TokenLimit = Literal["max_tokens", "max_completion_tokens", "none"]
_TOKEN_LIMITS: tuple[TokenLimit, ...] = ("max_tokens", "max_completion_tokens", "none")

_NAMED = {
    "answers": re.compile(
        r"response_?format|json[_ ]?schema|json[_ ]?object|json[_ ]mode|structured[_ ]outputs?|guided_\w+"
        r"|guided decoding|grammar|\w*schema\b|prefixItems|additionalProperties",
        re.I,
    ),
    "token_limit": re.compile(r"\bmax_(completion_)?tokens\b", re.I),
    "temperature": re.compile(r"\btemperature\b", re.I),
    "system": re.compile(
        r"system[\W_]{1,4}(role|message|prompt|instruction)|\brole\b.{0,40}\bsystem\b|\bsystem\b.{0,20}\brole\b"
        r"|developer instruction|\bonly\b.{0,40}\broles?\b|roles must alternate|messages\W{1,4}0\W{1,4}role",
        re.I | re.S,
    ),
}
_TOO_LARGE = re.compile(r"too large|too high|at most|less than|greater than|exceeds?|larger than|up to|maximum", re.I)


@dataclass(frozen=True, kw_only=True)
class ChatQuestion:
    """What the model is asked. schema: JSON schema of the answer, under `schema_name`."""

    system: str
    user: str
    schema: Mapping[str, Any]
    schema_name: str


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """The parameters that an endpoint takes; the default is what a current vLLM or OpenAI endpoint does.

    answers: the kind of `response_format`; "text" sends none.  token_limit: the name of the bound on an answer's
    length.  has_temperature: whether 0 may be sent.  has_system: False puts the system message before the user's.
    is_spelled_out: whether the prompt states the schema, which endpoints without `json_schema` always need.
    """

    answers: Answers = "json_schema"
    token_limit: TokenLimit = "max_tokens"
    has_temperature: bool = True
    has_system: bool = True
    is_spelled_out: bool = False

    def request(self, question: ChatQuestion, max_tokens: int) -> dict[str, Any]:
        """Return the parameters of the call, without the model."""
        user = question.user
        if self.is_spelled_out or self.answers != "json_schema":
            user += f"\n\nAnswer with one JSON object and no other text. Its schema: {json.dumps(question.schema)}"
        messages = [{"role": "user", "content": user if self.has_system else f"{question.system}\n\n{user}"}]
        if self.has_system:
            messages.insert(0, {"role": "system", "content": question.system})
        schema = {"name": question.schema_name, "strict": True, "schema": dict(question.schema)}
        forms: dict[str, Any] = {
            "json_schema": {"response_format": {"type": "json_schema", "json_schema": schema}},
            "json_object": {"response_format": {"type": "json_object"}},
            "text": {},
        }
        return {
            "messages": messages,
            **forms[self.answers],
            **({"temperature": 0.0} if self.has_temperature else {}),
            **({} if self.token_limit == "none" else {self.token_limit: max_tokens}),
        }

    def without(self, param: str, text: str) -> Dialect | None:
        """Return the dialect without the parameter that an endpoint refuses; None if the refusal names none.

        param: that the endpoint itself names as the wrong one, or "".  text: of the refusal.
        Of several parameters in the text the one that is named first counts: endpoints repeat requests after it.
        """
        for found in (param, text):
            places = {name: match.start() for name, named in _NAMED.items() if (match := named.search(found))}
            for name in sorted(places, key=places.__getitem__):
                if name == "token_limit" and _TOO_LARGE.search(text):
                    continue  # the number is refused, not the parameter
                if (changed := self._stepped_down(name)) is not None:
                    return changed
        return None

    def joined(self, other: Dialect) -> Dialect:
        """Return the dialect that avoids what either of the two avoids."""
        return Dialect(
            answers=max(self.answers, other.answers, key=_ANSWERS.index),
            token_limit=max(self.token_limit, other.token_limit, key=_TOKEN_LIMITS.index),
            has_temperature=self.has_temperature and other.has_temperature,
            has_system=self.has_system and other.has_system,
            is_spelled_out=self.is_spelled_out or other.is_spelled_out,
        )

    def changes(self) -> Iterator[str]:
        """Yield, for a person, how the calls differ from the usual ones."""
        if self.answers != "json_schema":
            yield f"{self.answers} answers instead of json_schema, with the schema in the prompt"
        elif self.is_spelled_out:
            yield "the schema in the prompt too"
        if self.token_limit != "max_tokens":
            yield "no max_tokens" if self.token_limit == "none" else f"{self.token_limit} instead of max_tokens"
        if not self.has_temperature:
            yield "no temperature, so verdicts are sampled as the endpoint likes"
        if not self.has_system:
            yield "the system message inside the user's"

    def _stepped_down(self, name: str) -> Dialect | None:
        if name == "answers" and self.answers != "text":
            return replace(self, answers=_ANSWERS[_ANSWERS.index(self.answers) + 1])
        if name == "token_limit" and self.token_limit != "none":
            return replace(self, token_limit=_TOKEN_LIMITS[_TOKEN_LIMITS.index(self.token_limit) + 1])
        if name == "temperature" and self.has_temperature:
            return replace(self, has_temperature=False)
        if name == "system" and self.has_system:
            return replace(self, has_system=False)
        return None
