"""Grounding, tracking, caption and quality sets in every form in which they are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from rlsys.config.run import DataConfig
from rlsys.data.annotations.annotations import Annotations, load_annotations
from rlsys.data.annotations.reading import read_rows
from rlsys.data.annotations.rows import AnnotationRow
from rlsys.data.video.decode import decode
from rlsys.data.video.errors import AnnotationError
from tests.support.video_files import shared_data


def rows_of(path: Path, format: str) -> list[AnnotationRow]:
    return read_rows(path, format)[0]


def published(path: Path, format: str, videos: Path) -> Annotations:
    data = DataConfig.model_validate({"format": format})
    return load_annotations(path, videos=videos, data=data, keep="published")


GROUNDING = [
    {"video": "3MSZA.mp4", "caption": "person turn a light on.", "timestamp": [24.3, 30.4]},
    {"video": "3MSZA.mp4", "caption": "person flips the light switch.", "timestamp": [24.3, 30.4]},
]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "json"])
def test_charades_rows_of_the_hub_are_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"test.{suffix}"
    if suffix == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(GROUNDING), path)
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in GROUNDING))
    else:
        path.write_text(json.dumps(GROUNDING))
    rows = rows_of(path, "charades_sta")
    assert [(row.video, row.question, row.truth, row.task, row.problems) for row in rows] == [
        ("3MSZA.mp4", "person turn a light on.", [24.3, 30.4], "temporal_grounding", ()),
        ("3MSZA.mp4", "person flips the light switch.", [24.3, 30.4], "temporal_grounding", ()),
    ]


def test_a_hub_row_past_its_clip_counts_as_published(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    rows = [
        {"video": "v", "caption": "a", "timestamp": [1, 12], "duration": 10},
        {"video": "v", "caption": "b", "timestamp": [11, 12], "duration": 10},
        {"video": "v", "caption": "c", "timestamp": [5, 5], "duration": 10},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "v.mp4").touch()
    found = published(path, "charades_sta", tmp_path)
    assert [item.truth for item in found.items] == [[1.0, 12.0], [11.0, 12.0]]
    assert [row.prompt_id for row in found.unanswerable] == ["test:3"]


def test_activitynet_names_are_taken_as_they_are(tmp_path: Path) -> None:
    entry = {"duration": 55.15, "timestamps": [[0.28, 55.15], [13.79, 54.32]], "sentences": ["A man.", "He cuts."]}
    (tmp_path / "val_1.json").write_text(json.dumps({"v_uqiMw7tQ1Cc": entry}))
    rows = rows_of(tmp_path / "val_1.json", "activitynet")
    assert [(row.video, row.truth, row.labels) for row in rows] == [
        ("v_uqiMw7tQ1Cc", [0.28, 55.15], {}),
        ("v_uqiMw7tQ1Cc", [13.79, 54.32], {}),
    ]


def test_timelens_is_read_in_both_its_forms(tmp_path: Path) -> None:
    tree = {"clip": {"duration": 20.0, "spans": [[1, 4], [2, 25]], "queries": ["a", "b"]}, "odd": {"duration": 3}}
    (tmp_path / "bench.json").write_text(json.dumps(tree))
    rows = rows_of(tmp_path / "bench.json", "timelens")
    assert [(row.label, row.truth) for row in rows] == [("clip/0", [1.0, 4.0]), ("clip/1", [2.0, 20.0]), ("odd", None)]
    assert rows[1].counted and rows[1].counted.truth == [2.0, 25.0]
    assert [problem.field for problem in rows[1].problems] == ["spans"]
    hub = [
        {"video_path": "c/clip.mp4", "query": "a", "span": [1, 4]},
        {"video_path": "c", "query": "b", "span": [[2, 3]]},
    ]
    parquet.write_table(pyarrow.Table.from_pylist([hub[0]]), tmp_path / "bench.parquet")
    assert [(row.video, row.truth) for row in rows_of(tmp_path / "bench.parquet", "timelens")] == [
        ("c/clip.mp4", [1.0, 4.0])
    ]
    (tmp_path / "bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in hub))
    assert [row.truth for row in rows_of(tmp_path / "bench.jsonl", "timelens")] == [[1.0, 4.0], [2.0, 3.0]]


def sequence(folder: Path, boxes: np.ndarray, **files: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "groundtruth.txt").write_text("".join(",".join(f"{x:.4f}" for x in box) + "\n" for box in boxes))
    for name, text in files.items():
        (folder / {"cover": "cover.label", "meta": "meta_info.ini"}[name]).write_text(text)
    for index in range(len(boxes)):
        Image.new("RGB", (100, 50)).save(folder / f"{index + 1:08d}.jpg")
    return folder


def moving(num: int) -> np.ndarray:
    return np.array([[10 + index, 5, 20, 10] for index in range(num)], float)


META = "[METAINFO]\nurl: x\nanno_fps: 10Hz\nobject_class: sloth\nmotion_class: climbing\nresolution: (100, 50)\n"


def test_a_sequence_of_got10k_has_eight_boxes_at_the_frames_that_are_shown(tmp_path: Path) -> None:
    boxes = moving(22)
    boxes[9] = [0, 0, 0, 0]  # index 9 = 3 of 8, unseen
    cover = "".join("0\n" if index == 9 else "8\n" for index in range(22))
    sequence(tmp_path / "val" / "GOT-10k_Val_000001", boxes, cover=cover, meta=META)
    (item,) = published(tmp_path / "val", "got10k", tmp_path / "val").items
    assert item.question == "sloth" and item.prompt_id == "val:GOT-10k_Val_000001"
    chosen = [0, 3, 6, 9, 12, 15, 18, 21]
    xs = [10 + (8 if index == 9 else index) for index in chosen]
    assert item.truth == pytest.approx(np.array([[x / 100, 0.1, (x + 20) / 100, 0.3] for x in xs]))
    assert item.labels == {
        "video": "GOT-10k_Val_000001",
        "cover": "8,8,8,0,8,8,8,8",
        "num_frames": 22.0,
        "object_class": "sloth",
        "motion_class": "climbing",
    }
    (spec,) = item.media
    assert len(decode(spec).info.times_s) == 8
    assert [round(10 * time) for time in decode(spec).info.times_s] == chosen


@pytest.mark.parametrize("named", ["folder", "one", "list"])
def test_got10k_is_read_by_its_folder_one_sequence_or_a_list(named: str, tmp_path: Path) -> None:
    for index in (1, 2):
        sequence(tmp_path / f"s{index}", moving(10))
    (tmp_path / "list.txt").write_text("s2\ns1\n")
    path = {"folder": tmp_path, "one": tmp_path / "s2", "list": tmp_path / "list.txt"}[named]
    found = published(path, "got10k", tmp_path)  # the size is that of the images
    assert [item.labels["video"] for item in found.items] == {
        "folder": ["s1", "s2"],
        "one": ["s2"],
        "list": ["s2", "s1"],
    }[named]
    assert found.items[0].truth[0] == pytest.approx([0.1, 0.1, 0.3, 0.3])


def test_broken_sequences_of_got10k_are_dirty_rows_with_their_reason(tmp_path: Path) -> None:
    sequence(tmp_path / "short", moving(3))
    sequence(tmp_path / "words", moving(9)).joinpath("groundtruth.txt").write_text("a,b,c,d\n")
    sequence(tmp_path / "cover", moving(9), cover="8\n8\n")
    beyond = moving(9)
    beyond[8] = [95, 5, 20, 10]
    sequence(tmp_path / "beyond", beyond)
    found = published(tmp_path, "got10k", tmp_path)
    reasons = {row.labels["video"]: row.reason for row in found.unanswerable}
    assert set(reasons) == {"short", "words", "cover"}
    assert "3 lines; at least 8" in reasons["short"] and "2 lines for 9 boxes" in reasons["cover"]
    assert [item.truth[-1][2] for item in found.items] == [1.0]
    with pytest.raises(AnnotationError, match="absent: cannot be read"):
        rows_of(tmp_path / "absent", "got10k")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AnnotationError, match="no sequence is in it"):
        rows_of(tmp_path / "empty", "got10k")


def test_the_real_frame_sequence_is_tracked_with_a_truth_file(tmp_path: Path) -> None:
    frames = sorted(shared_data("frames", "bedroom").glob("*.jpg"))
    with Image.open(frames[0]) as image:
        width, height = image.size
    folder = tmp_path / "bedroom"
    folder.mkdir()
    for frame in frames:
        (folder / frame.name).symlink_to(frame)
    (folder / "groundtruth.txt").write_text(f"1,1,{width // 2},{height // 2}\n" * len(frames))
    found = load_annotations(
        tmp_path, videos=tmp_path, data=DataConfig.model_validate({"format": "got10k", "links_outside": True})
    )
    (item,) = found.items
    assert found.dirty == () and item.truth[7] == pytest.approx(
        [1 / width, 1 / height, (1 + width // 2) / width, (1 + height // 2) / height]
    )


def test_vidtab_lines_are_read_with_classes_and_indices(tmp_path: Path) -> None:
    path = tmp_path / "test.txt"
    path.write_text("\ufeffa b/1378.mp4 0\n1.mp4 High Quality\n2.mp4,1\n3.mp4 5\n1.mp4 1\n4.mp4\n")
    rows = rows_of(path, "vidtab")
    assert [(row.video, row.truth, len(row.problems)) for row in rows][:3] == [
        ("a b/1378.mp4", "low quality", 0),
        ("1.mp4", "high quality", 0),
        ("2.mp4", "high quality", 0),
    ]
    assert [row.label for row in rows if row.problems] == ["4", "5", "6"]
    (real, *_) = rows_of(shared_data("annotations", "vidtab_quality_100shot.json"), "vidtab")
    assert rows[0].question == real.question  # the authors' instruction


CHAT: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "You are helpful."},
        {
            "role": "user",
            "content": [
                {"type": "video", "video": {"video_file": ["live_action/1.mp4"]}},
                {"type": "text", "text": "Describe the video in detail."},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "A man runs. He falls."}]},
    ],
    "dataset": "DREAM-1K/live_action",
    "idx": 4,
    "extra_info": {"events": ["a man runs", "he falls"]},
}


def test_dream1k_chats_are_read_with_their_events(tmp_path: Path) -> None:
    plain = {
        "messages": [{"role": "user", "content": "Describe."}, {"role": "assistant", "content": "A cat."}],
        "video_file": "2.mp4",
    }
    empty = {"messages": [{"role": "user", "content": "Describe."}], "video_file": "3.mp4"}
    path = tmp_path / "dream.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (CHAT, plain, empty)))
    first, second, third = rows_of(path, "dream1k")
    assert (first.video, first.question, first.task) == (
        "live_action/1.mp4",
        "Describe the video in detail.",
        "captioning",
    )
    assert first.truth == {"caption": "A man runs. He falls.", "events": ["a man runs", "he falls"]}
    assert first.labels == {"category": "live_action", "qid": "4"}
    assert second.truth == {"caption": "A cat."} and third.problems


@pytest.mark.parametrize(
    ("name", "format", "num_rows", "num_dirty"),
    [
        ("charades_sta_train.json", "charades_sta", 12_408, 1_790),
        ("nextgqa_val.json", "nextgqa", 3_358, 3),
        ("got10k_val.json", "got10k", 180, 0),
        ("vidtab_quality_100shot.json", "vidtab", 200, 0),
    ],
)
def test_the_real_files_are_read_whole(name: str, format: str, num_rows: int, num_dirty: int) -> None:
    rows = rows_of(shared_data("annotations", name), format)
    assert len(rows) == num_rows
    assert sum(bool(row.problems) for row in rows) == num_dirty
