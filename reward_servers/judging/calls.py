"""The calls to a judge's model: the prompts, the schema of the answers, and the validation of an answer."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from reward_servers.judging.event_scores import EventVerdict
from reward_servers.judging.texts import judge_prompt, numbered, quoted
from rlsys.types import Json

MAX_EVENTS = 32
"""Largest number of events of one text. More would not fit one answer; the splitter's prompt states the limit."""
_EVENT_CHARS, _REASON_CHARS = 200, 100
_PLAIN = r'[^"\\\x00-\x1f]'
_NUMBER = re.compile(r"\s*#?([0-9]{1,4})(?:\.0*)?\s*")
_MANY = 10_000
_AROUND_WORD = " \t\r\n.!*_`'\""
_ENTAILED = {"entailed": True, "not_entailed": False, "cannot_tell": None}
_CONSISTENT = {"consistent": True, "inconsistent": False, "cannot_tell": None}

CallName = Literal["split", "entailment", "consistency"]
_PROMPTS: dict[CallName, str] = {
    "split": "split-events-1",
    "entailment": "entailment-1",
    "consistency": "consistency-1",
}


class Unusable(ValueError):
    """An answer without the requested content; the message says why, without quoting the answer."""


@dataclass(frozen=True, kw_only=True)
class JudgeCall:
    """One question to the model.

    inputs: the texts that the answer depends on; with the model and `prompt_version` they are its key in the cache.
    schema: of the answer. An endpoint may ignore it, so `read` looks at everything again.
    read: the answer's JSON -> what it says; raises Unusable.  user_again: the user message after an unusable one.
    """

    name: CallName
    prompt_version: str
    inputs: tuple[str, ...]
    system: str
    user: str
    schema: dict[str, Json]
    read: Callable[[Json], Json]
    user_again: Callable[[str], str]


def prompt_version(name: CallName) -> str:
    """Return the prompt's name and a hash of everything sent to the model: its file, the quoting and the schema.

    Any edit of one of them gives another version, so that its verdicts never meet older ones.
    """
    odd = 'a "text" <tag> [INST] \u202e & {{place}}'
    shown: dict[CallName, Callable[[], JudgeCall]] = {
        "split": lambda: _split(odd, ""),
        "entailment": lambda: _entailment((odd, "b"), (odd, "c"), ""),
        "consistency": lambda: _consistency(odd, odd, odd, ""),
    }
    call = shown[name]()
    sent = json.dumps([call.system, call.user, call.user_again("problem"), call.schema])
    return f"{_PROMPTS[name]}-{hashlib.sha256(sent.encode()).hexdigest()[:8]}"


def split_call(text: str) -> JudgeCall:
    """Return the call that asks for the events of a text that is not blank; read as a list of strings."""
    return _split(text, _VERSIONS["split"])


def entailment_call(events: Sequence[str], premise: Sequence[str]) -> JudgeCall:
    """Return the call that asks of each event whether those of `premise` entail it; read as verdicts in JSON."""
    return _entailment(tuple(events), tuple(premise), _VERSIONS["entailment"])


def consistency_call(question: str, reasoning: str, answer: str) -> JudgeCall:
    """Return the call that asks whether `answer` follows from `reasoning`.

    It is read as `{"consistent": bool or null, "reason": str}`.

    Source: Video-R2 (consistency of reasoning and answer).
    """
    return _consistency(question, reasoning, answer, _VERSIONS["consistency"])


def _split(text: str, version: str) -> JudgeCall:
    prompt = judge_prompt(_PROMPTS["split"])
    most = _most_events(text)
    texts = {"text": quoted(text), "most": str(most)}
    event = _plain_text(1, _EVENT_CHARS)
    return JudgeCall(
        name="split",
        prompt_version=version,
        inputs=(text,),
        system=prompt.system,
        user=prompt.filled(**texts),
        schema=_object(events={"type": "array", "minItems": 1, "maxItems": most, "items": event}),
        read=_read_events,
        user_again=lambda problem: prompt.filled_again(problem, **texts),
    )


def _entailment(events: tuple[str, ...], premise: tuple[str, ...], version: str) -> JudgeCall:
    prompt = judge_prompt(_PROMPTS["entailment"])
    texts = {"premise": numbered(premise), "events": numbered(events), "count": str(len(events))}
    verdict = {
        "reason": _plain_text(0, _REASON_CHARS),
        "verdict": {"type": "string", "enum": list(_ENTAILED)},
    }
    verdicts = {
        "type": "array",
        "minItems": len(events),
        "maxItems": len(events),
        "prefixItems": [_object(index={"const": index}, **verdict) for index in range(1, len(events) + 1)],
        "items": _object(index={"type": "integer"}, **verdict),
    }
    return JudgeCall(
        name="entailment",
        prompt_version=version,
        inputs=(json.dumps(events), json.dumps(premise)),
        system=prompt.system,
        user=prompt.filled(**texts),
        schema=_object(verdicts=verdicts),
        read=lambda answer: _read_verdicts(answer, events),
        user_again=lambda problem: prompt.filled_again(problem, **texts),
    )


def _consistency(question: str, reasoning: str, answer: str, version: str) -> JudgeCall:
    prompt = judge_prompt(_PROMPTS["consistency"])
    texts = {"question": quoted(question), "reasoning": quoted(reasoning), "answer": quoted(answer)}
    reason = _plain_text(0, _REASON_CHARS)
    return JudgeCall(
        name="consistency",
        prompt_version=version,
        inputs=(question, reasoning, answer),
        system=prompt.system,
        user=prompt.filled(**texts),
        schema=_object(reason=reason, verdict={"type": "string", "enum": list(_CONSISTENT)}),
        read=_read_consistency,
        user_again=lambda problem: prompt.filled_again(problem, **texts),
    )


def _most_events(text: str) -> int:
    # A sentence each, or an event every two words, or every three characters of a script without spaces (CJK and
    # what follows it), whichever is most. The bound keeps a model that loses its way from writing indefinitely.
    num_sentences = len(re.findall(r"[^\s.!?;][.!?;]", text))
    num_wide = sum(char > "\u2e7f" for char in text)
    return min(MAX_EVENTS, max(1, num_sentences, len(text.split()) // 2, num_wide // 3))


def _plain_text(least: int, most: int) -> dict[str, Json]:
    # not minLength and maxLength: xgrammar 0.2 then lets control characters through, which JSON does not allow.
    # In pieces: it also fails to compile a character repeated more than 128 times.
    pieces = [(least, 100), *[(0, 100)] * (most // 100 - 1)]
    return {"type": "string", "pattern": "^" + "".join(f"{_PLAIN}{{{low},{high}}}" for low, high in pieces) + "$"}


def _object(**properties: Json) -> dict[str, Json]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _read_events(answer: Json) -> list[str]:
    match answer:
        case {"events": list(events)} if all(isinstance(event, str) for event in events):
            sent = [event.strip() for event in events if event.strip()]
            if sent:
                return sent[:MAX_EVENTS]
            raise Unusable("it lists no event")
    raise Unusable('it is not {"events": [text, …]}')


def _read_verdicts(answer: Json, events: Sequence[str]) -> list[Json]:
    match answer:
        case {"verdicts": list(verdicts)}:
            if len(verdicts) != len(events):
                raise Unusable(f"it has {len(verdicts)} verdicts, {len(events)} are needed")
            _check_indices([_index(verdict) for verdict in verdicts])
            return [_read_verdict(*pair) for pair in enumerate(zip(verdicts, events, strict=True), start=1)]
    raise Unusable('it is not {"verdicts": […]}')


def _read_verdict(index: int, pair: tuple[Json, str]) -> Json:
    value, event = pair
    match value:
        case {"reason": str(reason), "verdict": str(verdict)} if _word(verdict) in _ENTAILED:
            return EventVerdict(event=event, entailed=_ENTAILED[_word(verdict)], reason=reason.strip()).as_json()
    raise Unusable(f"verdict {index} is not {{index, reason, verdict}} with a verdict of {', '.join(_ENTAILED)}")


def _read_consistency(answer: Json) -> Json:
    match answer:
        case {"reason": str(reason), "verdict": str(verdict)} if _word(verdict) in _CONSISTENT:
            return {"consistent": _CONSISTENT[_word(verdict)], "reason": reason.strip()}
    raise Unusable(f"it is not {{reason, verdict}} with a verdict of {', '.join(_CONSISTENT)}")


def _check_indices(indices: Sequence[int | None]) -> None:
    """Raise Unusable unless the indices count every event once, in order, from 1 or from 0.

    A part of a count from 0 could as well be a part of one from 1, so only a complete one is read.
    """
    if list(indices) not in (list(range(1, len(indices) + 1)), list(range(len(indices)))):
        found = ", ".join("none" if index is None else str(index) for index in indices)
        raise Unusable(f"its verdicts have the indices {found} instead of 1 to {len(indices)} in order")


def _index(verdict: Json) -> int | None:
    """Return the index of a verdict, which models also write as a text or a float; None where there is none."""
    index = verdict.get("index") if isinstance(verdict, dict) else None
    if isinstance(index, bool):
        return None
    if isinstance(index, float) and index.is_integer() and abs(index) < _MANY:
        return int(index)
    if isinstance(index, str) and (number := _NUMBER.fullmatch(index)):
        return int(number[1])
    return index if isinstance(index, int) and abs(index) < _MANY else None


def _word(verdict: str) -> str:
    """Return a verdict as the schema spells it: models without one write `Not entailed`."""
    return verdict.strip(_AROUND_WORD).casefold().replace(" ", "_").replace("-", "_")


_VERSIONS: dict[CallName, str] = {name: prompt_version(name) for name in _PROMPTS}
