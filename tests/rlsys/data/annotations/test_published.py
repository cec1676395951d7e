"""Annotation files as they are published and as people edit them: every row is read, or reported with its reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rlsys.config.run import DataConfig
from rlsys.data.annotations.annotations import Annotations, load_annotations
from rlsys.data.annotations.options import read_options
from rlsys.data.video.errors import AnnotationError
from rlsys.types import Json
from tests.support.reports import report
from tests.support.video_files import shared_data

ROW = {"duration": 20.0, "timestamps": [[0, 6.9]], "sentences": ["a"]}


def checked(path: Path, format: str = "charades_sta") -> list[str]:
    lines = report(path, format)
    "\n".join(lines).encode()  # can be printed
    return lines


def loaded(path: Path, names: list[str], **data: object) -> Annotations:
    for name in names:
        (path.parent / f"{name}.mp4").touch()
    return load_annotations(path, videos=path.parent, data=DataConfig.model_validate(data))


def test_charades_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text("3MSZA 24.3 30.4##person turn a light on.\nA B##c\n3MSZA 24.3 30.4##person turn a light on.\n")
    found = loaded(path, ["3MSZA", "A"])
    assert [(item.truth, item.question) for item in found.items] == [([24.3, 30.4], "person turn a light on.")]
    assert [row.row for row in found.dirty] == ["2", "3"]


def test_one_answer_that_is_no_index_is_a_dirty_row_of_nextgqa_and_no_other_row(tmp_path: Path) -> None:
    path = tmp_path / "val.csv"
    row = "7,369,640,480,{}?,{},{},CH,roll it,tap,strum,hit,pat\n"
    lines = [row.format(number, answer, number) for number, answer in enumerate(("0", "4", "5", "2"))]
    path.write_text("video_id,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n" + "".join(lines))
    location = {str(number): [[1, 2]] for number in range(4)}
    (tmp_path / "gsub_val.json").write_text(json.dumps({"7": {"duration": 9, "location": location}}))
    found = loaded(path, ["7"], format="nextgqa")
    assert [item.truth["answer"] for item in found.items] == ["(A)", "(E)", "(C)"]
    assert [dirty.row for dirty in found.dirty] == ["4"]


def test_names_with_spaces_and_clock_times_of_charades_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text("my video 1 2.5##a\r\nB 0:01 0:02.5s##b\r\nB 1,5 2,5##c\r\n")
    found = loaded(path, ["my video", "B"])
    assert [(item.labels["video"], item.truth) for item in found.items] == [("my video", [1, 2.5]), ("B", [1, 2.5])]
    assert [row.row for row in found.dirty] == ["3"]


def test_the_table_of_nextgqa_is_read_with_its_periods(tmp_path: Path) -> None:
    path = tmp_path / "val.csv"
    path.write_text(
        "video_id,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n"
        "7,369,640,480,how?,roll it,6,CH,roll it,tap,strum,hit,pat\n"
        "7,369,640,480,why?,roll it,9,CH,roll it,tap,strum,hit,pat\n"
        "7,369,640,480,who?,nobody,6,CH,roll it,tap,strum,hit,pat\n"
    )
    with pytest.raises(AnnotationError, match="gsub_val.json"):
        checked(path, "nextgqa")
    (tmp_path / "gsub_val.json").write_text('{"7": {"duration": 14.6, "location": {"6": [[0.0, 4.4], [7.1, 8.0]]}}}')
    found = loaded(path, ["7"], format="nextgqa")
    (item,) = found.items
    assert item.truth == {"answer": "(A)", "glue": [[0.0, 4.4], [7.1, 8.0]]}
    assert item.options == ("(A) roll it", "(B) tap", "(C) strum", "(D) hit", "(E) pat")
    assert [(row.row, row.field) for row in found.dirty] == [("3", "qid"), ("4", "answer")]


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "bom.json"
    path.write_text(json.dumps({"v": ROW}), encoding="utf-8-sig")
    assert checked(path) == [f"{path}: 1 videos, 1 queries, 0 dirty rows"]
    lines = tmp_path / "bom.jsonl"
    lines.write_text('{"video": "v", "caption": "a cat"}\n', encoding="utf-8-sig")
    assert checked(lines, "captions") == [f"{lines}: 1 videos, 1 queries, 0 dirty rows"]


def test_a_video_that_is_there_twice_keeps_all_its_queries_and_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "dup.json"
    second = {**ROW, "timestamps": [[1, 2]], "sentences": ["b"]}
    path.write_text(f'{{"v": {json.dumps(ROW)}, "v": {json.dumps(second)}}}')
    assert checked(path)[1] == "1 keys occur twice in one object, and their queries are joined: v"
    found = loaded(path, ["v"])
    assert [(item.prompt_id, item.question) for item in found.items] == [("dup:v/0", "a"), ("dup:v/1", "b")]


@pytest.mark.parametrize("token", ["<|video_pad|>", "<|im_end|>", "<|endoftext|>", "a <video> b", "</s>"])
def test_a_question_with_a_control_token_is_a_dirty_row(tmp_path: Path, token: str) -> None:
    path = tmp_path / "pad.json"
    both = {"duration": 20.0, "timestamps": [[1, 4], [5, 9]], "sentences": [f"the token {token} is shown", "a door"]}
    path.write_text(json.dumps({"a": both}))
    assert "question: holds the control token" in checked(path)[-1]
    assert [item.question for item in loaded(path, ["a"]).items] == ["a door"]


@pytest.mark.parametrize("question", ["<video>\na door opens", "a door opens\n<video>", "<image> <video> a door opens"])
def test_placeholders_around_a_question_are_dropped(tmp_path: Path, question: str) -> None:
    path = tmp_path / "tag.json"
    path.write_text(json.dumps({"a": {**ROW, "sentences": [question]}}))
    assert [item.question for item in loaded(path, ["a"]).items] == ["a door opens"]


def test_a_lone_surrogate_is_a_dirty_row_that_can_be_printed(tmp_path: Path) -> None:
    path = tmp_path / "odd.json"
    path.write_text(json.dumps({"\ud800": ROW, "b": {**ROW, "sentences": ["\udfff"]}, "c": ROW}))
    assert checked(path)[0].endswith("3 queries, 2 dirty rows")
    assert len(loaded(path, ["c"]).items) == 1


def test_values_that_are_no_times_are_dirty_rows(tmp_path: Path) -> None:
    path = tmp_path / "nan.json"
    path.write_text('{"v": {"duration": 20, "timestamps": [[NaN, 2], [1, Infinity]], "sentences": ["a", "b"]}}')
    assert checked(path)[0].endswith("2 queries, 2 dirty rows")


def test_periods_in_milliseconds_beside_a_duration_in_seconds_are_recognised(tmp_path: Path) -> None:
    path = tmp_path / "ms.json"
    path.write_text(json.dumps({"v": {**ROW, "timestamps": [[2000, 5000]]}}))
    assert "seems to be in milliseconds" in checked(path)[-1]
    path.write_text(json.dumps({"v": {**ROW, "timestamps": [[20, 50]]}}))
    assert "milliseconds" not in checked(path)[-1]


def test_messages_name_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "early.json"
    path.write_text(json.dumps({"v": {**ROW, "timestamps": [[-1, 6.9]]}}))
    assert checked(path)[-1] == "v/0: timestamps: [-1, 6.9] starts before the clip [clip fixes it]"
    text = tmp_path / "train.txt"
    text.write_text("3MSZA 24.3 30.4##person turn a light on.\n")
    with pytest.raises(AnnotationError, match="data.format=nextgqa reads a JSON file.*check data.format"):
        checked(text, "nextgqa")
    with pytest.raises(AnnotationError, match="not in the shape of vidtab: no line is PATH LABEL"):
        checked(text, "vidtab")


@pytest.mark.parametrize(
    "options",
    [
        "A. Took the towel. B. Opened the refrigerator. C. Put down the shoe.",
        "A. Took the towel., B. Opened the refrigerator., C. Put down the shoe.",
        "(A) Took the towel. (B) Opened the refrigerator. (C) Put down the shoe.",
        "Options: A) Took the towel.\nB) Opened the refrigerator.\nC) Put down the shoe.",
        "A、Took the towel B、Opened the refrigerator C、Put down the shoe",
        "Ａ．Took the towel　Ｂ．Opened the refrigerator　Ｃ．Put down the shoe",
        "（A）Took the towel （B）Opened the refrigerator （C）Put down the shoe",
        '["Took the towel", "Opened the refrigerator", "Put down the shoe"]',
        '{"A": "Took the towel", "B": "Opened the refrigerator", "C": "Put down the shoe"}',
        {"A": "Took the towel", "B": "Opened the refrigerator", "C": "Put down the shoe"},
    ],
)
def test_options_in_one_value_are_split(options: Json) -> None:
    found, problem = read_options(options)
    assert problem is None
    words = [(option.letter, option.text.rstrip(".")) for option in found]
    assert words == [("A", "Took the towel"), ("B", "Opened the refrigerator"), ("C", "Put down the shoe")]


@pytest.mark.parametrize(
    "text", ["yes or no", "A. only one", "the U.S. army. B. x", "[x, y]", '{"A": 1}', '{"a": "x"}']
)
def test_a_string_that_holds_no_options_is_reported(text: str) -> None:
    assert read_options(text)[1] is not None


def test_a_tracking_clue_is_shown_by_as_many_frames_as_it_has_boxes(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"video": "v", "question": "the dog", "clue": [[0.1, 0.1, 0.2, 0.2]] * 4}
    odd = {**row, "question": "the cat", "clue": [[0.1, 0.1, 0.2, 0.2]] * 3}
    path.write_text(f"{json.dumps(row)}\n{json.dumps(odd)}\n")
    found = loaded(path, ["v"], format="vtts")
    (item,) = found.items
    assert (item.task, item.media[0].min_frames, item.media[0].max_frames) == ("tracking", 4, 4)  # type: ignore[union-attr]
    assert "an even number" in found.dirty[0].problem


def test_quality_is_another_name_of_video_quality(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"video": "v", "question": "how is it?", "answer": "low", "task": "quality"}))
    assert [item.task for item in loaded(path, ["v"], format="vtts").items] == ["video_quality"]


@pytest.mark.parametrize(
    ("name", "format", "counts"),
    [
        ("bom.json", "charades_sta", "1 videos, 1 queries, 0 dirty rows"),
        ("bom.jsonl", "captions", "1 videos, 2 queries, 0 dirty rows"),
        ("dup.json", "charades_sta", "1 videos, 2 queries, 0 dirty rows"),
        ("names.json", "charades_sta", "5 videos, 5 queries, 0 dirty rows"),
        ("nan.json", "charades_sta", "3 videos, 5 queries, 3 dirty rows"),
        ("pad.json", "charades_sta", "1 videos, 2 queries, 1 dirty rows"),
        ("tag.json", "charades_sta", "1 videos, 1 queries, 0 dirty rows"),
        ("val_1.json", "charades_sta", "2 videos, 5 queries, 3 dirty rows"),
        ("charades_sta_train.txt", "charades_sta", "1 videos, 2 queries, 0 dirty rows"),
        ("val.csv", "nextgqa", "1 videos, 1 queries, 0 dirty rows"),
        ("seg.jsonl", "vtts", "1 videos, 1 queries, 0 dirty rows"),
        ("fold.jsonl", "vtts", "1 videos, 1 queries, 0 dirty rows"),
        ("far.json", "charades_sta", "1 videos, 2 queries, 0 dirty rows"),
        ("ms.json", "charades_sta", "1 videos, 2 queries, 0 dirty rows"),
    ],
)
def test_the_collected_files_are_read(name: str, format: str, counts: str) -> None:
    assert checked(shared_data("cases", "annotations", name), format)[0].endswith(counts)


HANDLE = {"answer": "(A)", "glue": [[0.0, 4.4], [7.1, 8.0]]}


@pytest.mark.parametrize(
    ("name", "format", "videos", "shows"),
    [
        ("bom.json", "charades_sta", ["3MSZA"], {"a": [0.0, 6.9]}),
        ("bom.jsonl", "captions", ["3MSZA"], {"q2": {"caption": "second row"}}),
        ("charades_sta_train.txt", "charades_sta", ["3MSZA"], {"person turn a light on.": [24.3, 30.4]}),
        ("dup.json", "charades_sta", ["3MSZA"], {"first": [0.0, 6.9], "second": [1.0, 2.0]}),
        ("names.json", "charades_sta", ["über clip #1 (50%)", "UPPER"], {"a": [0.0, 6.9]}),
        ("nan.json", "charades_sta", ["3MSZA", "UPPER"], {"b": [0.0, 6.9], "d": [1.0, 2.0]}),
        ("pad.json", "charades_sta", ["a"], {"a door opens": [5.0, 9.0]}),
        ("tag.json", "charades_sta", ["a"], {"a door opens": [1.0, 4.0]}),
        ("val_1.json", "charades_sta", ["v_abc123"], {"We see a shot.": [0.28, 19.9]}),
        ("val.csv", "nextgqa", ["4010069381"], {"how do the two man play the instrument": HANDLE}),
        ("seg.jsonl", "vtts", ["3MSZA"], {"A hanger is shown": [1.0, 4.0]}),
    ],
)
def test_the_collected_files_show_what_they_mean(
    name: str, format: str, videos: list[str], shows: dict[str, Json], tmp_path: Path
) -> None:
    shutil.copytree(shared_data("cases", "annotations"), tmp_path, dirs_exist_ok=True)
    found = loaded(tmp_path / name, videos, format=format)
    truths = {item.question: item.truth for item in found.items}
    assert {question: truths.get(question) for question in shows} == shows
    assert not any("<video" in item.question or "<|" in item.question for item in found.items)


def test_the_collected_part_and_the_collected_rate_are_those_of_their_rows(tmp_path: Path) -> None:
    shutil.copytree(shared_data("cases", "annotations"), tmp_path, dirs_exist_ok=True)
    (part,) = loaded(tmp_path / "seg.jsonl", ["3MSZA"], format="vtts").items
    assert part.media[0].window_s == (10.0, 20.0) and part.media[0].start_s == 10.0  # type: ignore[union-attr]
    (tmp_path / "frames1fps").mkdir()
    for index in range(30):
        (tmp_path / "frames1fps" / f"{index}.jpg").touch()
    (folder,) = loaded(tmp_path / "fold.jsonl", [], format="vtts").items
    assert folder.media[0].folder_fps == 1.0  # type: ignore[union-attr]
