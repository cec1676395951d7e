"""Annotation files -> rows with their problems, by format."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from rlsys.data.annotations.formats import FORMATS
from rlsys.data.annotations.published import PUBLISHED, RepeatedKeys, parse_json
from rlsys.data.annotations.rows import AnnotationRow, BadLine, Problem, short
from rlsys.data.video.errors import AnnotationError
from rlsys.types import Json

SHOWN = 10
_PLACEHOLDERS = re.compile(r"\A(?:\s*<(?:video|image)>)+|(?:<(?:video|image)>\s*)+\Z")
_CONTROL = re.compile(r"<\|[^<>|\s]{1,40}\|>|</?(?:video|image|s|pad|bos|eos|unk|start_of_turn|end_of_turn)>")


def read_rows(path: Path, format: str) -> tuple[list[AnnotationRow], RepeatedKeys]:
    """Return the rows of a file in `format`, and the keys that occur twice in one object of it.

    Raises AnnotationError for an unknown format and for a file that cannot be read or has another shape.
    """
    if format not in FORMATS:
        raise AnnotationError(f"format {format!r} is not known; the formats are {', '.join(FORMATS)}.")
    shape = FORMATS[format]
    published = PUBLISHED.get((format, path.suffix.lower()))
    repeated: RepeatedKeys = []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read ({error.strerror}); check data.annotations.") from error
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: not UTF-8 text ({error}); convert the file to UTF-8.") from error
    try:
        if published is not None:
            return [_plain(row) for row in published(path, text)], repeated
        tree = _lines(text, repeated) if shape.is_lines else parse_json(text, repeated)
        return [_plain(row) for row in shape.read(tree)], repeated
    except (ValueError, RecursionError) as error:
        expected = "one JSON object per line" if shape.is_lines else "a JSON file"
        raise AnnotationError(
            f"{printable(str(path))}: not JSON, and data.format={format} reads {expected} ({error}); "
            "check data.format, or the file where the error is."
        ) from error
    except TypeError as error:
        raise AnnotationError(f"{path}: not in the shape of {format}: {error}; check data.format.") from error


def _lines(text: str, repeated: RepeatedKeys) -> list[tuple[str, Json]]:
    """Return (line number from 1, content) of the lines that are not blank. Raises ValueError if none is JSON."""
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
