"""Tables of multiple-choice sets and of any user: file types, column maps, and the dirt that tables have."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from rlsys.config.run import DataConfig
from rlsys.data.annotations.annotations import Annotations, load_annotations
from rlsys.data.annotations.reading import read_rows
from rlsys.data.annotations.rows import AnnotationRow
from rlsys.data.video.errors import AnnotationError

ROWS: list[dict[str, Any]] = [
    {"clip": "a.mp4", "prompt": "what?", "choices": ["x", "y", "z"], "label": 1},
    {"clip": "b.mp4", "prompt": "who?", "choices": ["p", "q"], "label": 0},
]
COLUMNS = {"video": "clip", "question": "prompt", "options": "choices", "answer_index": "label"}


def rows_of(path: Path, format: str, **columns: Any) -> list[AnnotationRow]:
    return read_rows(path, format, columns)[0]


def clean(rows: list[AnnotationRow]) -> list[tuple[str, str, tuple[str, ...], Any]]:
    assert [row.problems for row in rows] == [()] * len(rows)
    return [(row.video, row.question, row.options, row.truth) for row in rows]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\ufeff" + "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8-sig")
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        lines = [separator.join(rows[0])]
        for row in rows:
            texts = [json.dumps(value) if isinstance(value, list) else str(value) for value in row.values()]
            lines.append(separator.join('"' + text.replace('"', '""') + '"' for text in texts))
        path.write_text("\r\n".join(lines) + "\r\n", encoding="utf-8-sig")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".json", ".jsonl"])
def test_one_reader_reads_any_kind_of_table_by_a_map_of_its_columns(suffix: str, tmp_path: Path) -> None:
    rows = rows_of(write(tmp_path / f"mine{suffix}", ROWS), "table", **COLUMNS)
    assert clean(rows) == [
        ("a.mp4", "what?", ("(A) x", "(B) y", "(C) z"), "(B)"),
        ("b.mp4", "who?", ("(A) p", "(B) q"), "(A)"),
    ]
    assert {row.task for row in rows} == {"multiple_choice"}


@pytest.mark.parametrize(
    ("options", "answer", "expected"),
    [
        (["x", "y"], "y", "(B)"),
        (["x", "y"], "B", "(B)"),
        (["A. x", "B. y"], "B", "(B)"),
        ('["x", "y"]', "(B) y", "(B)"),
        ("['x', \"it's\"]", "it's", "(B)"),
        ("A. x B. y", "b", "(B)"),
        ({"B": "y", "A": "x"}, "y", "(B)"),
        ([1, 2.5, "none", True], "2.5", "(B)"),
        ([1, 2, 3], 2.0, "(B)"),
    ],
)
def test_options_and_answers_are_read_as_tables_write_them(
    options: Any, answer: Any, expected: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "t.json", [{"video": "v", "question": "q", "options": options, "answer": answer}])
    ((_, _, _, truth),) = clean(rows_of(path, "table"))
    assert truth == expected


def test_options_may_have_columns_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text("video\tquestion\tA\tB\tC\tanswer\nv\tq\tone\ttwo\t\tB\n")
    ((_, _, options, truth),) = clean(rows_of(path, "table", options=("A", "B", "C")))
    assert (options, truth) == (("(A) one", "(B) two"), "(B)")


def test_what_a_row_has_decides_its_task(tmp_path: Path) -> None:
    rows = [
        {"video": "v", "question": "how many?", "answer": 4},
        {"video": "v", "question": "when?", "clue": [1.0, 2.0], "duration": 9.0},
        {"video": "v", "caption": "A cat.", "events": ["a cat sits"]},
        {"image": "i.png", "question": "q", "options": ["x", "y"], "answer": "x", "category": "c"},
    ]
    found = rows_of(write(tmp_path / "t.json", rows), "table")
    clean(found)
    assert [row.task for row in found] == ["numeric_qa", "temporal_grounding", "captioning", "multiple_choice"]
    assert found[3].medium == "image" and found[3].labels == {"category": "c"}


def test_images_are_the_media_of_a_row_or_stand_beside_its_video(tmp_path: Path) -> None:
    rows = [
        {"images": ["i.png", "j.png"], "question": "q", "options": ["x", "y"], "answer": "x"},
        {"video": "v", "images": "['i.png']", "question": "q", "options": ["x", "y"], "answer": "x"},
    ]
    alone, beside = rows_of(write(tmp_path / "t.json", rows), "table")
    assert (alone.problems, alone.medium, alone.video, alone.images) == ((), "image", "i.png", ("j.png",))
    assert (beside.problems, beside.medium, beside.video, beside.images) == ((), "clip", "v", ("i.png",))


def test_dirt_is_reported_by_row_and_column(tmp_path: Path) -> None:
    rows = [
        {"video": "v", "question": "q", "options": ["x", "y"], "answer": "y"},
        {"video": "v", "question": math.nan, "options": ["x", "y"], "answer": "y"},
        {"video": math.nan, "question": "q", "options": ["x", "y"], "answer": "y"},
        {"video": "v", "question": "q2", "options": ["x", None], "answer": "x"},
        {"video": "v", "question": "q3", "options": ["x", "y"], "answer": math.nan},
        {"video": "v", "question": "q4", "options": ["x", "y"], "answer": "z"},
        {"video": "v", "question": "q", "options": ["x", "y"], "answer": "y"},
        {"video": 7, "question": 8, "options": ["x", "y"], "answer": "y"},
    ]
    found = rows_of(write(tmp_path / "t.json", rows), "table")
    assert [[problem.field for problem in row.problems][:1] for row in found] == [
        [],
        ["question"],
        ["video"],
        ["options"],
        ["answer"],
        ["answer"],
        ["question"],
        [],
    ]
    assert (found[7].video, found[7].question) == ("7", "8")
    assert found[6].problems[0].is_counted


def test_one_index_that_is_no_number_does_not_shift_the_others(tmp_path: Path) -> None:
    indices = [*range(1, 5)] * 6
    lines = [f"a.mp4,what {number}?,x,y,z,w,{index}" for number, index in enumerate([*indices, "unknown"])]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["video,question,A,B,C,D,answer_index", *lines]) + "\n")
    *rows, last = rows_of(path, "table")
    assert [row.truth for row in rows] == ["(A)", "(B)", "(C)", "(D)"] * 6
    assert last.problems and last.truth is None


def test_nan_as_a_text_is_a_missing_value(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("video,question,answer,duration,fps\na.mp4,how many?,3,NaN,nan\n")
    (row,) = rows_of(path, "table")
    assert row.problems == () and row.duration_s is None and row.fps is None


def test_nan_in_a_parquet_column_is_a_missing_value_and_bytes_are_skipped(tmp_path: Path) -> None:
    table = pyarrow.table(
        {
            "video": ["a", "b", "c"],
            "question": ["q1", "q2", None],
            "options": [["x", "y"], ["x", "y"], ["x", "y"]],
            "answer_index": [1.0, math.nan, 0.0],
            "frame": [{"bytes": b"\xff", "path": "p"}] * 3,
            "thumbnail": [b"\xff"] * 3,
        }
    )
    parquet.write_table(table, tmp_path / "t.parquet")
    found = rows_of(tmp_path / "t.parquet", "table")
    assert found[0].truth == "(B)" and not found[0].problems
    assert [row.problems[0].field for row in found[1:]] == ["answer", "question"]
    assert not any(problem.is_contradiction for row in found for problem in row.problems)


@pytest.mark.parametrize("index", [2, -1, 0.5, "one"])
def test_an_index_of_no_option_is_a_dirty_row(index: Any, tmp_path: Path) -> None:
    row = {"video": "v", "question": "q", "options": ["x", "y"], "answer_index": index}
    (found,) = rows_of(write(tmp_path / "t.json", [row]), "table")
    assert found.problems[0].field == "answer" and f"index {index}" in found.problems[0].text


def test_a_folder_of_tables_is_one_table_with_the_files_names_in_the_rows_places(tmp_path: Path) -> None:
    write(tmp_path / "test-00000-of-00002.parquet", ROWS[:1])
    write(tmp_path / "test-00001-of-00002.parquet", ROWS[1:])
    (tmp_path / "README.md").write_text("a dataset")
    found = rows_of(tmp_path, "table", **COLUMNS)
    assert [row.label for row in found] == ["test-00000-of-00002/0", "test-00001-of-00002/0"]
    assert len(clean(found)) == 2


def test_lines_are_counted_as_an_editor_does(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('video,question,options,answer\nv,"two\nlines","[""x"", ""y""]",x\nv,q,"[""x"", ""y""]",y\n')
    found = rows_of(path, "table")
    assert [(row.label, row.question) for row in found] == [("3", "two\nlines"), ("4", "q")]
    lines = tmp_path / "t.jsonl"
    lines.write_text(json.dumps({"video": "v", "question": "q", "answer": 1}) + "\n\nnot json\n[1]\n")
    assert [(row.label, len(row.problems)) for row in rows_of(lines, "table")] == [("1", 0), ("3", 1), ("4", 1)]


@pytest.mark.parametrize(
    ("name", "text", "format", "columns", "message"),
    [
        ("t.json", '[{"a": 1}]', "video_mme", {}, "no column videoID or video .*data.columns.video=NAME names it"),
        ("t.json", '[{"video": "v"}]', "table", {"question": "ask"}, "data.columns.question names ask"),
        ("t.json", "7", "table", {}, "a list of rows is expected"),
        ("t.json", "[7", "table", {}, "not JSON"),
        ("t.parquet", "no parquet", "table", {}, "not a parquet file"),
        ("t.txt", "v q", "table", {}, "a file of .csv, .tsv, .parquet, .arrow, .json, .jsonl is expected"),
        ("t.json", "{}", "nextgqa", {"video": "v"}, "data.columns names columns of a table"),
    ],
)
def test_a_file_of_another_shape_is_an_error_that_names_file_and_remedy(
    name: str, text: str, format: str, columns: dict[str, str], message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(AnnotationError, match=f"{name}(.|\n)*{message}"):
        read_rows(tmp_path / name, format, columns)


def test_the_config_maps_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.csv", ROWS)
    for row in ROWS:
        (tmp_path / str(row["clip"])).touch()
    data = DataConfig.model_validate({"format": "table", "columns": COLUMNS})
    found: Annotations = load_annotations(path, videos=tmp_path, data=data)
    assert [item.truth for item in found.items] == ["(B)", "(A)"] and found.dirty == ()
