"""Files of texts that any system answered, matched with the rows of an evaluation.

Read are our own JSONL, lmms-eval's `samples_*.jsonl`, VLMEvalKit's tables of predictions (xlsx, tsv, csv, json,
jsonl), and a JSON object of texts by id.
"""

from __future__ import annotations

import csv
import io
import json
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import openpyxl
from openpyxl.utils.exceptions import InvalidFileException

from rlsys.errors import UserError
from rlsys.evaluation.answered import Answered
from rlsys.types import Json

_TEXT_KEYS = ("text", "response", "prediction", "filtered_resps", "resps", "pred", "output", "answer_text")
_NAMES = ("prompt_id", "row_id")
_PLACES = ("doc_id", "index")
_LABELS = ("qid", "question_id", "id", "index")
_SHOWN = 5
csv.field_size_limit(1 << 27)


class PredictionsError(UserError):
    """A file of predictions that cannot be used at all; the message names it and the remedy."""


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
    A prediction names its row by `prompt_id` or `row_id` (the id of the row, with or without the name of its file
    before ":"); by `qid`, `question_id` or `id` (a label of the row, NExT-GQA's also as `<video>_<qid>`); by `doc_id`
    or `index` (the row's label "index" if it has one, else its number in the data set from 0). Its text stands under
    `text`, `response`, `prediction`, or lmms-eval's `filtered_resps` or `resps`, where a list holds the samples of the
    row; `sample` numbers one of several texts. A prediction that is not so is reported, never an error.
    Raises PredictionsError for a file that cannot be read or whose kind is not known.
    """
    path = Path(path)
    places = _places(rows)
    matched = _Matched()
    for place, record in _records(path):
        if isinstance(record, str):
            matched.dirty.append(DirtyPrediction(place=place, problem=record))
        else:
            _add(matched, place, record, rows, places)
    answered = tuple(_answered(row, matched.texts.get(number, {}), path) for number, row in enumerate(rows))
    return Predictions(
        answered=answered,
        missing=tuple(row.row_id for row in answered if not row.texts),
        unmatched=tuple(matched.unmatched),
        duplicates=tuple(matched.duplicates),
        dirty=tuple(matched.dirty),
    )


def _answered(row: Answered, texts: Mapping[int, str], path: Path) -> Answered:
    reason = "" if texts else row.reason or f"no prediction in {path.name}"
    return replace(row, texts=tuple(texts[sample] for sample in sorted(texts)), reason=reason, verdicts=None)


def _places(rows: Sequence[Answered]) -> dict[str, Mapping[str, int]]:
    """Return kind of id -> id -> number of the row. An id that two rows share is none's."""
    listed: dict[str, list[tuple[str, int]]] = {"row": [], "tail": [], **{name: [] for name in _LABELS}}
    for number, row in enumerate(rows):
        listed["row"].append((row.row_id, number))
        listed["tail"].append((row.row_id.rpartition(":")[2], number))
        for name in _LABELS:
            value = row.labels.get(name)
            if value not in (None, ""):
                listed[name].append((_id(value), number))
                if name == "qid" and row.labels.get("video"):
                    listed[name].append((f"{row.labels['video']}_{_id(value)}", number))
    return {kind: _unique(pairs) for kind, pairs in listed.items()}


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
    named = _row_number(record, places, len(rows))
    if named is None:
        matched.dirty.append(
            DirtyPrediction(place=place, problem=f"no id; give one of {', '.join((*_NAMES, *_PLACES, *_LABELS[:-1]))}")
        )
        return
    name, number = named
    texts = _texts(record)
    if number is None:
        matched.unmatched[name] = None
    elif not texts:
        matched.dirty.append(
            DirtyPrediction(place=place, problem=f"{name}: no text; give one of {', '.join(_TEXT_KEYS[:3])}")
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
    record: Mapping[str, Json], places: Mapping[str, Mapping[str, int]], size: int
) -> tuple[str, int | None] | None:
    """Return (id, number of its row or None), by the first kind of id that is a row's; None without any id."""
    first = ""
    for key in (*_NAMES, *_LABELS[:-1], *_PLACES):
        if record.get(key) in (None, "") or isinstance(record[key], list | dict | bool):
            continue
        name = _id(record[key])
        first = first or name
        kinds = ("row", "tail") if key in _NAMES else ("index",) if key in _PLACES else (key, "qid")
        found = next((places[kind][name] for kind in kinds if name in places[kind]), None)
        if found is None and key in _PLACES and not places["index"] and name.isascii() and name.isdecimal():
            found = int(name) if len(name) < 10 and int(name) < size else None
        if found is not None:
            return name, found
    return (first, None) if first else None


def _texts(record: Mapping[str, Json]) -> list[str]:
    """Return the texts under the first key that holds any; lists of lists are flattened."""
    return next((texts for key in _TEXT_KEYS if (texts := _flat(record.get(key)))), [])


def _flat(value: Json) -> list[str]:
    if isinstance(value, list | tuple):
        return [text for member in value for text in _flat(member)]
    if value is None or isinstance(value, dict) or (isinstance(value, float) and math.isnan(value)):
        return []
    return [value if isinstance(value, str) else str(value)]


def _records(path: Path) -> Iterator[tuple[str, Mapping[str, Json] | str]]:
    """Yield (place in the file, record, or what is wrong with it in words)."""
    readers = {".jsonl": _lines, ".json": _tree, ".tsv": _table, ".csv": _table, ".xlsx": _sheet}
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise PredictionsError(
            f"{path}: predictions are read from {', '.join(readers)}; convert the file to one of them."
        )
    try:
        yield from readers[suffix](path)
    except OSError as error:
        raise PredictionsError(
            f"{path}: cannot be read ({error.strerror or error}); give a file of predictions."
        ) from error


def _lines(path: Path) -> Iterator[tuple[str, Mapping[str, Json] | str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"line {number}", _record(line)


def _record(line: bytes) -> Mapping[str, Json] | str:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    return value if isinstance(value, dict) else f"not an object but {type(value).__name__}"


def _tree(path: Path) -> Iterator[tuple[str, Mapping[str, Json] | str]]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise PredictionsError(
            f"{path}: not JSON ({error}); give a list of objects or an object of texts by id."
        ) from error
    if isinstance(tree, dict):
        columns = {key: list(value.values()) for key, value in tree.items() if isinstance(value, dict)}
        if columns and len(columns) == len(tree) and any(key in columns for key in _TEXT_KEYS):
            yield from _rows_of_columns(columns)  # pandas writes a table so
            return
        for name, value in tree.items():
            ids = dict.fromkeys((*_NAMES, *_LABELS), name)
            yield name, {**ids, **(value if isinstance(value, dict) else {"text": value})}
        return
    if not isinstance(tree, list):
        raise PredictionsError(
            f"{path}: holds a {type(tree).__name__}; give a list of objects or an object of texts by id."
        )
    for number, value in enumerate(tree):
        yield f"entry {number}", value if isinstance(value, dict) else f"not an object but {type(value).__name__}"


def _rows_of_columns(columns: Mapping[str, list[Json]]) -> Iterator[tuple[str, Mapping[str, Json] | str]]:
    for number in range(max(map(len, columns.values()))):
        yield f"entry {number}", {key: values[number] for key, values in columns.items() if number < len(values)}


def _table(path: Path) -> Iterator[tuple[str, Mapping[str, Json] | str]]:
    text = path.read_bytes().decode("utf-8-sig", errors="replace").replace("\0", "")
    reader = csv.DictReader(io.StringIO(text), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    try:
        for row in reader:
            yield (
                f"line {reader.line_num}",
                {key: value for key, value in row.items() if key is not None and value is not None},
            )
    except csv.Error as error:
        yield f"line {reader.line_num}", f"not a row of a table ({error}); the rest of the file is not read"


def _sheet(path: Path) -> Iterator[tuple[str, Mapping[str, Json] | str]]:
    """Yield the rows of the first sheet, whose first row with content names the columns."""
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except (zipfile.BadZipFile, InvalidFileException, KeyError, ValueError) as error:
        raise PredictionsError(f"{path}: not a spreadsheet ({error}); give an xlsx file, or save it as tsv.") from error
    header: dict[int, str] = {}
    for number, row in enumerate(book.worksheets[0].iter_rows(values_only=True), start=1):
        cells = {column: value for column, value in enumerate(row) if value is not None}
        if not header:
            header = {column: str(name) for column, name in cells.items()}
        elif cells:
            yield f"row {number}", {header[at]: value for at, value in cells.items() if at in header}
