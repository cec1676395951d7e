"""Files as downloads leave them: folders of the hub, columns of files, indices for letters, and other things."""

from __future__ import annotations

import csv
import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from rlsys.config.run import DataConfig
from rlsys.data.annotations.annotations import load_annotations
from rlsys.data.annotations.reading import read_rows
from rlsys.data.annotations.rows import AnnotationRow
from rlsys.data.video.errors import AnnotationError

CHOICE: dict[str, Any] = {"video": "a.mp4", "question": "what?", "options": ["x", "y", "z"], "answer": "B"}


def rows_of(path: Path, format: str, **columns: Any) -> list[AnnotationRow]:
    return read_rows(path, format, columns)[0]


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def write_arrow(path: Path, table: pyarrow.Table, *, is_stream: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = pyarrow.ipc.new_stream if is_stream else pyarrow.ipc.new_file
    with pyarrow.OSFile(str(path), "wb") as file, new(file, table.schema) as writer:
        writer.write_table(table)
    return path


def test_a_folder_of_the_hub_is_read_with_its_splits(tmp_path: Path) -> None:
    for split, video in (("train", "a"), ("test", "b")):
        row = {"video": f"{video}.mp4", "caption": "it falls", "timestamp": [1.0, 2.0]}
        write_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet", [row])
    (tmp_path / "README.md").write_text("a data set")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.json").write_text("{")
    (tmp_path / "dataset_infos.json").write_text("{}")
    rows = rows_of(tmp_path, "charades_sta")
    assert [(row.label, row.video, row.labels["split"]) for row in rows] == [
        ("data/test-00000-of-00001/0", "b.mp4", "test"),
        ("data/train-00000-of-00001/0", "a.mp4", "train"),
    ]
    (tmp_path / "b.mp4").touch()
    data = DataConfig.model_validate({"format": "charades_sta"})
    found = load_annotations(tmp_path, videos=tmp_path, data=data, split="test")
    assert [item.truth for item in found.items] == [[1.0, 2.0]] and found.num_queries == 1


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_folder_of_save_to_disk_is_read(is_stream: bool, tmp_path: Path) -> None:
    table = pyarrow.Table.from_pylist([{**CHOICE, "video": {"bytes": b"\xff", "path": "a.mp4"}, "thumbnail": b"\xff"}])
    write_arrow(tmp_path / "test" / "data-00000-of-00001.arrow", table, is_stream=is_stream)
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["test"]}')
    (tmp_path / "test" / "state.json").write_text("{}")
    (tmp_path / "test" / "dataset_info.json").write_text("{}")
    (row,) = rows_of(tmp_path, "table")
    assert (row.video, row.truth, row.labels["split"], row.problems) == ("a.mp4", "(B)", "test", ())


def test_columns_of_files_name_their_paths_and_structs_and_lists_are_read(tmp_path: Path) -> None:
    rows = [
        {
            "video": {"bytes": None, "path": "a.mp4"},
            "frames": [{"bytes": b"\xff", "path": "1.jpg"}, {"bytes": b"\xff", "path": "2.jpg"}],
            "query": "it falls",
            "span": {"start": 1.0, "end": 2.5},
        }
    ]
    (row,) = rows_of(write_parquet(tmp_path / "t.parquet", rows), "timelens", images="frames")
    assert (row.video, row.truth, row.images, row.problems) == ("a.mp4", [1.0, 2.5], ("1.jpg", "2.jpg"), ())


def test_two_files_that_differ_in_their_suffix_alone_have_rows_with_different_names(tmp_path: Path) -> None:
    (tmp_path / "test.json").write_text(json.dumps([CHOICE, CHOICE]))
    write_parquet(tmp_path / "test.parquet", [CHOICE, CHOICE])
    assert [row.label for row in rows_of(tmp_path, "table")] == ["test/0", "test/1", "test/0#2", "test/1#2"]


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("rows.json", "[]")


@pytest.mark.parametrize(
    ("name", "write", "says"),
    [
        ("rows.zip", zipped, "a zip archive; unpack it"),
        ("rows.json", zipped, "a zip archive; unpack it"),
        ("rows.json", lambda path: path.write_bytes(gzip.compress(b"[]")), "a gzip file; unpack it"),
        (
            "rows.parquet",
            lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n"),
            "a pointer of Git LFS",
        ),
        ("rows.csv", lambda path: path.write_text("<!DOCTYPE html><html>log in</html>"), "a web page"),
    ],
)
def test_what_a_download_leaves_in_place_of_the_file_is_named(name: str, write: Any, says: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    with pytest.raises(AnnotationError, match=f"{name}: {says}"):
        read_rows(tmp_path / name, "table")


@pytest.mark.parametrize(
    ("names", "letter"),
    [
        ("ABCDE", "B"),
        (["a0", "a1", "a2", "a3", "a4"], "b"),
        (["option_1", "option_2", "option_3"], 2),
        (["choice0", "choice1", "choice2"], "two"),
        (["optionA", "optionB", "optionC"], "(B)"),
    ],
)
def test_options_are_found_in_columns_of_their_own(names: list[str], letter: Any, tmp_path: Path) -> None:
    texts = ["one", "two", "three", "four", "five"][: len(names)]
    rows = [
        {"answer": letter, **dict(zip(names, texts, strict=True)), "question": "q", "video": "v", "more": 1},
        {"answer": {2: 3}.get(letter, "C"), **dict(zip(names, texts, strict=True)), "question": "q2", "video": "v"},
    ]
    path = tmp_path / "t.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    first, second = rows_of(path, "table")
    assert first.options == tuple(f"({a}) {text}" for a, text in zip("ABCDE", texts, strict=False))
    assert (first.truth, second.truth, first.problems) == ("(B)", "(C)", ())


def test_options_behind_an_empty_column_keep_their_letters(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text("video\tquestion\tA\tB\tC\tD\tanswer\nv\tq\tone\t\tthree\t\tC\n")
    (row,) = rows_of(path, "table")
    assert (row.options, row.truth) == (("(A) one", "(C) three"), "(C)")


def indexed(answers: list[Any], role: str = "answer", options: list[str] | None = None) -> list[dict[str, Any]]:
    row = {name: value for name, value in CHOICE.items() if name != "answer"}
    return [
        {**row, "question": f"q{place}", role: answer, **({"options": options} if options else {})}
        for place, answer in enumerate(answers)
    ]


@pytest.mark.parametrize(
    ("rows", "letters"),
    [
        (indexed([0, 1, 2]), "ABC"),
        (indexed(["0", "1", "2"]), "ABC"),
        (indexed([1, 2, 3]), "ABC"),
        (indexed([1.0, 3.0, 2.0]), "ACB"),
        (indexed([0, 1], options=["2", "1", "0"]), "CB"),  # texts of options
        (indexed([3, 1, 2] * 7, role="answer_index"), "CAB" * 7),
        (indexed([0, 1, 2], role="answer_index"), "ABC"),
        (indexed(["a", "B", "(c)"]), "ABC"),
    ],
)
def test_numbers_of_options_count_from_0_or_1_as_the_file_shows(
    rows: list[dict[str, Any]], letters: str, tmp_path: Path
) -> None:
    (tmp_path / "t.json").write_text(json.dumps(rows))
    assert "".join(row.truth[1] for row in rows_of(tmp_path / "t.json", "table")) == letters


def test_a_number_that_may_count_from_0_or_from_1_is_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps(indexed([1, 2])))
    for row in rows_of(tmp_path / "t.json", "table"):
        (problem,) = row.problems
        assert problem.is_contradiction and "data.columns.answer_index=NAME" in problem.text
    rows = rows_of(tmp_path / "t.json", "table", answer_index="answer")
    assert [row.truth for row in rows] == ["(B)", "(C)"]


def test_of_options_with_one_text_the_first_counts(tmp_path: Path) -> None:
    row = {"video": "v.mp4", "question": "q", "candidates": ["red", "blue", "red"], "answer": "red"}
    (tmp_path / "t.json").write_text(json.dumps([row]))
    (tmp_path / "v.mp4").touch()
    data = DataConfig.model_validate({"format": "mvbench"})
    found = load_annotations(tmp_path / "t.json", videos=tmp_path, data=data, keep="published")
    assert [item.truth for item in found.items] == ["(A)"] and "options A, C" in found.dirty[0].problem
    assert load_annotations(tmp_path / "t.json", videos=tmp_path, data=data).items == ()


def test_long_numbers_in_columns_of_floats_stay_whole(tmp_path: Path) -> None:
    row = {**CHOICE, "options": [12345678.0, 0.123456789], "answer": 0.123456789, "qid": 12345678.0}
    (found,) = rows_of(write_parquet(tmp_path / "t.parquet", [row]), "table")
    assert found.options == ("(A) 12345678", "(B) 0.123456789")
    assert (found.truth, found.labels["qid"], found.problems) == ("(B)", "12345678", ())


NEXTGQA = {
    "video": "1/2.mp4",
    "question": "why",
    "options": ["wind", "cat"],
    "answer": "B",
    "glue": [[1, 2]],
    "duration": 9,
}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"answer": "b"},
        {"answer": "cat"},
        {"answer": 1},
        {"answer": "(B) cat"},
        {"options": "['wind', 'cat']"},
        {"options": ["A. wind", "B. cat"]},
        {"options": "(A) wind (B) cat"},
        {"glue": "[[1.0, 2.0]]"},
        {"glue": [1, 2]},
        {"glue": [["1", "2.0"]]},
        {"glue": [{"start": 1, "end": 2}]},
        {"duration": "9.0"},
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_spellings_of_nextgqa(change: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}"
    row = json.dumps({**NEXTGQA, **change})
    path.write_text(f"{row}\n{{broken\n" if suffix == ".jsonl" else f"[{row}]")
    first, *rest = rows_of(path, "nextgqa")
    assert (first.options, first.truth) == (("(A) wind", "(B) cat"), {"answer": "(B)", "glue": [[1.0, 2.0]]})
    assert first.problems == () and all("not JSON" in row.problems[0].text for row in rest)


def test_the_table_of_nextqa_has_indices_and_one_file_of_periods_of_another_name(tmp_path: Path) -> None:
    path = tmp_path / "nextqa_test.csv"
    path.write_text(
        "video,type,qid,question,answer,a0,a1,a2,a3,a4,extra\r\n"
        "7,CH,6,how?,0,roll it,tap,strum,hit,pat,x\r\n"
        "\r\n"
        "7,CW,9,why?,4,roll it,tap,strum,hit,pat,x\r\n"
    )
    periods = {"7": {"duration": "14.6", "location": {"6": [["0.0", "4.4"]], "9": [7.1, 8.0]}}}
    (tmp_path / "gsub_test.json").write_text(json.dumps(periods), encoding="utf-8-sig")
    rows = rows_of(path, "nextgqa")
    assert [(row.truth, row.duration_s, row.problems) for row in rows] == [
        ({"answer": "(A)", "glue": [[0.0, 4.4]]}, 14.6, ()),
        ({"answer": "(E)", "glue": [[7.1, 8.0]]}, 14.6, ()),
    ]


def sequence(folder: Path, text: str, **labels: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "groundtruth.txt").write_text(text)
    for name, content in labels.items():
        (folder / f"{name}.label").write_text(content)
    for index in range(10):
        Image.new("RGB", (100, 50)).save(folder / f"{index:08d}.jpg")
    return folder


def lines(between: str, end: str, hidden: str | None = None) -> str:
    boxes = [[10 + index, 5, 20, 10] for index in range(10)]
    texts = [between.join(map(str, box)) for box in boxes]
    texts[4] = texts[4] if hidden is None else between.join([hidden] * 4)
    return "".join(text + end for text in texts)


@pytest.mark.parametrize(("between", "end"), [(",", "\n"), ("\t", "\r\n"), (" ", "\n"), (", ", " \n\n"), (",", ",\n")])
def test_boxes_of_got10k_may_be_separated_by_commas_tabs_and_spaces(between: str, end: str, tmp_path: Path) -> None:
    (row,) = rows_of(sequence(tmp_path / "s", lines(between, end), cover="8,8,8,8,8,8,8,8,8,8"), "got10k")
    assert row.problems == () and row.truth[0] == [10, 5, 30, 15] and row.labels["cover"] == ",".join("8" * 8)


@pytest.mark.parametrize(
    ("hidden", "labels"),
    [
        ("nan", {}),
        ("NaN", {"cover": "8\n" * 4 + "0\n" + "8\n" * 5}),
        ("0", {}),
        ("0", {"absence": "0\n" * 4 + "1\n" + "0\n" * 5}),
    ],
)
def test_a_frame_of_got10k_without_a_box_is_one_without_the_target(
    hidden: str, labels: dict[str, str], tmp_path: Path
) -> None:
    sequence(tmp_path / "val" / "s", lines(",", "\n", hidden), **labels)
    data = DataConfig.model_validate({"format": "got10k"})
    (item,) = load_annotations(tmp_path / "val", videos=tmp_path / "val", data=data, keep="published").items
    assert np.array(item.truth)[:, 0] == pytest.approx([(10 + at) / 100 for at in (0, 1, 3, 3, 5, 6, 8, 9)])
    assert item.labels["cover"] == "8,8,8,0,8,8,8,8"


def test_parts_of_got10k_are_read_together(tmp_path: Path) -> None:
    for name in ("train/s", "val/s"):
        sequence(tmp_path / "got" / name, lines(",", "\n"))
    data = DataConfig.model_validate({"format": "got10k"})
    found = load_annotations(tmp_path / "got", videos=tmp_path / "got", data=data, keep="published")
    assert [item.prompt_id for item in found.items] == ["got:train/s", "got:val/s"]
    assert [Path(item.media[0].uri).parent.name for item in found.items] == ["train", "val"]


@pytest.mark.parametrize(
    ("named", "there"),
    [
        ("v_abcdefghijk", "abcdefghijk.mkv"),
        ("abcdefghijk", "v_abcdefghijk.mp4"),
        ("abcdefghijk.mp4", "abcdefghijk.webm"),
        ("./video/abc.mp4", "abc.mkv"),
        ("abc", "abc.mp4"),
    ],
)
def test_a_video_is_found_under_the_names_of_other_downloads(named: str, there: str, tmp_path: Path) -> None:
    (tmp_path / there).touch()
    row = {"video": named, "caption": "it falls", "timestamp": [1.0, 2.0]}
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    data = DataConfig.model_validate({"format": "activitynet"})
    (item,) = load_annotations(tmp_path / "t.jsonl", videos=tmp_path, data=data).items
    assert Path(item.media[0].uri).name == there


def test_chats_with_images_are_read(tmp_path: Path) -> None:
    def chat(*parts: dict[str, Any]) -> dict[str, Any]:
        user = {"role": "user", "content": [*parts, {"type": "text", "text": "<image>\nDescribe it."}]}
        return {
            "messages": [user, {"role": "assistant", "content": "A cat sits."}],
            "extra_info": {"events": ["it sits"]},
        }

    picture = {"type": "image", "image": "1.jpg"}
    chats = [
        chat(picture),
        chat(picture, {"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "2.jpg"}}),
        chat({"type": "video_url", "video_url": {"url": "3.mp4"}}),
        {
            "video": "4.mp4",
            "conversations": [{"from": "human", "value": "<video>\nSay."}, {"from": "gpt", "value": "A dog."}],
        },
    ]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(one) + "\n" for one in chats))
    rows = rows_of(tmp_path / "c.jsonl", "dream1k")
    assert [(row.medium, row.video, row.frames) for row in rows] == [
        ("image", "1.jpg", ()),
        ("list", "1.jpg", ("1.jpg", "2.jpg")),
        ("clip", "3.mp4", ()),
        ("clip", "4.mp4", ()),
    ]
    assert {row.question for row in rows[:3]} == {"Describe it."} and rows[3].question == "Say."
    assert (
        rows[0].truth == {"caption": "A cat sits.", "events": ["it sits"]}
        and [row.problems for row in rows] == [()] * 4
    )


def test_a_row_with_an_unquoted_comma_is_dirty_and_alone(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("video,question,A,B,answer\nv,first, then?,one,two,B\nv,q,one,two,B,,\nv,q2,one,two\n")
    bad, fine, short = rows_of(path, "table")
    assert "6 fields for 5 columns" in bad.problems[0].text and not bad.problems[0].is_contradiction
    assert (fine.truth, fine.problems) == ("(B)", ()) and short.problems[0].field == "answer"
    (tmp_path / "gsub_val.json").write_text('{"7": {"duration": 9, "location": {"1": [[1, 2]], "2": [[1, 2]]}}}')
    table = tmp_path / "val.csv"
    table.write_text(
        "video,question,answer,qid,type,a0,a1,a2,a3,a4\n7,how, why?,a,1,CH,a,b,c,d,e\n7,q,b,2,CH,a,b,c,d,e\n"
    )
    assert [bool(row.problems) for row in rows_of(table, "nextgqa")] == [True, False]


def test_quotation_marks_of_texts(tmp_path: Path) -> None:
    tsv, csv_file = tmp_path / "t.tsv", tmp_path / "t.csv"
    tsv.write_text('video\tquestion\tA\tB\tanswer\nv\t"why" he asks\tone\ttwo\tB\nv\tan " alone\tone\ttwo\tA\n')
    assert [(row.question, row.truth) for row in rows_of(tsv, "table")] == [
        ('"why" he asks', "(B)"),
        ('an " alone', "(A)"),
    ]
    csv_file.write_text('video,question,A,B,answer\nv,"why,one,two,B\nv,q,one,two,A\n')
    with pytest.raises(AnnotationError, match=r"t\.csv: not a csv file \(a quotation mark .* never closed\)"):
        read_rows(csv_file, "table")


@pytest.mark.parametrize("name", ["t.json", "t.jsonl"])
def test_json_lines_and_json_lists_under_each_others_names(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(json.dumps(CHOICE) + "\n\n" + json.dumps({**CHOICE, "question": "who?"}) + "\n{\n")
    assert [bool(row.problems) for row in rows_of(tmp_path / name, "table")] == [False, False, True]
    (tmp_path / name).write_text(json.dumps([CHOICE]))
    assert [row.truth for row in rows_of(tmp_path / name, "table")] == ["(B)"]


@pytest.mark.parametrize(("name", "between"), [("t.csv", ";"), ("t.csv", "\t"), ("t.tsv", ",")])
def test_a_table_may_be_separated_otherwise_than_its_suffix_says(name: str, between: str, tmp_path: Path) -> None:
    rows = [["video", "question", "A", "B", "answer"], ["v", "q", "one", "two", "B"]]
    (tmp_path / name).write_text("".join(between.join(row) + "\n" for row in rows))
    assert [row.truth for row in rows_of(tmp_path / name, "table")] == ["(B)"]


@pytest.mark.parametrize(
    ("name", "text", "format", "says"),
    [
        ("t.txt", "hello\nworld\n", "charades_sta", "no line is ID start end##sentence"),
        ("t.json", '{"a": {"b": 1}}', "charades_sta", "no entry of it has timestamps"),
        ("t.json", json.dumps([{"path": "p", "object": "o", "gt": []}]), "nextgqa", "no row of it has video, question"),
        ("t.json", json.dumps([{"video": "v", "question": "q"}]), "vidtab", "no row of it has instruction, answer"),
    ],
)
def test_a_file_of_another_data_set_is_one_sentence(
    name: str, text: str, format: str, says: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(AnnotationError, match=f"{name}: not in the shape of {format}: {says}"):
        read_rows(tmp_path / name, format)
