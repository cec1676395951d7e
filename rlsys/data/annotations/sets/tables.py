"""Tables: CSV, TSV, Parquet, JSON and JSON lines as records, and records as rows by a map of their columns."""

from __future__ import annotations

import ast
import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path

from pydantic import ValidationError

from rlsys.data.annotations.options import read_options
from rlsys.data.annotations.rows import (
    AnnotationRow,
    BadLine,
    Problem,
    Repeats,
    broken_row,
    is_number,
    short,
)
from rlsys.data.annotations.sets.published import RepeatedKeys, parse_json, text_of
from rlsys.data.annotations.vtts import VttsEntry
from rlsys.files import require_regular
from rlsys.types import Json

SUFFIXES = (".csv", ".tsv", ".parquet", ".json", ".jsonl")
"""Suffixes of files that hold tables."""
ROLES = (
    "video",
    "image",
    "images",
    "image_list",
    "question",
    "options",
    "answer",
    "answer_index",
    "clue",
    "caption",
    "events",
    "task",
    "duration",
    "width",
    "height",
    "video_start",
    "video_end",
    "fps",
    "split",
    "qid",
)
"""What a column can hold: the fields of our own JSON lines, the index of the right option from 0, further images, and
the data set's name of the question."""
Columns = Mapping[str, str | Sequence[str]]
"""Role -> the name of its column, or of several: options in columns of their own."""

_FIELD_LIMIT = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Record:
    """One entry of a table. label: its place in the file.  file: where it is.  fields: by column."""

    label: str
    file: Path
    fields: Mapping[str, Json] | BadLine


@dataclass(frozen=True, kw_only=True)
class Table:
    """How the records of a data set become rows.

    columns: role -> names that the data set gives the column, of which the first that a record has is taken.
    labels: label -> names of its column.  required: roles without whose column a file is not of this data set.
    prepare: turns the records of the file into those with these columns, where a map of columns is not enough.
    """

    columns: Mapping[str, Sequence[str]]
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    required: Sequence[str] = ("video", "question")
    prepare: Callable[[Record], Iterable[Record]] | None = None

    def rows(self, records: Iterable[Record], columns: Columns) -> Iterator[AnnotationRow]:
        """Yield the row of each record. columns: the user's names, in place of those of the data set.

        Raises TypeError when no record has a required column or one that `columns` names.
        """
        found = [one for record in records for one in self._prepared(record)]
        self._require_columns(found, columns)
        repeats = Repeats()
        for record in found:
            row = self._row(record, columns)
            identity = (row.video, row.question, row.options, repr(row.truth), row.window_s)
            if row.task and repeats.add(identity):
                problem = Problem(field="question", text=f"{short(row.question)} occurs twice", is_counted=True)
                row = replace(row, problems=(*row.problems, problem))
            yield row

    def _prepared(self, record: Record) -> Iterable[Record]:
        return [record] if self.prepare is None or isinstance(record.fields, BadLine) else self.prepare(record)

    def _require_columns(self, records: Sequence[Record], columns: Columns) -> None:
        whole = [record.fields for record in records if not isinstance(record.fields, BadLine)]
        there = {name for fields in whole for name in fields}
        for role, named in columns.items():
            missing = [name for name in ([named] if isinstance(named, str) else named) if name not in there]
            if missing and whole:
                raise TypeError(
                    f"data.columns.{role} names {', '.join(missing)}, and the columns are {', '.join(sorted(there))}"
                )
        for role in self.required:
            names = self.columns.get(role, (role,))
            if whole and role not in columns and not there & set(names):
                raise TypeError(
                    f"no column {' or '.join(names)} for the {role}; the columns are {', '.join(sorted(there)[:40])}; "
                    f"data.columns.{role}=NAME names it"
                )

    def _row(self, record: Record, columns: Columns) -> AnnotationRow:
        if isinstance(record.fields, BadLine):
            problem = Problem(field="(row)", text=record.fields.problem)
            return AnnotationRow(label=record.label, video="", problems=(problem,))
        values = {role: self._value(role, record.fields, columns) for role in ROLES}
        index, qid, images = values.pop("answer_index"), values.pop("qid"), values.pop("images")
        values["question"] = values["question"] if values["question"] is None else str(values["question"])
        values = {role: value for role, value in values.items() if value is not None}
        if not values.keys() & {"video", "image", "image_list"} and images is not None:
            values["image"], images = images, None
        if index is not None and values.get("options") is not None:
            values["answer"] = _indexed(index, values["options"])
        try:
            row = VttsEntry.model_validate(values).row(record.label)
        except ValidationError as error:
            row = broken_row(record.label, values, error)
        if values.get("answer") is None:  # missing, which contradicts nothing
            problems = tuple(replace(problem, is_contradiction=False) for problem in row.problems)
            row = replace(row, problems=problems)
        labels = self._labels(record)
        if qid is not None:
            labels["qid"] = _text(qid)
        return replace(row, labels={**row.labels, **labels}, images=(*row.images, *_names(images)))

    def _value(self, role: str, fields: Mapping[str, Json], columns: Columns) -> Json:
        named = columns.get(role)
        if named is not None and not isinstance(named, str):
            several = [fields.get(name) for name in named]
            return [_text(value) for value in several if value is not None] or None
        names = (named,) if named is not None else self.columns.get(role, (role,))
        value = next((fields[name] for name in names if fields.get(name) is not None), None)
        if role in ("options", "clue", "events", "images", "image_list"):
            value = _listed(value)
        if role == "options":
            return _option_texts(value)
        if role == "answer" and isinstance(value, float) and value.is_integer():
            return int(value)
        if role in ("video", "image", "answer") and isinstance(value, bool | int):
            return str(value)
        return _number(value) if role in _NUMBERS else value

    def _labels(self, record: Record) -> dict[str, str | float]:
        assert not isinstance(record.fields, BadLine)
        found: dict[str, str | float] = {}
        for label, names in self.labels.items():
            value = next((record.fields[name] for name in names if record.fields.get(name) is not None), None)
            value = _listed(value)
            if isinstance(value, list):
                value = ", ".join(map(_text, value)) or None
            if value is not None:
                found[label] = value if isinstance(value, float) else _text(value)
        return found


_NUMBERS = frozenset(("duration", "width", "height", "video_start", "video_end", "fps"))


def read_records(path: Path, repeated: RepeatedKeys) -> list[Record]:
    """Return the records of a table, or of all tables of a folder in the order of their names.

    Lines of JSON lines are counted from 1, lines of CSV and TSV as an editor counts them, others from 0; objects by
    name keep it. In a folder, the file's stem comes first: "action_count/7". Keys that occur twice in one JSON object
    are added to `repeated`. A value that is missing, NaN or an empty string is None; columns of bytes are skipped.
    Raises OSError, TypeError for another shape, and ValueError for a file that is not of the kind that its suffix says.
    """
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not files:
            raise TypeError(f"a folder without a file of {', '.join(SUFFIXES)}")
        return [
            replace(record, label=f"{file.stem}/{record.label}")
            for file in files
            for record in _of_file(file, repeated)
        ]
    return _of_file(path, repeated)


def _of_file(path: Path, repeated: RepeatedKeys) -> list[Record]:
    read = {".csv": _of_text, ".tsv": _of_text, ".parquet": _of_parquet}
    suffix = path.suffix.lower()
    entries = read[suffix](path) if suffix in read else _of_json(path, repeated, suffix)
    return [
        Record(
            label=label,
            file=path,
            fields=entry if isinstance(entry, BadLine) else {str(name): _clean(value) for name, value in entry.items()},
        )
        for label, entry in entries
    ]


def _of_text(path: Path) -> list[tuple[str, Json]]:
    csv.field_size_limit(_FIELD_LIMIT)
    text = text_of(path)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    try:
        return [(str(reader.line_num), {name: row[name] for name in row if name}) for row in reader]
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error


def _of_parquet(path: Path) -> list[tuple[str, Json]]:
    import pyarrow
    from pyarrow import parquet

    require_regular(path)
    try:
        with parquet.ParquetFile(path) as file:
            kept = [one.name for one in file.schema_arrow if not _holds_bytes(one.type)]
            batches = file.iter_batches(columns=kept)
            rows = [row for batch in batches for row in batch.to_pylist()]
    except pyarrow.ArrowException as error:
        raise ValueError(f"not a Parquet file: {error}") from error
    return [(str(index), row) for index, row in enumerate(rows)]


def _holds_bytes(kind: Json) -> bool:
    """Return whether values of an Arrow type hold bytes: embedded images and videos, which are not annotations."""
    from pyarrow import types

    if types.is_struct(kind):
        return any(_holds_bytes(kind.field(index).type) for index in range(kind.num_fields))
    if types.is_list(kind) or types.is_large_list(kind):
        return _holds_bytes(kind.value_type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))


def _of_json(path: Path, repeated: RepeatedKeys, suffix: str) -> list[tuple[str, Json]]:
    text = text_of(path)
    if suffix == ".jsonl":
        lines = json_lines(text, repeated)
        return [(label, entry if isinstance(entry, dict | BadLine) else _no_object(entry)) for label, entry in lines]
    return json_entries(parse_json(text, repeated))


def json_lines(text: str, repeated: RepeatedKeys) -> list[tuple[str, Json]]:
    """Return (line number from 1, value or BadLine) of the lines that are not blank.

    Raises ValueError if no line is JSON.
    """
    # not splitlines(): a JSON string may hold U+2028, which that takes for the end of a line
    lines = enumerate(text.split("\n"), start=1)
    entries = [(str(number), _line(line, repeated)) for number, line in lines if line.strip()]
    bad = [entry.problem for _, entry in entries if isinstance(entry, BadLine)]
    if entries and len(bad) == len(entries):
        raise ValueError(f"one object per line is expected, and no line is one; line {entries[0][0]}: {bad[0]}")
    return entries


def _line(line: str, repeated: RepeatedKeys) -> Json:
    try:
        return parse_json(line, repeated)
    except (ValueError, RecursionError) as error:
        return BadLine(problem=f"not JSON: {error}")


def json_entries(tree: Json) -> list[tuple[str, Json]]:
    """Return the (label, object) pairs of a JSON list, of the one list in an object, or of an object of objects.

    Raises TypeError for anything else.
    """
    if isinstance(tree, dict):
        lists = [value for value in tree.values() if isinstance(value, list)]
        if len(lists) == 1 and all(isinstance(entry, dict) for entry in lists[0]):
            tree = lists[0]
        elif tree and all(isinstance(entry, dict) for entry in tree.values()):
            return [(str(name), {"id": name, **entry}) for name, entry in tree.items()]
    if not isinstance(tree, list):
        raise TypeError(f"a list of rows is expected, this is a {type(tree).__name__}")
    if tree and not any(isinstance(entry, dict) for entry in tree):
        raise TypeError(f"a list of objects is expected, and the first entry is {short(tree[0])}")
    return [(str(index), entry if isinstance(entry, dict) else _no_object(entry)) for index, entry in enumerate(tree)]


def _no_object(value: Json) -> BadLine:
    return BadLine(problem=f"{short(value)} is not an object")


def _clean(value: Json) -> Json:
    """Return a value as JSON has it: None for NaN and empty strings, numbers for decimals, texts for the rest."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return value if value.strip() else None
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, list | tuple):
        return [_clean(one) for one in value]
    if isinstance(value, Mapping):
        return {str(name): _clean(one) for name, one in value.items()}
    return str(value)


def _listed(value: Json) -> Json:
    """Return the list that a text writes as JSON or as Python does, and any other value as it is."""
    if not (isinstance(value, str) and value.lstrip().startswith("[")):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(found, list):
            return _clean(found)
    return value


def _option_texts(value: Json) -> Json:
    """Return options as texts: numbers and truth values written out, an object of letters as lettered texts."""
    if isinstance(value, Mapping):
        return [f"({letter}) {_text(text)}" for letter, text in sorted(value.items()) if text is not None]
    if isinstance(value, list):
        return [None if one is None else _text(one) for one in value]
    return value


def _text(value: Json) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: Json) -> Json:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _names(value: Json) -> tuple[str, ...]:
    if value is None:
        return ()
    return tuple(map(str, value)) if isinstance(value, list) else (str(value),)


def _indexed(index: Json, values: Json) -> Json:
    """Return the letter of the option at an index from 0, or the index where there is none, which no option matches."""
    options, problem = read_options(values)
    number = _number(index)
    if problem is None and is_number(number) and number == int(number) and 0 <= number < len(options):
        return f"({options[int(number)].letter})"
    return f"index {index}"
