"""DREAM-1K: chats whose answer is the reference caption, with its events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from rlsys.data.annotations.rows import BadLine
from rlsys.data.annotations.sets.records import Record
from rlsys.data.annotations.sets.tables import Table
from rlsys.types import Json


def _of_chat(record: Record) -> Iterator[Record]:
    """Take the video, the question and the reference out of the messages, and the events out of `extra_info`."""
    assert not isinstance(record.fields, BadLine)
    fields = dict(record.fields)
    extra = fields.get("extra_info")
    found: dict[str, Json] = {
        "video": _file(fields.get("video_file") or fields.get("video")),
        "question": fields.get("question"),
        "caption": fields.get("caption") or fields.get("reference"),
        "events": fields.get("events") or (extra.get("events") if isinstance(extra, Mapping) else None),
        "category": fields.get("category") or fields.get("subset") or fields.get("dataset"),
        "qid": fields.get("idx") if fields.get("idx") is not None else fields.get("id"),
    }
    for message in _messages(fields):
        _take(message, found)
    images = found.pop("images", None) or []
    if found["video"] is None and images:
        found |= {"image_list": images} if len(images) > 1 else {"image": images[0]}
    if isinstance(found["category"], str):
        found["category"] = found["category"].rpartition("/")[2]
    yield replace(record, fields={name: value for name, value in found.items() if value is not None})


def _messages(fields: Mapping[str, Json]) -> Iterator[Mapping[str, Json]]:
    """Yield the messages of a chat, in the words of OpenAI ("role", "content") or of LLaVA ("from", "value")."""
    roles = {"human": "user", "gpt": "assistant"}
    for message in fields.get("messages") or fields.get("conversations") or ():
        if isinstance(message, Mapping):
            role = str(message.get("role") or message.get("from"))
            yield {"role": roles.get(role, role), "content": message.get("content") or message.get("value")}


def _take(message: Mapping[str, Json], found: dict[str, Json]) -> None:
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    role = "caption" if message.get("role") == "assistant" else "question"
    for part in parts:
        if not isinstance(part, Mapping):
            continue
        if found["video"] is None:
            found["video"] = _file(part.get("video") or part.get("video_url"))
        image = _file(part.get("image") or part.get("image_url"))
        if isinstance(image, str):
            found.setdefault("images", []).append(image)
        text = part.get("reference") or part.get("text")
        if isinstance(text, str) and message.get("role") != "system":
            found[role] = text


def _file(value: Json) -> Json:
    """Return the name of a file given as such, in a list of one, or as `{video_file: …}`, `{path: …}` or `{url: …}`."""
    if isinstance(value, Mapping):
        names = ("video_file", "image_file", "path", "url")
        value = next((value[name] for name in names if value.get(name)), None)
    return value[0] if isinstance(value, list) and len(value) == 1 else value


ROWS = Table(columns={}, labels={"category": ("category",)}, required=("caption",), prepare=_of_chat)
"""The chats as rows of captioning."""
