"""Conversion: the same rows are read from what is written, on the real files and on rows of every task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from rlsys.data.annotations.reading import read_rows
from rlsys.data.annotations.rows import AnnotationRow
from rlsys.data.inspection.convert import own_row, row_schema, write_rows
from rlsys.data.video.errors import AnnotationError
from rlsys.tasks.table import TASKS
from tests.support.paths import REPO
from tests.support.video_files import shared_data


def stated(rows: list[AnnotationRow]) -> list[tuple[Any, ...]]:
    """What evaluation takes of the rows that can be read."""
    found = [row.as_published() for row in rows]
    return [
        (row.video, row.task, row.question, row.options, row.truth, row.duration_s, row.window_s)
        for row in found
        if not row.problems
    ]


REAL = {
    "charades_sta": ("charades_sta_train.json", 12_404),
    "nextgqa": ("nextgqa_val.json", 3_358),
    "got10k": ("got10k_val.json", 180),
    "vidtab": ("vidtab_quality_100shot.json", 200),
}


@pytest.mark.parametrize("format", REAL)
def test_the_real_files_become_our_lines_and_keep_every_row(format: str, tmp_path: Path) -> None:
    name, num_rows = REAL[format]
    rows, _ = read_rows(shared_data("annotations", name), format)
    out = tmp_path / "rows.jsonl"
    assert write_rows(rows, "vtts", out) == num_rows
    again, _ = read_rows(out, "vtts")
    assert len(again) == num_rows

    def plain(row: tuple[Any, ...]) -> tuple[Any, ...]:
        options = () if row[1] == "video_quality" else row[3]  # the authors put the classes into the question
        return (row[0], row[1], row[2], options, *row[4:])

    assert list(map(plain, stated(again))) == list(map(plain, stated(rows)))
    schema = jsonschema.Draft202012Validator(row_schema())
    for line in out.read_text().splitlines()[:: max(1, num_rows // 200)]:
        schema.validate(json.loads(line))


@pytest.mark.parametrize("format", ["charades_sta", "nextgqa", "got10k"])
def test_the_real_files_go_through_our_lines_and_back(format: str, tmp_path: Path) -> None:
    source = shared_data("annotations", REAL[format][0])
    rows, _ = read_rows(source, format)
    write_rows(rows, "vtts", tmp_path / "rows.jsonl")
    write_rows(read_rows(tmp_path / "rows.jsonl", "table")[0], format, tmp_path / "back.json")
    again, _ = read_rows(tmp_path / "back.json", format)
    assert stated(again) == stated(rows)
    assert [row.labels for row in again if not row.problems] == [row.labels for row in rows if not row.problems]
    assert sum(bool(row.problems) for row in again) == sum(
        bool(row.problems) for row in rows if not row.as_published().problems
    )
    if format == "nextgqa":
        published = json.loads(source.read_text())
        for row in published:
            row["options"] = [option.strip() for option in row["options"]]
        assert json.loads((tmp_path / "back.json").read_text()) == published


def test_charades_lines_need_no_durations_and_its_json_does(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text("3MSZA 24.3 30.4##person turn a light on.\n3MSZA 1.0 2.5##person sits.\n")
    rows, _ = read_rows(path, "charades_sta")
    assert write_rows(rows, "charades_sta", tmp_path / "back.txt") == 2
    assert (tmp_path / "back.txt").read_text() == path.read_text()
    with pytest.raises(AnnotationError, match="row 1: charades_sta in JSON needs the duration of '3MSZA'"):
        write_rows(rows, "charades_sta", tmp_path / "back.json")
    with pytest.raises(AnnotationError, match="row 1: nextgqa holds grounded_qa of whole videos, this is temporal"):
        write_rows(rows, "nextgqa", tmp_path / "back.json")
    with pytest.raises(AnnotationError, match="--to coco is not known"):
        write_rows(rows, "coco", tmp_path / "back.json")


LINES: list[dict[str, Any]] = [
    {"video": "v", "question": "q", "clue": [1.0, 2.0], "duration": 9.0},
    {"video": "v", "question": "late", "clue": [5.0, 12.0], "duration": 9.0},
    {"video": "v", "question": "q", "clue": [0.1, 0.2, 0.5, 0.6]},
    {"video": "v", "question": "q", "clue": [10, 20, 50, 60], "width": 100, "height": 80},
    {"image": "i.png", "question": "pixels", "clue": [10, 20, 50, 60]},
    {"video": "v", "question": "q", "clue": [[0.1, 0.2, 0.5, 0.6]] * 8},
    {"video": "v", "question": "q", "clue": {"temporal": [1.0, 2.0], "spatial": [0.1, 0.2, 0.5, 0.6]}},
    {"video": "v", "question": "q", "options": ["x", "y"], "answer": "y"},
    {"video": "v", "question": "q", "options": ["x", "y"], "answer": "y", "clue": [[1.0, 2.0], [3.0, 4.0]]},
    {"video": "v", "question": "q", "options": ["x", "y"], "answer": "y", "clue": [0.1, 0.2, 0.5, 0.6]},
    {
        "video": "v",
        "question": "q",
        "options": ["x", "y"],
        "answer": "x",
        "clue": {"temporal": [[1.0, 2.0]], "spatial": [10, 20, 50, 60]},
        "width": 100,
        "height": 80,
    },
    {"video": "v", "question": "q", "answer": 4},
    {"video": "v", "question": "q", "answer": "low quality", "task": "video_quality", "options": ["low quality", "b"]},
    {"video": "v", "caption": "A cat.", "events": ["a cat"], "question": "Describe."},
    {"image": ["i.png", "j.png"], "question": "images", "options": ["x", "y"], "answer": "y"},
    {"video": ["v", "w", "v"], "question": "videos", "options": ["x", "y"], "answer": "y"},
    {"video": "v", "video_start": 1.0, "video_end": 4.0, "fps": 2.0, "question": "part", "clue": [1.0, 2.0]},
]


def test_rows_of_every_task_are_written_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in LINES))
    rows, _ = read_rows(path, "vtts")
    assert {row.task for row in rows} == set(TASKS)
    assert write_rows(rows, "vtts", tmp_path / "again.jsonl") == len(LINES)
    again, _ = read_rows(tmp_path / "again.jsonl", "vtts")
    assert again == rows
    schema = jsonschema.Draft202012Validator(row_schema())
    for line in (*path.read_text().splitlines(), *(tmp_path / "again.jsonl").read_text().splitlines()):
        schema.validate(json.loads(line))


@pytest.mark.parametrize("wrong", [{"clue": [1, 2, 3]}, {"video_end": 0}, {"answer": [1]}, {"events": []}])
def test_the_schema_refuses_what_no_row_may_have(wrong: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(row_schema()).validate({"video": "v", "question": "q", **wrong})


def test_the_schema_in_the_documentation_is_that_of_the_code() -> None:
    assert json.loads((REPO / "docs" / "schemas" / "row.schema.json").read_text()) == row_schema()


def test_labels_and_further_images_are_kept_for_tables(tmp_path: Path) -> None:
    path = tmp_path / "test.json"
    row = {
        "id": 1,
        "task": "VG",
        "video": "v.mp4",
        "som_image": "s.png",
        "question": "q",
        "options": [1, 2],
        "answer": 2,
    }
    path.write_text(json.dumps([row]))
    (first,), _ = read_rows(path, "r4d_bench")
    assert own_row(first)["images"] == ["s.png"]
    write_rows([first], "vtts", tmp_path / "rows.jsonl")
    (again,), _ = read_rows(tmp_path / "rows.jsonl", "table")
    assert (again.images, again.truth, dict(again.labels)) == (("s.png",), "(B)", dict(first.labels))


def test_what_another_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"video": "a b.mp4", "question": "q", "clue": [1, 2], "duration": 9}))
    rows = read_rows(path, "vtts")[0]
    with pytest.raises(AnnotationError, match="end the name of a video at a space, and 'a b.mp4' has"):
        write_rows(rows, "charades_sta", tmp_path / "out.txt")
    write_rows(rows, "charades_sta", tmp_path / "out.json")
    assert read_rows(tmp_path / "out.json", "charades_sta")[0][0].video == "a b.mp4"
    boxes = [[0.1, 0.1, 0.2, 0.2]] * 4
    path.write_text(json.dumps({"video": "v", "question": "q", "clue": boxes}))
    with pytest.raises(AnnotationError, match="got10k holds 8 boxes a sequence, and this has 4"):
        write_rows(read_rows(path, "vtts")[0], "got10k", tmp_path / "out.json")
