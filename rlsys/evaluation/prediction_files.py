"""Files of predictions as records: JSONL, JSON, tables and spreadsheets."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import openpyxl
from openpyxl.utils.exceptions import InvalidFileException

from rlsys.errors import UserError
from rlsys.json_lines import json_lines
from rlsys.types import Json

TEXT_KEYS = (
    "text",
    "response",
    "prediction",
    "filtered_resps",
    "resps",
    "pred",
    "output",
    "answer_text",
    "predict",
    "model_output",
    "model_response",
    "generated_text",
    "completion",
    "outputs",
    "predictions",
    "responses",
    "content",
)
"""Keys under which a record has its texts."""
NAMES = ("prompt_id", "row_id", "custom_id")
PLACES = ("doc_id", "index")
LABELS = ("qid", "question_id", "id", "index")
VIDEOS = ("video", "video_id", "video_name", "video_path", "vid")
"""Keys by which a record names its row; see `rlsys.evaluation.predictions.read_predictions`."""
_LISTS = ("results", "predictions", "logs", "samples", "data", "rows", "outputs", "responses", "answers")
"""Keys of the one list of a file that is an object."""
csv.field_size_limit(1 << 27)


Records = Iterator[tuple[str, Mapping[str, Json] | str]]
"""(Place in the file, record, or what is wrong with it in words)."""


class PredictionsError(UserError):
    """A file of predictions that cannot be used at all; the message names it and the remedy."""


def records_of(path: Path, num_rows: int) -> Records:
    """Yield (place in the file, record, or what is wrong with it in words)."""
    readers: Mapping[str, Callable[[Path], Records]] = {
        ".jsonl": _lines,
        ".json": partial(_tree, num_rows=num_rows),
        ".tsv": _table,
        ".csv": _table,
        ".xlsx": _sheet,
    }
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


def _lines(path: Path) -> Records:
    for number, entry in json_lines(path):
        yield f"line {number}", entry


def _tree(path: Path, num_rows: int) -> Records:
    try:
        tree = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise PredictionsError(
            f"{path}: not JSON ({error}); give a list of objects or an object of texts by id."
        ) from error
    if isinstance(tree, dict):
        lists = [tree[key] for key in _LISTS if isinstance(tree.get(key), list | dict)]
        is_wrapped = len(lists) == 1 and not tree.keys() & {*NAMES, *LABELS, *PLACES, *VIDEOS}
        if is_wrapped and (isinstance(lists[0], dict) or all(isinstance(one, dict) for one in lists[0])):
            tree = lists[0]
    if isinstance(tree, dict):
        columns = {key: list(value.values()) for key, value in tree.items() if isinstance(value, dict)}
        if columns and len(columns) == len(tree) and any(key in columns for key in TEXT_KEYS):
            yield from _rows_of_columns(columns)  # pandas writes a table so
            return
        for name, value in tree.items():
            ids = dict.fromkeys((*NAMES, *LABELS, *VIDEOS), name)
            yield name, {**ids, **(value if isinstance(value, dict) else {"text": value})}
        return
    if not isinstance(tree, list):
        raise PredictionsError(
            f"{path}: holds a {type(tree).__name__}; give a list of objects or an object of texts by id."
        )
    if len(tree) == num_rows and all(isinstance(one, str) for one in tree):
        yield from ((f"entry {number}", {"doc_id": number, "text": text}) for number, text in enumerate(tree))
        return
    for number, value in enumerate(tree):
        yield f"entry {number}", value if isinstance(value, dict) else f"not an object but {type(value).__name__}"


def _rows_of_columns(columns: Mapping[str, list[Json]]) -> Records:
    for number in range(max(map(len, columns.values()))):
        yield f"entry {number}", {key: values[number] for key, values in columns.items() if number < len(values)}


def _table(path: Path) -> Records:
    data = path.read_bytes()
    encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"  # spreadsheets export both
    text = data.decode(encoding, errors="replace").replace("\0", "")
    reader = csv.DictReader(io.StringIO(text), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    try:
        for row in reader:
            yield (
                f"line {reader.line_num}",
                {key: value for key, value in row.items() if key is not None and value is not None},
            )
    except csv.Error as error:
        yield f"line {reader.line_num}", f"not a row of a table ({error}); the rest of the file is not read"


def _sheet(path: Path) -> Records:
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
