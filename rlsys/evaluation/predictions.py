"""Files of texts that any system answered, matched with the rows of an evaluation.

Read are our own JSONL, lmms-eval's `samples_*.jsonl`, VLMEvalKit's tables of predictions (xlsx, tsv, csv, json,
jsonl), the batch results of OpenAI's and vLLM's API, a JSON object of texts by id, and a JSON list of texts in the
order of the rows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from rlsys.data.annotations.media import VIDEO_SUFFIXES
from rlsys.data.annotations.rows import is_number
from rlsys.evaluation.answered import Answered
from rlsys.evaluation.prediction_files import LABELS, NAMES, PLACES, TEXT_KEYS, VIDEOS, PredictionsError, records_of
from rlsys.json_lines import why_no_lines
from rlsys.types import Json

_NESTED = ("body", "choices", "message", "content", "text")
"""Keys by which a reply of OpenAI's API holds its texts."""
_QUESTIONS = ("question", "query", "sentence", "caption")
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class DirtyPrediction:
    """A prediction that is not used. place: its line, row or key in the file.  problem: why, in words."""

    place: str
    problem: str


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The rows of an evaluation with the texts of a file.

    answered: every row, in the order given; one without a prediction has no text and counts as wrong.
    missing: ids of rows without a prediction.  unmatched: ids in the file that are no row's.
    duplicates: ids of rows for which the file has several texts for one sample; the first counts.
    dirty: lines that hold no prediction.
    """

    answered: tuple[Answered, ...]
    missing: tuple[str, ...]
    unmatched: tuple[str, ...]
    duplicates: tuple[str, ...]
    dirty: tuple[DirtyPrediction, ...]

    def lines(self) -> Iterator[str]:
        """Yield a report, a line for each kind of problem."""
        yield f"{len(self.answered)} rows, {len(self.answered) - len(self.missing)} with a prediction"
        kinds = {
            "rows without a prediction, which count as wrong": self.missing,
            "ids that no row has": self.unmatched,
            "rows with several texts, of which the first counts": self.duplicates,
            "lines without a prediction": [f"{one.place}: {one.problem}" for one in self.dirty],
        }
        for what, found in kinds.items():
            if found:
                more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
                yield f"{len(found)} {what}: {'; '.join(found[:_SHOWN])}{more}"


@dataclass
class _Matched:
    """The texts found so far. texts: row number -> sample -> text."""

    texts: dict[int, dict[int, str]] = field(default_factory=dict)
    unmatched: dict[str, None] = field(default_factory=dict)
    duplicates: dict[str, None] = field(default_factory=dict)
    dirty: list[DirtyPrediction] = field(default_factory=list)


def read_predictions(path: Path, rows: Sequence[Answered]) -> Predictions:
    """Return `rows`, without texts of their own, with the texts of the file `path`.

    rows: all rows of the data set in the order of its file; texts that they have are dropped.
    A prediction names its row by `prompt_id`, `row_id` or `custom_id` (the id of the row, with or without the name of
    its file before ":"); by `qid`, `question_id` or `id` (a label of the row, NExT-GQA's also as `<video>_<qid>`); by
    `doc_id` or `index` (the row's label "index" if it has one, else its number in the data set from 0); or by its
    video, with or without folder and suffix, and its question, which a row alone of its video need not have. Its text
    stands under `text`, `response`, `prediction`, or lmms-eval's `filtered_resps` or `resps`, where a list holds the
    samples of the row; `sample` numbers one of several texts. A prediction that is not so is reported, never an error.
    Raises PredictionsError for a file that cannot be read or whose kind is not known, and for one without a
    prediction of any of these rows, which would all be wrong.
    """
    path = Path(path)
    places = _places(rows)
    matched = _Matched()
    for place, record in records_of(path, len(rows)):
        if isinstance(record, str):
            matched.dirty.append(DirtyPrediction(place=place, problem=record))
        else:
            _add(matched, place, record, rows, places)
    if rows and not matched.texts:
        raise PredictionsError(_nothing_fits(path, matched, rows))
    answered = tuple(_answered(row, matched.texts.get(number, {}), path) for number, row in enumerate(rows))
    return Predictions(
        answered=answered,
        missing=tuple(row.row_id for row in answered if not row.texts),
        unmatched=tuple(matched.unmatched),
        duplicates=tuple(matched.duplicates),
        dirty=tuple(matched.dirty),
    )


def _nothing_fits(path: Path, matched: _Matched, rows: Sequence[Answered]) -> str:
    found = [f"ids like {', '.join(list(matched.unmatched)[:_SHOWN])}"] if matched.unmatched else []
    found += [f"{one.place}: {one.problem}" for one in matched.dirty[:1]]
    if not found or (not matched.unmatched and path.suffix.lower() == ".jsonl"):
        found.append(f"nothing else, and the file {why_no_lines(path)}")
    return (
        f"{path}: no prediction in it is of these {len(rows)} rows, whose `prompt_id` is like {rows[0].row_id!r}; "
        f"it has {'; '.join(found)}. Give the file that belongs to the data set."
    )


def _answered(row: Answered, texts: Mapping[int, str], path: Path) -> Answered:
    # a video that is not here does not matter, because no model is asked
    reason = "" if texts else (row.truth is None and row.reason) or f"no prediction in {path.name}"
    return replace(row, texts=tuple(texts[sample] for sample in sorted(texts)), reason=reason, verdicts=None)


def _places(rows: Sequence[Answered]) -> dict[str, Mapping[str, int]]:
    """Return kind of id -> id -> number of the row. An id that two rows share is none's."""
    kinds = ("row", "tail", "video", "asked", *LABELS)
    listed: dict[str, list[tuple[str, int]]] = {kind: [] for kind in kinds}
    for number, row in enumerate(rows):
        video = _video(row.labels.get("video"))
        if video:
            listed["video"].append((video, number))
            listed["asked"].append((f"{video} {_plain(row.question)}", number))
        listed["row"].append((row.row_id, number))
        listed["tail"].append((row.row_id.rpartition(":")[2], number))
        for name in LABELS:
            value = row.labels.get(name)
            if value not in (None, ""):
                listed[name].append((_id(value), number))
                if name == "qid" and row.labels.get("video"):
                    listed[name].append((f"{row.labels['video']}_{_id(value)}", number))
    return {kind: _unique(pairs) for kind, pairs in listed.items()}


def _video(value: Json) -> str:
    """Return the name of a video without folder and suffix, "" for anything else."""
    if not isinstance(value, str | int) or isinstance(value, bool):
        return ""
    path = PurePosixPath(str(value).strip().replace("\\", "/"))
    return path.stem if path.suffix.lower() in VIDEO_SUFFIXES else path.name


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _unique(pairs: Sequence[tuple[str, int]]) -> dict[str, int]:
    numbers: dict[str, int] = {}
    shared: set[str] = set()
    for name, number in pairs:
        if numbers.setdefault(name, number) != number:
            shared.add(name)
    return {name: number for name, number in numbers.items() if name not in shared}


def _id(value: Json) -> str:
    """Return an id as text; spreadsheets make 7.0 of 7."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _add(
    matched: _Matched,
    place: str,
    record: Mapping[str, Json],
    rows: Sequence[Answered],
    places: Mapping[str, Mapping[str, int]],
) -> None:
    named = _row_number(record, places, rows)
    if named is None:
        matched.dirty.append(
            DirtyPrediction(place=place, problem=f"no id; give one of {', '.join((*NAMES, *PLACES, *LABELS[:-1]))}")
        )
        return
    name, number = named
    texts = _texts(record)
    if number is None:
        matched.unmatched[name] = None
    elif not texts:
        matched.dirty.append(
            DirtyPrediction(place=place, problem=f"{name}: no text; give one of {', '.join(TEXT_KEYS[:3])}")
        )
    else:
        known = matched.texts.setdefault(number, {})
        first = record.get("sample")
        start = first if isinstance(first, int) and not isinstance(first, bool) and first >= 0 else 0
        for sample, text in enumerate(texts, start=start):
            if sample in known:
                matched.duplicates[rows[number].row_id] = None
            known.setdefault(sample, text)


def _row_number(
    record: Mapping[str, Json], places: Mapping[str, Mapping[str, int]], rows: Sequence[Answered]
) -> tuple[str, int | None] | None:
    """Return (id, number of its row or None), by the first kind of id that is a row's; None without any id.

    A number in the data set comes last, and only names a row of the same video.
    """
    names = {key: _id(record[key]) for key in (*NAMES, *LABELS[:-1], *PLACES) if _is_id(record.get(key))}
    for key, name in names.items():
        kinds = ("row", "tail") if key in NAMES else (key, "qid") if key != "doc_id" else ()
        found = next((places[kind][name] for kind in kinds if name in places[kind]), None)
        if found is not None:
            return name, found
    by_video = _by_video(record, places)
    if by_video is not None and by_video[1] is not None:
        return by_video
    for name in (names[key] for key in PLACES if key in names and not places["index"]):
        found = int(name) if name.isascii() and name.isdecimal() and len(name) < 10 else len(rows)
        named = _videos(record)
        if found < len(rows) and (not named or _video(rows[found].labels.get("video")) in ("", *named)):
            return name, found
    return by_video or next(((name, None) for name in names.values()), None)


def _is_id(value: Json) -> bool:
    return value not in (None, "") and not isinstance(value, list | dict | bool)


def _videos(record: Mapping[str, Json]) -> list[str]:
    return [video for key in VIDEOS if (video := _video(record.get(key)))]


def _by_video(record: Mapping[str, Json], places: Mapping[str, Mapping[str, int]]) -> tuple[str, int | None] | None:
    """Return (video and question, number of the row or None) of a record that names its video; None of another."""
    asked = [_plain(record[key]) for key in _QUESTIONS if isinstance(record.get(key), str)]
    named = _videos(record) or [video for video in [_video(record.get("id"))] if video in places["video"]]
    if not named:
        return None
    found = next((places["asked"][key] for one in asked if (key := f"{named[0]} {one}") in places["asked"]), None)
    if found is None and not asked:
        found = places["video"].get(named[0])
    return " ".join((named[0], *asked)), found


def _texts(record: Mapping[str, Json]) -> list[str]:
    """Return the texts under the first key that holds any; lists of lists are flattened."""
    return next((texts for key in TEXT_KEYS if (texts := _flat(record.get(key)))), [])


def _flat(value: Json) -> list[str]:
    if isinstance(value, list | tuple):
        if value and all(is_number(one) for one in value):  # a period or a box, which is one answer
            return [json.dumps(value)]
        return [text for member in value for text in _flat(member)]
    if isinstance(value, dict):
        return next((texts for key in _NESTED if (texts := _flat(value.get(key)))), [])
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return []
    return [value if isinstance(value, str) else str(value)]
