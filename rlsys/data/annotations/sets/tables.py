"""Records of tables as rows, by a map of their columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from string import ascii_uppercase

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
from rlsys.data.annotations.sets.records import Record, as_list, columns_of, file_name, names_of
from rlsys.data.annotations.times import plain_times
from rlsys.data.annotations.vtts import VttsEntry
from rlsys.types import Json

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
"""Role -> the name of its column, or of several: options, or start and end of a period, in columns of their own."""

_NUMBERS = frozenset(("duration", "width", "height", "video_start", "video_end", "fps"))
_SPREAD = tuple(
    tuple(f"{prefix}{one}" for one in ones)
    for prefixes, ones in (
        (("", "option_", "option", "Option ", "choice_", "choice"), "ABCDEFGH"),
        (("a", "option_", "option", "choice_", "choice", "candidate_"), "01234567"),
        (("option_", "option", "choice_", "choice", "candidate_"), "12345678"),
    )
    for prefix in prefixes
)
"""Names of the columns of options that have one each, in order, of which a table has the first ones."""
MIN_ROWS_FROM_1 = 20
"""Rows with an index, none of them 0, from which a column that should count from 0 is taken to count from 1."""


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
        columns = self._with_spread_options(found, columns)
        valued = [(record, self._values(record.fields, columns)) for record in found]
        starts = {role: _first_index([values for _, values in valued], role) for role in ("answer", "answer_index")}
        repeats = Repeats()
        for record, values in valued:
            row = self._row(record, values, starts)
            media = (row.video, row.frames, row.images, row.videos)
            identity = (media, row.question, row.options, repr(row.truth), row.window_s)
            if row.task and repeats.add(identity):
                problem = Problem(field="question", text=f"{short(row.question)} occurs twice", is_counted=True)
                row = replace(row, problems=(*row.problems, problem))
            yield row

    def _prepared(self, record: Record) -> Iterable[Record]:
        return [record] if self.prepare is None or isinstance(record.fields, BadLine) else self.prepare(record)

    def _with_spread_options(self, records: Sequence[Record], columns: Columns) -> Columns:
        """Return the columns with those of the options where each option has one: A, B, …; a0, a1, …; option_1, …"""
        there = columns_of(records)
        if "options" in columns or there & set(self.columns.get("options", ("options",))):
            return columns
        spread = next((names for names in _SPREAD if set(names[:2]) <= there), ())
        return {**columns, "options": tuple(name for name in spread if name in there)} if spread else columns

    def _require_columns(self, records: Sequence[Record], columns: Columns) -> None:
        whole, there = [one for one in records if not isinstance(one.fields, BadLine)], columns_of(records)
        for role, named in columns.items():
            missing = [name for name in ([named] if isinstance(named, str) else named) if name not in there]
            if missing and whole:
                raise TypeError(
                    f"data.columns.{role} names {', '.join(missing)}, and the columns are {', '.join(sorted(there))}"
                )
        for role in self.required:
            names = self.columns.get(role, (role,))
            if role == "options" and any(set(spread[:2]) <= there for spread in _SPREAD):
                continue
            if whole and role not in columns and not there & set(names):
                raise TypeError(
                    f"no column {' or '.join(names)} for the {role}; the columns are {', '.join(sorted(there)[:40])}; "
                    f"data.columns.{role}=NAME names it"
                )

    def _values(self, fields: Mapping[str, Json] | BadLine, columns: Columns) -> dict[str, Json]:
        """Return what a record has for each role; roles without a value are absent."""
        if isinstance(fields, BadLine):
            return {}
        values = {role: self._value(role, fields, columns) for role in ROLES}
        values["question"] = values["question"] if values["question"] is None else str(values["question"])
        return {role: value for role, value in values.items() if value is not None}

    def _row(self, record: Record, values: Mapping[str, Json], starts: Mapping[str, int | None]) -> AnnotationRow:
        """Return the row of a record. starts: the numbers from which the options are counted, None for letters."""
        if isinstance(record.fields, BadLine):
            problem = Problem(field="(row)", text=record.fields.problem)
            return AnnotationRow(label=record.label, video="", problems=(problem,))
        values = dict(values)
        index, qid, images = (values.pop(role, None) for role in ("answer_index", "qid", "images"))
        if not values.keys() & {"video", "image", "image_list"} and images is not None:
            values["image"], images = images, None
        if index is not None and values.get("options") is not None:
            values["answer"] = _indexed(index, values["options"], starts["answer_index"] or 0)
        elif starts["answer"] is not None and values.keys() >= {"answer", "options"}:
            values["answer"] = _indexed(values["answer"], values["options"], starts["answer"])
        try:
            row = VttsEntry.model_validate(values).row(record.label)
        except ValidationError as error:
            row = broken_row(record.label, values, error)
        row = replace(row, problems=tuple(_explained(problem, values.get("answer")) for problem in row.problems))
        labels = self._labels(record)
        if qid is not None:
            labels["qid"] = _text(qid)
        return replace(row, labels={**row.labels, **labels}, images=(*row.images, *names_of(images)))

    def _value(self, role: str, fields: Mapping[str, Json], columns: Columns) -> Json:
        named = columns.get(role)
        if named is not None and not isinstance(named, str):
            several = [fields.get(name) for name in named]
            if role == "clue":
                return None if all(value is None for value in several) else plain_times(several)
            return _spread(several) if role == "options" else [_text(one) for one in several if one is not None] or None
        names = (named,) if named is not None else self.columns.get(role, (role,))
        value = next((fields[name] for name in names if fields.get(name) is not None), None)
        if role in ("options", "clue", "events", "images", "image_list"):
            value = as_list(value)
        if role in ("video", "image", "images", "image_list"):
            value = file_name(value)
        if role == "clue":
            return plain_times(value)
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
            value = as_list(value)
            if isinstance(value, list):
                value = ", ".join(map(_text, value)) or None
            if value is not None:
                found[label] = value if isinstance(value, float) else _text(value)
        return found


def _explained(problem: Problem, answer: Json) -> Problem:
    """Return a problem of a row; without an answer nothing is contradicted, and a number may be an index."""
    if answer is None:
        return replace(problem, is_contradiction=False)
    if problem.field == "answer" and problem.is_contradiction and is_number(_number(answer)):
        hint = "; data.columns.answer_index=NAME reads a column as indices from 0"
        return replace(problem, text=problem.text + hint)
    return problem


def _first_index(rows: Sequence[Mapping[str, Json]], role: str) -> int | None:
    """Return the number of the first option in a column of numbers of options; None if that is not certain.

    It is 0 if any row has 0, and 1 if none has and one has the number of its options. A column `answer` may also hold
    letters or texts of options; then it is None.
    """
    found: list[tuple[float, int]] = []
    num_texts = 0
    for row in rows:
        if row.get(role) is None or row.get("options") is None:
            continue
        number, (options, problem) = _number(row[role]), read_options(row["options"])
        if not is_number(number) or number != int(number):
            if role == "answer":
                return None
            continue
        if problem is None:
            found.append((number, len(options)))
            num_texts += str(row[role]).strip() in {option.text.strip() for option in options}
    if not found or (role == "answer" and 2 * num_texts >= len(found)):
        return None
    if any(number == 0 for number, _ in found):
        return 0
    is_from_1 = any(number == size for number, size in found) and all(1 <= number <= size for number, size in found)
    return 1 if is_from_1 and (role == "answer" or len(found) >= MIN_ROWS_FROM_1) else None


def _spread(values: Sequence[Json]) -> Json:
    """Return options that have a column each; where one is empty, those behind it keep their letters."""
    texts = [None if value is None else _text(value) for value in values]
    while texts and texts[-1] is None:
        texts.pop()
    if None not in texts:
        return texts or None
    return [f"({letter}) {text}" for letter, text in zip(ascii_uppercase, texts, strict=False) if text is not None]


def _option_texts(value: Json) -> Json:
    """Return options as texts: numbers and truth values written out, an object of letters as lettered texts."""
    if isinstance(value, Mapping):
        return [f"({letter}) {_text(text)}" for letter, text in sorted(value.items()) if text is not None]
    if isinstance(value, list):
        return [None if one is None else _text(one) for one in value]
    return value


def _text(value: Json) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _number(value: Json) -> Json:
    """Return the number in a text, None for "NaN"; any other value as it is."""
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        return value
    return None if number != number else number


def _indexed(index: Json, values: Json, start: int) -> Json:
    """Return the letter of the option at an index, or the index where there is none, which no option matches.

    start: the index of the first option.
    """
    options, problem = read_options(values)
    number = _number(index)
    if problem is None and is_number(number) and number == int(number) and 0 <= number - start < len(options):
        return f"({options[int(number) - start].letter})"
    return f"index {index}"
