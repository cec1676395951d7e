"""Annotation files -> rows with their problems, by format."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from rlsys.data.annotations.formats import FORMATS, Format
from rlsys.data.annotations.rows import AnnotationRow, Problem, short
from rlsys.data.annotations.sets.published import RepeatedKeys, parse_json, text_of
from rlsys.data.annotations.sets.records import SUFFIXES, labelled_lines, read_records
from rlsys.data.annotations.sets.tables import Columns
from rlsys.data.video.errors import AnnotationError

SHOWN = 10
_OTHER_KINDS: Mapping[bytes, str] = {
    b"pk\x03\x04": "a zip archive; unpack it, and name the file or the folder that is in it",
    b"\x1f\x8b": "a gzip file; unpack it first",
    b"version https://git-lfs": "a pointer of Git LFS and not the file; run `git lfs pull` where it was cloned",
    b"<!doctype html": "a web page and not the file; download the file itself",
    b"<html": "a web page and not the file; download the file itself",
}
"""First bytes, in lower case -> what the file is instead of annotations."""
_PLACEHOLDERS = re.compile(r"\A(?:\s*<(?:video|image)>)+|(?:<(?:video|image)>\s*)+\Z")
_CONTROL = re.compile(r"<\|[^<>|\s]{1,40}\|>|</?(?:video|image|s|pad|bos|eos|unk|start_of_turn|end_of_turn)>")


def read_rows(
    path: Path, format: str, columns: Columns = MappingProxyType({})
) -> tuple[list[AnnotationRow], RepeatedKeys]:
    """Return the rows of a file or folder in `format`, and the keys that occur twice in one object of it.

    columns: `data.columns`, for tables.
    Raises AnnotationError for an unknown format and for a file that cannot be read or has another shape.
    """
    if format not in FORMATS:
        raise AnnotationError(f"format {format!r} is not known; the formats are {', '.join(FORMATS)}.")
    repeated: RepeatedKeys = []
    try:
        _refuse_other_kinds(path)
        return _with_own_labels([_plain(row) for row in _found(path, FORMATS[format], columns, repeated)]), repeated
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read ({error.strerror}); check data.annotations.") from error
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: not UTF-8 text ({error}); convert the file to UTF-8.") from error
    except (ValueError, RecursionError) as error:
        raise AnnotationError(
            f"{printable(str(path))}: {_expected(path, format)} ({error}); "
            "check data.format, or the file where the error is."
        ) from error
    except TypeError as error:
        raise AnnotationError(f"{path}: not in the shape of {format}: {error}; check data.format.") from error


def _refuse_other_kinds(path: Path) -> None:
    """Raise AnnotationError for what a download often leaves in place of the file."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    found = next((text for prefix, text in _OTHER_KINDS.items() if start.startswith(prefix)), None)
    if found is not None:
        raise AnnotationError(f"{path}: {found}.")


def _with_own_labels(rows: Sequence[AnnotationRow]) -> list[AnnotationRow]:
    """Return the rows with different labels: of those with one label the second gets "#2", and so on.

    Prompt ids are made of them, and two files of a folder may differ in their suffix alone.
    """
    counts: Counter[str] = Counter()
    known = {row.label for row in rows}
    found: list[AnnotationRow] = []
    for row in rows:
        counts[row.label] += 1
        label, number = row.label, counts[row.label]
        while number > 1 and (label := f"{row.label}#{number}") in known:
            number += 1
        known.add(label)
        found.append(row if label == row.label else replace(row, label=label))
    return found


def _found(path: Path, shape: Format, columns: Columns, repeated: RepeatedKeys) -> Iterator[AnnotationRow]:
    suffix = "" if path.is_dir() else path.suffix.lower()
    is_table = suffix in SUFFIXES and (suffix != ".json" or shape.read is None) and not shape.is_lines
    if shape.read_records is not None and (is_table or path.is_dir()):
        return shape.read_records(read_records(path, repeated), columns)
    if columns:
        raise TypeError("data.columns names columns of a table, and this file is none")
    if suffix in shape.read_files and (suffix or path.is_dir()):
        return shape.read_files[suffix](path)
    if shape.read is None:
        raise TypeError(f"a file of {', '.join((*SUFFIXES, *shape.read_files))} is expected")
    text = text_of(path)
    if shape.is_lines:
        return shape.read(labelled_lines(text, repeated))
    is_list_by_line = suffix == ".jsonl"
    return shape.read(
        [one for _, one in labelled_lines(text, repeated)] if is_list_by_line else parse_json(text, repeated)
    )


def _expected(path: Path, format: str) -> str:
    if path.suffix.lower() in (".parquet", ".arrow", ".csv", ".tsv"):
        return f"not a {path.suffix.lower()[1:]} file"
    expected = "one JSON object per line" if FORMATS[format].is_lines else "a JSON file"
    return f"not JSON, and data.format={format} reads {expected}"


def _plain(row: AnnotationRow) -> AnnotationRow:
    """Return the row without placeholders of media around its question; text that cannot be shown is a problem.

    A control token in a question would act as one in the prompt, and a lone surrogate cannot be written as UTF-8.
    """
    question = _PLACEHOLDERS.sub("", row.question).strip()
    problems = list(row.problems)
    texts = {"question": question, "options": "\n".join(row.options), "video": row.video, "(row)": row.label}
    for field, text in texts.items():
        control = _CONTROL.search(text) if field in ("question", "options") else None
        if control is not None:
            problems.append(Problem(field=field, text=f"holds the control token {control.group()}"))
        if printable(text) != text:
            problems.append(Problem(field=field, text=f"{printable(short(text))} is not valid Unicode"))
    if question == row.question and len(problems) == len(row.problems):
        return row
    return replace(row, question=question, problems=tuple(problems))


def printable(text: str) -> str:
    """Return `text` with lone surrogates, which no file or terminal takes, written out."""
    return text.encode("utf-8", "backslashreplace").decode()


def repeated_text(repeated: RepeatedKeys) -> str:
    """Return a sentence about the keys that occur twice in one object."""
    names = ", ".join(dict.fromkeys(repeated[:SHOWN])) + (", …" if len(repeated) > SHOWN else "")
    return f"{len(repeated)} keys occur twice in one object, and their queries are joined: {names}"
