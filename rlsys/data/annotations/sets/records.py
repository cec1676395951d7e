"""Files of tables as records: CSV, TSV, Parquet, Arrow, JSON and JSON lines, and folders of them."""

from __future__ import annotations

import ast
import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlsys.data.annotations.rows import BadLine, short
from rlsys.data.annotations.sets.published import RepeatedKeys, parse_json, text_of
from rlsys.files import require_regular
from rlsys.types import Json

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".csv", ".tsv", ".parquet", ".arrow", ".json", ".jsonl")
"""Suffixes of files that hold tables."""
_DEPTH = 2  # folders below the named one: the hub's `data`, and splits of configurations
_ABOUT = frozenset(("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"))
"""Files about the data set, which `datasets` writes beside its tables."""
_SHARD = re.compile(r"([A-Za-z]\w*)-\d{5}-of-\d{5}")
"""Name of a table of one split, as the hub and `datasets` write it."""
_FIELD_LIMIT = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Record:
    """One entry of a table. label: its place in the file.  file: where it is.  fields: by column."""

    label: str
    file: Path
    fields: Mapping[str, Json] | BadLine


def read_records(path: Path, repeated: RepeatedKeys) -> list[Record]:
    """Return the records of a table, or of all tables of a folder in the order of their names.

    Lines of JSON lines are counted from 1, lines of CSV and TSV as an editor counts them, others from 0; objects by
    name keep it. In a folder, the file's path without its suffix comes first: "action_count/7". The tables of a folder
    without any are those of the folders in it. A record of a file that is named as one of a split of the hub's data
    sets ("test-00000-of-00001") has the split as its field `split`, unless it has one. Keys that occur twice in one
    JSON object are added to `repeated`. A value that is missing, NaN or an empty string is None; columns of bytes are
    skipped.
    Raises OSError, TypeError for another shape, and ValueError for a file that is not of the kind that its suffix says.
    """
    if not path.is_dir():
        return _of_file(path, path.stem, repeated)
    files = _tables_in(path)
    if not files:
        raise TypeError(f"a folder without a file of {', '.join(SUFFIXES)}")
    return [
        Record(label=f"{file.relative_to(path).with_suffix('').as_posix()}/{one.label}", file=file, fields=one.fields)
        for file in files
        for one in _of_file(file, file.parent.name if file.parent != path else "", repeated)
    ]


def _tables_in(folder: Path) -> list[Path]:
    """Return the tables of a folder, or of the folders in it that are nearest to it."""
    folders = [folder]
    for _ in range(_DEPTH + 1):
        inside = [path for one in folders for path in sorted(one.iterdir()) if not path.name.startswith(".")]
        files = [path for path in inside if path.suffix.lower() in SUFFIXES and path.is_file()]
        if files := [path for path in files if path.name not in _ABOUT]:
            return files
        folders = [path for path in inside if path.is_dir()]
    return []


def _of_file(path: Path, folder: str, repeated: RepeatedKeys) -> list[Record]:
    """Return the records of a file. folder: the one that it is in, if that may name its split."""
    read = {".csv": _of_text, ".tsv": _of_text, ".parquet": _of_parquet, ".arrow": _of_arrow}
    suffix = path.suffix.lower()
    entries = read[suffix](path) if suffix in read else _of_json(path, repeated, suffix)
    shard = _SHARD.fullmatch(path.stem)
    # `save_to_disk` writes "test/data-00000-of-00001.arrow"
    split = None if shard is None else shard.group(1) if shard.group(1) != "data" else folder or None
    return [Record(label=label, file=path, fields=_fields(entry, split)) for label, entry in entries]


def _fields(entry: Mapping[str, Json] | BadLine, split: str | None) -> Mapping[str, Json] | BadLine:
    if isinstance(entry, BadLine):
        return entry
    fields = {str(name): _clean(value) for name, value in entry.items()}
    return {**fields, "split": split} if split and fields.get("split") is None else fields


def _of_text(path: Path) -> list[tuple[str, Json]]:
    return [(str(line), _named(row)) for line, row in text_rows(path)]


def text_rows(path: Path) -> list[tuple[int, dict[str | None, Json]]]:
    """Return the number of the last line of each row of a CSV or TSV file, and the row by column.

    Fields beyond the last column stand as a list under None, and blank ones are dropped. Quotation marks in a TSV file
    are text where they are no quotes. Raises ValueError for a CSV file with one that is never closed.
    """
    csv.field_size_limit(_FIELD_LIMIT)
    text, delimiter = text_of(path), "\t" if path.suffix.lower() == ".tsv" else ","
    header = text.partition("\n")[0]
    if delimiter not in header:  # spreadsheets of some languages separate by semicolons
        delimiter = next((other for other in (",", ";", "\t") if other in header), delimiter)
    try:
        return _text_rows(text, delimiter, csv.QUOTE_MINIMAL, strict=True)
    except csv.Error as error:
        if delimiter != "\t" and "unexpected end" in str(error):
            raise ValueError("a quotation mark that opens a field is never closed") from error
    try:
        return _text_rows(text, delimiter, csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL, strict=False)
    except csv.Error as error:
        raise ValueError(str(error)) from error


def _text_rows(
    text: str, delimiter: str, quoting: Literal[0, 3], *, strict: bool
) -> list[tuple[int, dict[str | None, Json]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=strict)
    found = []
    for row in reader:
        if not any(row.get(None) or ()):  # type: ignore[call-overload]
            row.pop(None, None)  # type: ignore[call-overload]
        found.append((reader.line_num, {name.strip() if name else name: value for name, value in row.items()}))
    return found


def _named(row: Mapping[str | None, Json]) -> Mapping[str, Json] | BadLine:
    if None in row:
        num_columns = len(row) - 1
        text = f"{num_columns + len(row[None])} fields for {num_columns} columns; quote a text that holds a delimiter"
        return BadLine(problem=text)
    return {name: value for name, value in row.items() if name}


def _of_parquet(path: Path) -> list[tuple[str, Json]]:
    import pyarrow
    from pyarrow import parquet

    require_regular(path)
    try:
        with parquet.ParquetFile(path) as file:
            leaves = [file.schema.column(index) for index in range(len(file.schema))]
            kept = [leaf.path for leaf in leaves if not _is_bytes(leaf)]
            rows = [row for batch in file.iter_batches(columns=kept) for row in batch.to_pylist()]
    except pyarrow.ArrowException as error:
        raise ValueError(f"not a Parquet file: {error}") from error
    return [(str(index), row) for index, row in enumerate(rows)]


def _is_bytes(leaf: Any) -> bool:  # noqa: ANN401 - a class of pyarrow without types
    """Return whether a column of a Parquet file holds bytes: embedded images and videos, which are not annotations."""
    return leaf.physical_type in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY") and leaf.logical_type.type == "NONE"


def _of_arrow(path: Path) -> list[tuple[str, Json]]:
    """Read a file of `datasets.save_to_disk`, a stream, or an Arrow file, without the columns that hold bytes."""
    import pyarrow

    require_regular(path)
    try:
        with pyarrow.OSFile(str(path)) as file:
            table = _opened(file).read_all()
    except pyarrow.ArrowException as error:
        raise ValueError(f"not an Arrow file: {error}") from error
    columns = {name: _without_bytes(table.column(name)) for name in table.column_names}
    rows = pyarrow.table({name: column for name, column in columns.items() if column is not None}).to_pylist()
    return [(str(index), row) for index, row in enumerate(rows)]


def _opened(file: pyarrow.NativeFile) -> Any:  # noqa: ANN401 - one of two readers with the same method
    import pyarrow

    try:
        return pyarrow.ipc.open_stream(file)
    except pyarrow.ArrowInvalid:
        file.seek(0)
        return pyarrow.ipc.open_file(file)


def _without_bytes(column: pyarrow.ChunkedArray) -> pyarrow.ChunkedArray | None:
    """Return a column, of embedded images and videos their paths, None if nothing but bytes is in it."""
    from pyarrow import compute, types

    kind = column.type
    if types.is_struct(kind) and {"bytes", "path"} <= {kind.field(index).name for index in range(kind.num_fields)}:
        return compute.struct_field(column, "path")
    return None if _holds_bytes(kind) else column


def _holds_bytes(kind: Any) -> bool:  # noqa: ANN401 - any Arrow type
    from pyarrow import types

    if types.is_struct(kind):
        return any(_holds_bytes(kind.field(index).type) for index in range(kind.num_fields))
    if types.is_list(kind) or types.is_large_list(kind):
        return _holds_bytes(kind.value_type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))


def _of_json(path: Path, repeated: RepeatedKeys, suffix: str) -> list[tuple[str, Json]]:
    text = text_of(path)
    if suffix == ".json":
        try:
            return json_entries(parse_json(text, repeated))
        except json.JSONDecodeError as error:
            if not error.msg.startswith("Extra data"):
                raise
    lines = labelled_lines(text, repeated)  # which some data sets call .json
    if len(lines) == 1 and isinstance(lines[0][1], list):
        return json_entries(lines[0][1])
    return [(label, entry if isinstance(entry, dict | BadLine) else _no_object(entry)) for label, entry in lines]


def labelled_lines(text: str, repeated: RepeatedKeys) -> list[tuple[str, Json]]:
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


def as_list(value: Json, kinds: tuple[type, ...] = (list, tuple)) -> Json:
    """Return the list, or other value of these kinds, that a text writes as JSON or as Python does, else the value."""
    if not (isinstance(value, str) and value.lstrip().startswith(("[", "((", "{"))):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(found, kinds):
            return _clean(found)
    return value


def file_name(value: Json) -> Json:
    """Return the path of an object that describes a file, as columns of images and videos do, else the value."""
    if isinstance(value, Mapping):
        return next((value[name] for name in ("path", "video_file", "file_name", "url") if value.get(name)), None)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [file_name(one) for one in value]
    return value


def names_of(value: Json) -> tuple[str, ...]:
    """Return the names in a value that is one name or a list of them; () for None."""
    if value is None:
        return ()
    return tuple(map(str, value)) if isinstance(value, list) else (str(value),)


def columns_of(records: Iterable[Record]) -> set[str]:
    """Return the names of all columns."""
    return {name for record in records if not isinstance(record.fields, BadLine) for name in record.fields}
