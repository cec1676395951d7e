"""Files of responses to imitate: JSON lines of a prompt's id and its response."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlsys.data.video.errors import AnnotationError
from rlsys.files import require_regular, write_whole
from rlsys.types import PromptItem

SHOWN = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class WrittenResponse:
    """A row and the response to imitate.

    where: for messages, "FILE:LINE" or the row's own name.
    earlier: responses of the rounds before; () for a response to the first round.
    """

    item: PromptItem
    text: str
    where: str
    earlier: tuple[str, ...] = ()


def read_responses(path: Path, items: Sequence[PromptItem]) -> tuple[WrittenResponse, ...]:
    """Return the lines of `path`, each with the item that it answers, in the file's order; several may answer one item.

    A line is {"prompt_id": "…", "response": "…"}, of a later round also "earlier": ["…"] with the responses of the
    rounds before; other keys are ignored, and so are blank lines.
    Raises AnnotationError for a file that cannot be read or has no line, and for lines that are not of this shape
    or answer no item, naming the first ten.
    """
    by_id = {item.prompt_id: item for item in items}
    try:
        require_regular(path)
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read ({error.strerror}); check sft.responses.") from error
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: not UTF-8 text: {error}; check sft.responses.") from error
    found: list[WrittenResponse] = []
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            prompt_id, text, earlier = _entry(line)
            if prompt_id not in by_id:
                raise ValueError(f"prompt_id {prompt_id!r} is no usable row of data.annotations{_example(items)}")
            found.append(WrittenResponse(item=by_id[prompt_id], text=text, where=f"{path}:{number}", earlier=earlier))
        except ValueError as error:
            problems.append(f"{path}:{number}: {error}")
    if problems:
        more = [f"… and {len(problems) - SHOWN} more lines"] if len(problems) > SHOWN else []
        raise AnnotationError("\n".join([*problems[:SHOWN], *more]))
    if not found:
        raise AnnotationError(f'{path}: empty; write one {{"prompt_id": "…", "response": "…"}} a line.')
    return tuple(found)


def _entry(line: str) -> tuple[str, str, tuple[str, ...]]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(entry, dict):
        raise ValueError(f"an object is expected, this is a {type(entry).__name__}")
    for key in ("prompt_id", "response"):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise ValueError(f'{key} is {entry.get(key)!r}; write {{"prompt_id": "…", "response": "…"}}, both in words')
    earlier = entry.get("earlier", [])
    if not isinstance(earlier, list) or not all(isinstance(text, str) for text in earlier):
        raise ValueError(f"earlier is {earlier!r}; list the responses of the rounds before, each in words")
    return entry["prompt_id"], entry["response"], tuple(earlier)


def _example(items: Sequence[PromptItem]) -> str:
    return f"; they are named like {items[0].prompt_id!r}" if items else ""


def write_responses(path: Path, responses: Iterable[tuple[str, ...]]) -> Path:
    """Write (prompt_id, response, responses of earlier rounds…) in the form that `read_responses` reads."""
    lines = []
    for prompt_id, response, *earlier in responses:
        entry = {"prompt_id": prompt_id, "response": response, **({"earlier": earlier} if earlier else {})}
        lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    write_whole(path, "".join(lines))
    return path
