"""Annotation files that data sets publish in a form of their own: text lines and tables beside JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rlsys.data.annotations.rows import AnnotationRow, Problem, Repeats, is_number, read_glue, read_span, short
from rlsys.data.annotations.times import listed_periods, plain_seconds
from rlsys.files import require_regular
from rlsys.types import Json

_INDICES = frozenset(map(str, range(5)))

RepeatedKeys = list[str]
"""Keys that occur twice in one object of a JSON file."""


def parse_json(text: str, repeated: RepeatedKeys) -> Json:
    """Return the JSON value in `text`. Keys that occur twice in one object are added to `repeated`.

    Of the values of such a key, objects with equal lists as members are joined (two entries of one video keep all
    their queries); of other values the last one counts.
    """

    def collected(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        entries: dict[str, Json] = {}
        for key, value in pairs:
            if key in entries:
                repeated.append(key)
                value = _joined(entries[key], value)
            entries[key] = value
        return entries

    return json.loads(text, object_pairs_hook=collected)


def _joined(first: Json, second: Json) -> Json:
    if not (isinstance(first, dict) and isinstance(second, dict) and set(first) == set(second)):
        return second
    return {
        key: first[key] + value if isinstance(value, list) and isinstance(first[key], list) else value
        for key, value in second.items()
    }


def text_of(path: Path) -> str:
    """Return the text of a UTF-8 file without a byte order mark. Raises OSError and UnicodeDecodeError."""
    require_regular(path)
    return path.read_text(encoding="utf-8-sig")


def charades_lines(path: Path) -> Iterator[AnnotationRow]:
    """Read lines of `ID start end##sentence`, as Charades-STA is published, without the clips' durations."""
    repeats = Repeats()
    # not splitlines(): a sentence may hold U+2028 or U+0085, which that takes for the end of a line
    lines = text_of(path).split("\n")
    if any(map(str.strip, lines)) and not any("##" in line for line in lines):
        raise TypeError("no line is ID start end##sentence")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        head, _, sentence = line.partition("##")
        video, *times = head.rsplit(maxsplit=2) or [""]  # a name may hold spaces
        video = video.strip()
        sentence = sentence.strip()
        span, problem = read_span([_number(plain_seconds(time)) for time in times], math.inf, "line")
        problems = [problem] if problem else []
        if not sentence:
            problems.append(Problem(field="line", text=f"{short(line)} is not ID start end##sentence"))
        if repeats.add((video, *times, sentence.lower())):
            problems.append(Problem(field="line", text=f"{short(line)} occurs twice", is_counted=True))
        yield AnnotationRow(
            label=str(number),
            video=video,
            task="temporal_grounding",
            question=sentence,
            truth=span,
            problems=tuple(problems),
        )


def nextgqa_table(path: Path) -> Iterator[AnnotationRow]:
    """Read rows of `val.csv` with the periods of `gsub_val.json` beside it, as NExT-GQA is published.

    Raises TypeError when a column or the file of periods is missing.
    """
    located = _located(path)
    reader = csv.DictReader(io.StringIO(text_of(path)), strict=True)
    columns = {"question", "answer", "qid"} | {f"a{index}" for index in range(5)}
    missing = sorted(columns - set(reader.fieldnames or ()))
    if missing:
        raise TypeError(f"the columns {', '.join(missing)} are missing")
    try:
        rows = list(reader)
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error
    has_indices = _has_indices(rows)
    for number, row in enumerate(rows, start=2):
        video = row.get("video_id") or row.get("video") or ""
        yield _table_row(str(number), video, _with_text(row) if has_indices else row, located.get(video, {}))


def _has_indices(rows: Sequence[Mapping[str, str]]) -> bool:
    """Return whether most answers are indices of options from 0, as in NExT-QA's tables, and no texts of options."""
    answers = [(row["answer"] or "").strip() for row in rows]
    is_index = 2 * sum(answer in _INDICES for answer in answers) > sum(map(bool, answers))
    return is_index and not all(answer in _texts(row) for answer, row in zip(answers, rows, strict=True))


def _with_text(row: Mapping[str, str]) -> Mapping[str, str]:
    index = (row["answer"] or "").strip()
    return {**row, "answer": _texts(row)[int(index)]} if index in _INDICES else row


def _texts(row: Mapping[str, str]) -> list[str]:
    return [(row[f"a{index}"] or "").strip() for index in range(5)]


def _located(path: Path) -> Mapping[str, Mapping[str, Json]]:
    beside = path.with_name(f"gsub_{path.stem}.json")
    others = sorted(path.parent.glob("gsub_*.json"))
    if not beside.exists() and len(others) == 1:
        beside = others[0]
    try:
        found = json.loads(text_of(beside))
    except OSError as error:
        raise TypeError(f"its periods are expected in {beside} ({error.strerror})") from error
    except ValueError as error:
        raise TypeError(f"{beside} is not JSON: {error}") from error
    return {video: entry for video, entry in found.items() if isinstance(entry, dict)}


def _table_row(label: str, video: str, row: Mapping[str, str], located: Mapping[str, Json]) -> AnnotationRow:
    texts = _texts(row)
    letters = [letter for letter, text in zip("ABCDE", texts, strict=True) if text == (row["answer"] or "").strip()]
    answer = f"({letters[0]})" if letters else None
    problems: list[Problem] = []
    if any(row.get(None) or ()):  # type: ignore[call-overload]
        text = "more fields than columns; quote a text that holds a comma"
        problems.append(Problem(field="(row)", text=text))
    if len(letters) != 1:
        # the official code takes the first of two equal options
        text = f"{short(row['answer'])} is not the text of one option"
        problems.append(Problem(field="answer", text=text, is_counted=bool(letters)))
    stated = plain_seconds(located.get("duration"))
    duration_s = float(stated) if isinstance(stated, int | float) and is_number(stated) and stated > 0 else None
    location = located.get("location")
    values = listed_periods(location.get(row["qid"], [])) if isinstance(location, dict) else []
    values = values if isinstance(values, list) else [values]
    spans, counted, wrong = read_glue(answer, values, duration_s or math.inf, "location")
    if not values:
        text = f"{short(row['qid'])} has no period for this video"
        wrong = [Problem(field="qid", text=text, is_counted=True)]
    return AnnotationRow(
        label=label,
        video=video,
        task="grounded_qa",
        question=(row["question"] or "").strip(),
        options=tuple(f"({letter}) {text}" for letter, text in zip("ABCDE", texts, strict=True)),
        truth={"answer": answer, "glue": spans},
        duration_s=duration_s,
        labels={"qid": row["qid"] or "", **({"question_type": row["type"]} if row.get("type") else {})},
        counted=counted,
        problems=(*problems, *wrong),
    )


QUALITY_CLASSES = ("low quality", "high quality")
"""Classes of VidTAB's quality task, in the order of their indices."""
_QUALITY = (
    "How about the quality of the video from an aesthetic and technical point of view? "
    f"Choice one answer from {list(QUALITY_CLASSES)}."
)
_LABELLED = re.compile(r"(\S.*?)[\s,]+(\d+|" + "|".join(QUALITY_CLASSES) + r"|\S+)\s*", re.IGNORECASE)


def vidtab_lines(path: Path) -> Iterator[AnnotationRow]:
    """Read lines of `path label`, as VidTAB lists its videos; a label is a class or its index in `QUALITY_CLASSES`.

    Raises TypeError when no line has a label of the two.
    """
    repeats = Repeats()
    lines = [(number, line.strip()) for number, line in enumerate(text_of(path).split("\n"), start=1) if line.strip()]
    found = [_LABELLED.fullmatch(line) for _, line in lines]
    known = {*QUALITY_CLASSES, *map(str, range(len(QUALITY_CLASSES)))}
    if lines and not any(match and match.group(2).lower() in known for match in found):
        raise TypeError(f"no line is PATH LABEL with a label of {', '.join(QUALITY_CLASSES)}, 0, 1")
    for (number, line), match in zip(lines, found, strict=True):
        video, name = (match.group(1), match.group(2).lower()) if match else (line, "")
        if name.isdecimal() and int(name) < len(QUALITY_CLASSES):
            name = QUALITY_CLASSES[int(name)]
        problems = []
        if name not in QUALITY_CLASSES:
            text = f"{short(line)} is not PATH LABEL, with one of {', '.join(QUALITY_CLASSES)} or its index from 0"
            problems.append(Problem(field="line", text=text))
        if repeats.add(video):
            problems.append(Problem(field="line", text=f"{video!r} occurs twice", is_counted=True))
        yield AnnotationRow(
            label=str(number),
            video=video,
            task="video_quality",
            question=_QUALITY,
            truth=name,
            problems=tuple(problems),
        )


def _number(value: Json) -> Json:
    try:
        return float(value)
    except ValueError:
        return value
