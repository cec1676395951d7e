from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlsys.config.data import DataConfig
from rlsys.data.annotations.annotations import Annotations, load_annotations
from rlsys.data.annotations.reading import read_rows
from rlsys.data.video.decode import decode
from rlsys.data.video.errors import AnnotationError
from rlsys.tasks.table import TASKS, prompt_text
from tests.support.reports import report
from tests.support.video_files import REPO, shared_data

REAL_CLIPS = REPO / "tests" / "data" / "real_clips.json"


def write(folder: Path, tree: object, name: str = "rows.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(tree))
    return path


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder / "videos"


def load_charades(folder: Path, entry: object, **data: object) -> Annotations:
    return load_annotations(write(folder, {"clip": entry}), videos=touch(folder, "clip.mp4"), data=DataConfig(**data))


DIRTY = {
    "duration": 10.0,
    "timestamps": [[1.0, 4.0], [8.0, 10.5], [5.0, 5.0], [1.0, 4.0], [1.0, 4.0], [11.0, 12.0], [3, "x"], [1.0, 2.0]],
    "sentences": ["a", "b", "c", "A ", "d", "e", "f", "  "],
}


def test_dirty_charades_rows_are_dropped_one_by_one(tmp_path: Path) -> None:
    loaded = load_charades(tmp_path, DIRTY)
    assert [item.prompt_id for item in loaded.items] == ["rows:clip/0", "rows:clip/4"]
    assert [item.truth for item in loaded.items] == [[1.0, 4.0], [1.0, 4.0]]
    assert (loaded.num_videos, loaded.num_queries) == (1, 8)
    assert [(row.row, row.field, row.action) for row in loaded.dirty] == [
        ("clip/1", "timestamps", "dropped"),
        ("clip/2", "timestamps", "dropped"),
        ("clip/3", "sentences", "dropped"),
        ("clip/5", "timestamps", "dropped"),
        ("clip/6", "timestamps", "dropped"),
        ("clip/7", "sentences", "dropped"),
    ]
    problems = [row.problem for row in loaded.dirty]
    assert problems[0] == "[8.0, 10.5] goes past the clip of 10 s"
    assert problems[1] == "[5.0, 5.0] does not end after it starts"
    assert problems[4] == "[3, 'x'] is not [start, end] in seconds"


def test_clipping_mends_what_goes_past_the_end_and_nothing_else(tmp_path: Path) -> None:
    loaded = load_charades(tmp_path, DIRTY, on_dirty_row="clip")
    assert [(item.prompt_id, item.truth) for item in loaded.items][1] == ("rows:clip/1", [8.0, 10.0])
    assert len(loaded.items) == 3
    assert [row.action for row in loaded.dirty] == ["clipped", *["dropped"] * 5]


def test_stopping_names_file_row_field_value_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError) as caught:
        load_charades(tmp_path, DIRTY, on_dirty_row="stop")
    assert str(caught.value) == (
        f"{tmp_path / 'rows.json'}: row clip/1: timestamps: [8.0, 10.5] goes past the clip of 10 s; "
        "fix the file, or set data.on_dirty_row to drop or clip."
    )


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ({"timestamps": [[0, 1]], "sentences": ["a"]}, "duration"),
        ({"duration": -3, "timestamps": [[0, 1]], "sentences": ["a"]}, "duration"),
        ({"duration": float("nan"), "timestamps": [[0, 1]], "sentences": ["a"]}, "duration"),
        ({"duration": True, "timestamps": [[0, 1]], "sentences": ["a"]}, "duration"),
        ({"duration": 9.0, "timestamps": [[False, True]], "sentences": ["a"]}, "timestamps"),
        ({"duration": 9.0, "timestamps": [[0, 1], [2, 3]], "sentences": ["a"]}, "timestamps"),
        ({"duration": 9.0, "timestamps": [[0, float("nan")]], "sentences": ["a"]}, "timestamps"),
        (["not", "a", "video"], "(row)"),
    ],
)
def test_a_broken_entry_is_a_dirty_row_and_not_a_crash(tmp_path: Path, entry: object, field: str) -> None:
    loaded = load_charades(tmp_path, entry, on_dirty_row="clip")
    assert loaded.items == ()
    assert [row.field for row in loaded.dirty] == [field]


@pytest.mark.parametrize(
    ("text", "message"),
    [("[1, 2]", "not in the shape of charades_sta"), ("{", "not JSON"), ("", "not JSON")],
)
def test_a_file_of_another_shape_is_an_error_naming_it(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(AnnotationError, match=message) as caught:
        load_annotations(path, videos=tmp_path, data=DataConfig())
    assert str(path) in str(caught.value)


def test_missing_files_and_folders_are_errors_naming_them(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"none\.json: cannot be read"):
        load_annotations(tmp_path / "none.json", videos=tmp_path, data=DataConfig())
    with pytest.raises(AnnotationError, match="no such folder of videos; check data.videos"):
        load_annotations(write(tmp_path, {}), videos=tmp_path / "none", data=DataConfig())
    with pytest.raises(AnnotationError, match="the formats are charades_sta, activitynet"):
        read_rows(write(tmp_path, {}), "coco")


def test_videos_are_found_with_and_without_suffix_and_missing_ones_are_dirty(tmp_path: Path) -> None:
    entry = {"duration": 5.0, "timestamps": [[0, 1]], "sentences": ["a"]}
    names = ["plain", "with.mp4", "matroska", "web", "old", "a.dotted.id", "gone"]
    videos = touch(tmp_path, "plain.mp4", "with.mp4", "matroska.mkv", "web.webm", "old.avi", "a.dotted.id.mp4")
    path = write(tmp_path, dict.fromkeys(names, entry))
    loaded = load_annotations(path, videos=videos, data=DataConfig())
    found = [Path(item.media[0].uri).name for item in loaded.items]
    assert found == ["plain.mp4", "with.mp4", "matroska.mkv", "web.webm", "old.avi", "a.dotted.id.mp4"]
    assert [(row.row, row.field) for row in loaded.dirty] == [("gone/0", "video")]
    assert "gone.mkv" in loaded.dirty[0].problem
    assert report(path, "charades_sta")[0].endswith("7 videos, 7 queries, 0 dirty rows")
    assert report(path, "charades_sta", videos)[0].endswith("7 videos, 7 queries, 1 dirty rows")


def test_specs_carry_the_budgets_of_the_config(tmp_path: Path) -> None:
    data = dict(fps=1.5, min_frames=6, max_frames=20, min_pixels=1000, max_pixels=2000, total_pixels=50_000)
    entry = {"duration": 5.0, "timestamps": [[0, 1]], "sentences": ["a"]}
    spec = load_charades(tmp_path, entry, **data).items[0].media[0]
    assert {name: getattr(spec, name) for name in data} == data
    assert spec.window_s is None


def nextgqa_row(**changes: object) -> dict:
    row = {
        "video": "1104/488.mp4",
        "question": "why did it fall",
        "options": ["(A) wind", "(B) cat"],
        "answer": "(B)",
        "glue": [[1.0, 2.0], [3.0, 5.0]],
        "duration": 9,
    }
    return row | changes


def test_nextgqa_rows(tmp_path: Path) -> None:
    rows = [
        nextgqa_row(),
        nextgqa_row(question="past the end", glue=[[1, 2], [8.0, 9.5]]),
        nextgqa_row(question="no letter", options=["wind", "(B) cat"]),
        nextgqa_row(question="no such answer", answer="(C)"),
        nextgqa_row(question="no periods", glue=[]),
        nextgqa_row(),
    ]
    path, videos = write(tmp_path, rows, "nextgqa.json"), touch(tmp_path, "1104/488.mp4")
    loaded = load_annotations(path, videos=videos, data=DataConfig(format="nextgqa", on_dirty_row="clip"))
    assert [item.prompt_id for item in loaded.items] == ["nextgqa:0", "nextgqa:1"]
    assert loaded.items[0].options == ("(A) wind", "(B) cat")
    assert loaded.items[0].truth == {"answer": "(B)", "glue": [[1.0, 2.0], [3.0, 5.0]]}
    assert loaded.items[1].truth["glue"] == [[1.0, 2.0], [8.0, 9.0]]
    assert [(row.row, row.field) for row in loaded.dirty] == [
        ("1", "glue"),
        ("2", "options"),
        ("3", "answer"),
        ("4", "glue"),
        ("5", "question"),
    ]
    flat = touch(tmp_path / "flat", "488.mp4")
    assert len(load_annotations(path, videos=flat, data=DataConfig(format="nextgqa")).items) == 1


def test_got10k_rows_are_frame_folders_shown_by_eight_frames(tmp_path: Path) -> None:
    box = [0.1, 0.2, 0.5, 0.6]
    rows = [
        {"path": "/data/of/authors/val/Val_1", "object": "sloth", "gt": [box] * 8},
        {"path": "/data/of/authors/val/Val_1", "object": "cat", "gt": [box] * 7},
        {"path": "/data/of/authors/val/Val_1", "object": "dog", "gt": [box] * 7 + [[0.5, 0.2, 0.1, 0.6]]},
    ]
    path, videos = write(tmp_path, rows), touch(tmp_path, "Val_1/0001.jpg")
    loaded = load_annotations(path, videos=videos, data=DataConfig(format="got10k"))
    (item,) = loaded.items
    assert (item.question, item.truth) == ("sloth", [box] * 8)
    assert Path(item.media[0].uri) == videos / "Val_1"
    assert (item.media[0].min_frames, item.media[0].max_frames, item.media[0].fps) == (8, 8, 10.0)
    assert [row.problem for row in loaded.dirty] == [
        "7 boxes, 8 are expected",
        "box 7 is [0.5, 0.2, 0.1, 0.6], not [x0, y0, x1, y1] with 0 <= x0 < x1 <= 1, likewise y",
    ]
    assert any("8 evenly spaced frames" in line for line in report(path, "got10k"))


def test_the_whole_of_charades_sta_is_counted_and_every_dirty_row_reported() -> None:
    lines = report(shared_data("annotations", "charades_sta_train.json"), "charades_sta")
    assert lines[0].endswith("5338 videos, 12408 queries, 1790 dirty rows")
    dirty = lines[2:]
    assert len(dirty) == 1790
    assert sum("goes past the clip" in line for line in dirty) == 1786
    assert sum("does not end after it starts" in line for line in dirty) == 4
    assert "Y6R7T/0: timestamps: [20.8, 30.0] goes past the clip of 29.46 s [clip fixes it]" in dirty


@pytest.mark.parametrize(
    ("name", "format", "counts"),
    [
        ("nextgqa_val.json", "nextgqa", "567 videos, 3358 queries, 3 dirty rows"),
        ("got10k_val.json", "got10k", "180 videos, 180 queries, 0 dirty rows"),
    ],
)
def test_other_real_files_are_read_whole(name: str, format: str, counts: str) -> None:
    assert report(shared_data("annotations", name), format)[0].endswith(counts)


@pytest.mark.parametrize("format", ["charades_sta", "nextgqa", "got10k"])
def test_truths_and_questions_are_what_the_task_table_reads(tmp_path: Path, format: str) -> None:
    name = {"charades_sta": "charades_sta_train", "nextgqa": "nextgqa_val", "got10k": "got10k_val"}[format]
    tree = json.loads(shared_data("annotations", f"{name}.json").read_text())
    if format == "charades_sta":
        tree = dict(list(tree.items())[:5])
        videos = touch(tmp_path, *(f"{video}.mp4" for video in tree))
    elif format == "nextgqa":
        tree = tree[:5]
        videos = touch(tmp_path, *(row["video"] for row in tree))
    else:
        tree = tree[:5]
        videos = touch(tmp_path, *(f"{Path(row['path']).name}/0.jpg" for row in tree))
    loaded = load_annotations(write(tmp_path, tree), videos=videos, data=DataConfig(format=format, on_dirty_row="clip"))
    assert len(loaded.items) == loaded.num_queries > 0
    for item in loaded.items:
        assert TASKS[item.task].read_truth(item.truth)
        assert item.question in prompt_text(item, think=True, style="full")


def test_the_hand_made_annotations_fit_the_real_clips() -> None:
    loaded = load_annotations(
        REAL_CLIPS, videos=shared_data("clips"), data=DataConfig(max_frames=8, max_pixels=128 * 28 * 28)
    )
    assert (len(loaded.items), loaded.num_videos, loaded.dirty) == (12, 4, ())
    durations = {entry: row["duration"] for entry, row in json.loads(REAL_CLIPS.read_text()).items()}
    for name, item in zip(durations, loaded.items[::3], strict=True):
        assert decode(item.media[0]).info.duration_s == pytest.approx(durations[name], abs=0.01)


def test_reading_annotations_loads_no_decoder_and_no_framework() -> None:
    code = (
        "import sys, rlsys.data.annotations.annotations, rlsys.data.sampler, rlsys.data.video.errors;"
        "print([m for m in ('ray', 'torch', 'vllm', 'decord', 'cv2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
