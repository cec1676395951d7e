"""The JSON object that a judge's model wrote, in whatever form it wrote it, unless it could be two."""

from __future__ import annotations

import ast
import json
import re
from json import JSONDecodeError
from typing import Any

MAX_ANSWER_CHARS = 1 << 20
"""Most characters of a model's text that are read; 2,048 tokens are about 10,000."""
_MAX_LITERAL_CHARS = 1 << 16
_STARTS = re.compile(r'\{\s*["}]')
_MAX_FAILED_STARTS = 256  # prose has few, a hostile answer has many
_MOST_READ = 8  # times the length of the text that objects are tried which turn out to be none
_REASONING_ENDS = re.compile(
    r"</(?:[a-z_]{1,20}:)?(?:think|thinking|thought|reasoning|analysis|reflection)>|\[/think\]"
    r"|<\|channel\|>final<\|message\|>",
    re.I,
)
_FENCE = re.compile(r"\A```[a-z0-9]{0,10}\s|```\Z", re.I)


class NotJson(ValueError):
    """The model's text holds no JSON object, or several that differ; the message says which."""


def json_object(text: str) -> dict[str, Any]:
    """Return the one JSON object in a model's answer: alone, in a fence, after its reasoning or amid other text.

    Also one in a list or a string of its own, with raw line ends in its texts, with a comma too many, or in single
    quotes, as Python writes it. An answer that gives two different objects is not guessed at. Raises NotJson.
    """
    stripped = text.strip()
    if not stripped:
        raise NotJson("it is empty")
    if len(stripped) > MAX_ANSWER_CHARS:
        raise NotJson(f"it has {len(stripped):,} characters, more than the {MAX_ANSWER_CHARS:,} that are read")
    try:
        whole = _DECODER.decode(stripped)
    except (ValueError, RecursionError) as error:
        if isinstance(error, _Refused):
            raise NotJson(str(error)) from None
        return _amid_text(text, str(error))
    match whole:
        case dict() | [dict()]:
            return whole if isinstance(whole, dict) else whole[0]
        case str():
            return json_object(whole)
    raise NotJson(f"a JSON {type(whole).__name__}, not an object")


def _amid_text(text: str, problem: str) -> dict[str, Any]:
    ends = [match.end() for match in _REASONING_ENDS.finditer(text)]
    answer = text[ends[-1] :] if ends else text
    literal = _literal(answer)
    if literal is not None:
        return literal
    found = _objects(answer) or (_objects(text) if ends else [])
    if not found:
        raise NotJson(problem)
    if any(other != found[0] for other in found):
        raise NotJson(f"{len(found)} JSON objects that differ")
    return found[0]


def _literal(text: str) -> dict[str, Any] | None:
    """Return the dictionary of constants that all of `text` is in Python's notation, which takes a last comma."""
    code = _FENCE.sub("", text.strip()).strip()
    if len(code) > _MAX_LITERAL_CHARS or not (code.startswith("{") and code.endswith("}")):
        return None
    try:
        tree = ast.parse(code, mode="eval")
        # as JSON once more, which has no sets, bytes or infinities
        value = json.loads(json.dumps(ast.literal_eval(tree), allow_nan=False))
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict) and len({ast.dump(key) for key in node.keys if key}) < len(node.keys):
            raise NotJson("a JSON object names a key twice")
    return value if isinstance(value, dict) else None


def _objects(text: str) -> list[dict[str, Any]]:
    """Return the JSON objects that stand in `text`, not those inside another one."""
    found, at, num_failed, num_read = [], 0, 0, 0
    while (
        num_failed < _MAX_FAILED_STARTS
        and num_read <= _MOST_READ * len(text)
        and (start := _STARTS.search(text, at)) is not None
    ):
        try:
            value, at = _DECODER.raw_decode(text, start.start())
            found.append(value)
        except _Refused as error:
            raise NotJson(str(error)) from None
        except (JSONDecodeError, RecursionError) as error:
            num_failed += 1
            num_read += (error.pos if isinstance(error, JSONDecodeError) else len(text)) - start.start()
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


# not strict: models write line ends into texts as they are
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_without_duplicates, strict=False)
