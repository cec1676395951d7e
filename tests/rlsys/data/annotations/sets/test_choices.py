"""Multiple-choice and numeric benchmarks: files of the published shape, made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from rlsys.config.run import DataConfig
from rlsys.data.annotations.annotations import Annotations, load_annotations
from rlsys.data.annotations.reading import read_rows
from rlsys.data.annotations.sets.choices import MVBENCH_FOLDERS, subtitles
from rlsys.types import ImageSpec, VideoSpec


def loaded(path: Path, format: str, *names: str) -> Annotations:
    for name in names:
        (path.parent / "media" / name).parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "media" / name).touch()
    data = DataConfig.model_validate({"format": format})
    return load_annotations(path, videos=path.parent / "media", data=data)


MME = {
    "video_id": "001",
    "duration": "short",
    "domain": "Knowledge",
    "sub_category": "Humanity & History",
    "url": "https://www.youtube.com/watch?v=fFjv93ACGo8",
    "videoID": "fFjv93ACGo8",
    "question_id": "001-1",
    "task_type": "Counting Problem",
    "question": "When demonstrating the Germany modern Christmas tree, how many are there?",
    "options": ["A. Apples.", "B. Candles.", "C. Berries.", "D. The three kinds are of the same number."],
    "answer": "C",
}
MME_LABELS = {
    "video": "fFjv93ACGo8",
    "duration_class": "short",
    "category": "Knowledge",
    "sub_category": "Humanity & History",
    "question_type": "Counting Problem",
    "qid": "001-1",
}


def test_video_mme_is_read_from_parquet_and_from_tsv(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist([MME]), tmp_path / "test.parquet")
    (item,) = loaded(tmp_path / "test.parquet", "video_mme", "fFjv93ACGo8.mp4").items
    assert item.truth == "(C)" and item.options[2] == "(C) Berries." and item.labels == MME_LABELS
    values = {
        "index": "0",
        "video": "fFjv93ACGo8",
        "video_path": "./video/fFjv93ACGo8.mp4",
        "candidates": repr(MME["options"]),
        **{name: str(MME[name]) for name in ("duration", "domain", "sub_category", "task_type", "question", "answer")},
    }
    (tmp_path / "mme.tsv").write_text("\t".join(values) + "\n" + "\t".join(values.values()) + "\n")
    (item,) = loaded(tmp_path / "mme.tsv", "video_mme").items
    assert item.truth == "(C)" and item.options[2] == "(C) Berries." and item.labels == {**MME_LABELS, "qid": "0"}


def test_video_mme_with_subtitles_puts_what_is_said_before_the_question(tmp_path: Path) -> None:
    (tmp_path / "subtitle").mkdir()
    cues = ("1", "00:00:01,000 --> 00:00:02,500", "<i>Hello</i> there", "", "2", "00:00:03,000 --> 00:00:04,000")
    srt = "\ufeff" + "\r\n".join((*cues, "{\\an8}12 trees", ""))
    (tmp_path / "subtitle" / "fFjv93ACGo8.srt").write_bytes(srt.encode())
    assert subtitles(tmp_path / "subtitle" / "fFjv93ACGo8.srt") == "Hello there 12 trees"
    other = {**MME, "videoID": "other"}
    parquet.write_table(pyarrow.Table.from_pylist([MME, other]), tmp_path / "test.parquet")
    said, silent = loaded(tmp_path / "test.parquet", "video_mme_subtitles", "fFjv93ACGo8.mp4", "other.mp4").items
    expected = "This video's subtitles are listed below:\nHello there 12 trees\nWhen demonstrating the Germany modern"
    assert said.question.startswith(expected) and said.labels == MME_LABELS
    assert silent.question.startswith("This video's subtitles are listed below:\nNo subtitles available\nWhen")


def test_mvbench_is_read_from_a_folder_with_parts_and_frame_folders(tmp_path: Path) -> None:
    folder = tmp_path / "json"
    folder.mkdir()
    sequence = {
        "video": "ZS9XR.mp4",
        "question": "What happened after the person took the food?",
        "candidates": ["Ate the medicine.", "Tidied up the blanket.", "Put down the cup.", "Took the box."],
        "answer": "Ate the medicine.",
        "question_id": "Interaction_T1",
        "start": 11.1,
        "end": 19.6,
    }
    frames = {
        "video": "castle_s05",
        "question": "Why?",
        "candidates": ["No", "Yes"],
        "answer": "Yes",
        "start": 1,
        "end": 4,
    }
    count = {"video": "video_1.mp4", "question": "How many?", "candidates": ["3", "2"], "answer": "2", "start": 0}
    for name, row in (("action_sequence", sequence), ("episodic_reasoning", frames), ("action_count", count)):
        (folder / f"{name}.json").write_text(json.dumps([row]))
    castle = tmp_path / "media" / "tvqa" / "frames_fps3_hq" / "castle_s05"
    castle.mkdir(parents=True)
    for index in range(15):
        Image.new("RGB", (56, 56)).save(castle / f"{index:05d}.jpg")
    found = loaded(folder, "mvbench", "star/Charades_v1_480/ZS9XR.mp4", "video_1.mp4")
    assert found.dirty == ()
    by_type = {item.labels["question_type"]: item for item in found.items}
    assert set(by_type) == {"action_sequence", "episodic_reasoning", "action_count"}
    spec = by_type["action_sequence"].media[0]
    assert isinstance(spec, VideoSpec) and spec.window_s == (11.1, 19.6)
    assert by_type["action_sequence"].truth == "(A)" and by_type["action_count"].truth == "(B)"
    spec = by_type["episodic_reasoning"].media[0]
    assert isinstance(spec, VideoSpec) and (spec.folder_fps, spec.window_s) == (3.0, (1.0, 4.0))
    assert by_type["action_sequence"].prompt_id == "json:action_sequence/0"
    assert len(MVBENCH_FOLDERS) == 20


PERCEPTION = {
    "id": 3,
    "question": "Is the camera moving or static?",
    "options": ["I don't know", "moving", "static or shaking"],
    "answer_id": 2,
    "area": "physics",
    "reasoning": "descriptive",
    "tag": ["motion", "camera"],
}


@pytest.mark.parametrize("shape", ["nested", "rows"])
def test_perception_test_is_read_in_both_its_forms(shape: str, tmp_path: Path) -> None:
    nested = {"video_10": {"metadata": {"split": "valid"}, "mc_question": [PERCEPTION]}}
    row = {**PERCEPTION, "video_name": "video_10", "answer_id": "2", "question_id": "3"}
    (tmp_path / "mc.json").write_text(json.dumps(nested if shape == "nested" else [row]))
    (item,) = loaded(tmp_path / "mc.json", "perception_test", "video_10.mp4").items
    assert item.truth == "(C)" and item.options[2] == "(C) static or shaking"
    assert item.labels == {
        "video": "video_10",
        "area": "physics",
        "reasoning": "descriptive",
        "tag": "motion, camera",
        "qid": "3",
    }


def test_vsi_bench_has_choices_and_numbers_and_joins_the_levels_of_directions(tmp_path: Path) -> None:
    base = {"dataset": "scannet", "scene_name": "scene0001_00", "question": "q?"}
    rows: list[dict[str, Any]] = [
        {
            **base,
            "id": 0,
            "question_type": "object_rel_direction_hard",
            "options": ["A. front-left", "B. back-right", "C. back-left", "D. front-right"],
            "ground_truth": "D",
        },
        {**base, "id": 1, "question_type": "object_counting", "options": None, "ground_truth": "4"},
        {**base, "id": 2, "question_type": "room_size_estimation", "options": None, "ground_truth": "23.4"},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "test.parquet")
    found = loaded(tmp_path / "test.parquet", "vsi_bench", "scannet/scene0001_00.mp4")
    assert [(item.task, item.truth) for item in found.items] == [
        ("multiple_choice", "(D)"),
        ("numeric_qa", 4.0),
        ("numeric_qa", 23.4),
    ]
    assert found.items[0].labels == {
        "video": "scannet/scene0001_00.mp4",
        "question_type": "object_rel_direction_hard",
        "category": "object_rel_direction",
        "subset": "scannet",
        "qid": "0",
    }
    lines = tmp_path / "test.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(loaded(lines, "vsi_bench").items) == 3


def test_r4d_bench_has_a_marked_image_beside_the_video_and_answers_of_mixed_types(tmp_path: Path) -> None:
    base = {"benchmark": "STI-Bench", "video": "v/1.mp4", "source": "ScanNet", "som_image": "som/1.png"}
    rows = [
        {
            **base,
            "id": 11,
            "task": "VG",
            "question": "How tall is <obj_1>?",
            "question_raw": "How tall is the chair?",
            "options": [1, 1.5, 2, "more"],
            "answer": 1.5,
        },
        {**base, "id": 12, "task": "T", "question": "Does <obj_1> move?", "options": ["no", "yes"], "answer": "yes"},
        {**base, "id": 13, "task": "FP", "question": "and <obj_2>?", "options": [2, 3], "answer": "3"},
        {**base, "id": 14, "task": "R", "question": "?", "options": ["a", "b"], "answer": "a", "som_image": "no.png"},
    ]
    (tmp_path / "media" / "som").mkdir(parents=True)
    Image.new("RGB", (56, 56)).save(tmp_path / "media" / "som" / "1.png")
    path = tmp_path / "test.json"
    path.write_text(json.dumps(rows))
    found = loaded(path, "r4d_bench", "v/1.mp4")
    assert [item.truth for item in found.items] == ["(B)", "(B)", "(B)"]
    first = found.items[0]
    assert first.question == "How tall is <obj_1>?" and first.options == ("(A) 1", "(B) 1.5", "(C) 2", "(D) more")
    video, image = first.media
    assert isinstance(video, VideoSpec) and isinstance(image, ImageSpec) and image.uri.endswith("som/1.png")
    assert first.labels == {
        "video": "v/1.mp4",
        "category": "VG",
        "subset": "static",
        "benchmark": "STI-Bench",
        "source": "ScanNet",
        "qid": "11",
    }
    assert [item.labels["subset"] for item in found.items[1:]] == ["dynamic", "dynamic"]
    assert [(row.row, row.field, row.is_missing) for row in found.dirty] == [("3", "images", True)]


def test_a_broken_line_of_a_set_is_one_dirty_row(tmp_path: Path) -> None:
    path = tmp_path / "mc.json"
    path.write_text(json.dumps({"a": {"mc_question": [PERCEPTION, 7]}, "b": {"mc_question": [PERCEPTION]}}))
    rows, _ = read_rows(path, "perception_test")
    assert [(row.label, [problem.text for problem in row.problems]) for row in rows] == [
        ("a/0", []),
        ("a/1", ["mc_question 1 is not an object"]),
        ("b/0", []),
    ]
