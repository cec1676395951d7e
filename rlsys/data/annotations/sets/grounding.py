"""Temporal grounding: Charades-STA, ActivityNet and TimeLens-Bench as objects of videos, and as rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from rlsys.data.annotations.rows import (
    AnnotationRow,
    Counted,
    Problem,
    Repeats,
    Seconds,
    broken_row,
    read_span,
    stated_span,
)
from rlsys.data.annotations.sets.records import Record, json_entries
from rlsys.data.annotations.sets.tables import Table
from rlsys.data.annotations.times import one_period
from rlsys.types import Json

ROWS = Table(
    columns={
        "video": ("video", "video_path", "vid", "video_id"),
        "question": ("caption", "query", "sentence", "question"),
        "clue": ("timestamp", "span", "timestamps", "spans", "solution"),
        "duration": ("duration",),
        "qid": ("qid", "id"),
        "caption": (),  # the query, not a text to write
        "task": (),
    },
    labels={"subset": ("source", "subset", "dataset")},
    required=("video", "question", "clue"),
)
"""Rows of one query each, as these sets are on the Hugging Face hub."""


_SPANS = frozenset(("timestamps", "spans", "sentences", "queries"))


class _Video(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    duration: Seconds
    timestamps: list[Any] = Field(validation_alias=AliasChoices("timestamps", "spans"))
    sentences: list[Any] = Field(validation_alias=AliasChoices("sentences", "queries"))


def read_videos(tree: Json) -> Iterator[AnnotationRow]:
    """Yield a row per sentence of `{video: {duration, timestamps: [[s, e]…], sentences: […]}}`.

    TimeLens-Bench calls these `spans` and `queries`. A list is read as `ROWS`.
    """
    if isinstance(tree, list):
        records = (Record(label=label, file=Path(), fields=entry) for label, entry in json_entries(tree))
        yield from ROWS.rows(records, {})
        return
    if not isinstance(tree, dict):
        raise TypeError(f"an object of videos is expected, this is a {type(tree).__name__}")
    objects = [entry for entry in tree.values() if isinstance(entry, dict)]
    if objects and not any(entry.keys() & _SPANS for entry in objects):
        raise TypeError("no entry of it has timestamps and sentences, or spans and queries")
    for video, entry in tree.items():
        names = ("spans", "queries") if isinstance(entry, dict) and "spans" in entry else ("timestamps", "sentences")
        try:
            checked = _Video.model_validate(entry)
        except ValidationError as error:
            yield AnnotationRow(label=video, video=video, problems=broken_row(video, entry, error).problems)
            continue
        if len(checked.timestamps) != len(checked.sentences):
            text = f"{len(checked.timestamps)} time spans for {len(checked.sentences)} sentences; pair them"
            yield AnnotationRow(label=video, video=video, problems=(Problem(field=names[0], text=text),))
            continue
        yield from _rows(video, checked, *names)


def _rows(video: str, entry: _Video, spans: str, queries: str) -> Iterator[AnnotationRow]:
    repeats = Repeats()
    for index, (written, sentence) in enumerate(zip(entry.timestamps, entry.sentences, strict=True)):
        value = one_period(written)
        truth, problem = read_span(value, entry.duration, spans)
        problems = [problem] if problem else []
        if not isinstance(sentence, str) or not sentence.strip():
            problems.append(Problem(field=queries, text=f"{sentence!r} is not a sentence"))
            sentence = ""
        if repeats.add((repr(value), " ".join(sentence.lower().split()))):
            text = f"{sentence!r} with {value} occurs twice"
            problems.append(Problem(field=queries, text=text, is_counted=True))
        stated = stated_span(value)
        yield AnnotationRow(
            label=f"{video}/{index}",
            video=video,
            task="temporal_grounding",
            question=sentence.strip(),
            truth=truth,
            duration_s=entry.duration,
            counted=Counted(task="temporal_grounding", truth=stated) if stated and stated != truth else None,
            problems=tuple(problems),
        )
