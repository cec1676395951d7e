"""Rows about a part of a longer file, and the rate of a folder of frames."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from rlsys.config.run import DataConfig
from rlsys.data.annotations.annotations import Annotations, load_annotations
from rlsys.data.annotations.reading import read_rows
from rlsys.data.inspection.convert import own_row
from rlsys.data.video.decode import decode, plan_grid
from rlsys.data.video.errors import AnnotationError
from rlsys.types import Json, VideoSpec
from tests.support.video_files import frames_shown, make_video, numbered_frame

BUDGETS = dict(fps=2.0, min_pixels=28 * 28, max_pixels=112 * 112)


def load(folder: Path, row: dict[str, Json], format: str = "vtts") -> Annotations:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(row))
    return load_annotations(path, videos=folder, data=DataConfig(format=format, **BUDGETS))


def frame_folder(folder: Path, num: int) -> Path:
    folder.mkdir()
    for index in range(num):
        Image.fromarray(numbered_frame(index)).save(folder / f"{index}.png")
    return folder


def spec_of(loaded: Annotations) -> VideoSpec:
    assert loaded.dirty == ()
    spec = loaded.items[0].media[0]
    assert isinstance(spec, VideoSpec)
    return spec


@pytest.mark.parametrize(
    "names",
    [
        ("video_start", "video_end"),
        ("clip_start_s", "clip_end_s"),
        ("segment_start",) * 2,
        ("start", "end"),
        ("start_time", "end_time"),
        ("start_sec", "end_sec"),
        ("begin", "end"),
        ("video_begin_sec", "video_end_sec"),
        ("start", "stop"),
    ],
)
def test_a_part_is_shown_alone_and_the_truth_counts_from_its_start(tmp_path: Path, names: tuple[str, str]) -> None:
    make_video(tmp_path / "long.mp4", num_frames=60, fps=10.0)
    start, end = names[0], names[1].replace("start", "end")
    loaded = load(tmp_path, {"video": "long.mp4", start: 2.0, end: 5.0, "question": "when?", "clue": [0.5, 2.5]})
    clip = decode(spec_of(loaded))
    assert frames_shown(clip.frames) == [20, 25, 30, 35, 40, 45]
    # step k of the grid is shown to the model at k times this, from 0: 0.5 s of the truth is the part's second frame
    assert clip.info.second_per_grid_s == 1.0
    assert clip.info.start_s == 2.0
    assert loaded.items[0].truth == [0.5, 2.5]


def test_a_truth_in_the_time_of_the_whole_file_is_outside_its_part(tmp_path: Path) -> None:
    make_video(tmp_path / "long.mp4", num_frames=60, fps=10.0)
    row = {"video": "long.mp4", "video_start": 3.0, "video_end": 5.0, "duration": 6.0, "question": "?", "clue": [3, 4]}
    assert "outside the clip of 2 s" in load(tmp_path, row).dirty[0].problem


@pytest.mark.parametrize(
    "part",
    [
        {"video_start": 3.0},
        {"video_start": 3.0, "video_end": 3.0},
        {"video_start": -1.0},
        {"video_start": False, "video_end": 3.0},
        {"video_start": 0.0, "video_end": True},
    ],
)
def test_a_part_without_an_end_or_that_ends_before_it_starts_or_is_no_number_is_a_dirty_row(
    tmp_path: Path, part: dict
) -> None:
    make_video(tmp_path / "long.mp4", num_frames=60, fps=10.0)
    loaded = load(tmp_path, {"video": "long.mp4", "question": "?", "clue": [0, 1], **part})
    assert loaded.items == () and "video_" in loaded.dirty[0].field


def test_captions_may_be_about_a_part(tmp_path: Path) -> None:
    make_video(tmp_path / "long.mp4", num_frames=60, fps=10.0)
    row = {"video": "long.mp4", "caption": "bars", "video_start": 1, "video_end": 4}
    assert spec_of(load(tmp_path, row, "captions")).window_s == (1.0, 4.0)


@pytest.mark.parametrize(
    ("row", "own", "rate"),
    [
        ({"duration": 24.0}, None, 1.0),
        ({"fps": 4.0}, None, 4.0),
        ({}, "8", 8.0),
        ({"fps": 4.0, "duration": 6.0}, "4.0\n", 4.0),
        ({}, "8000/1001", 8000 / 1001),
        ({}, "\ufeff8.0\r\n", 8.0),
        ({}, "", 2.0),  # nothing says it: data.fps
        ({}, None, 2.0),
        ({"fps": "8000/1001"}, None, 8000 / 1001),
        ({"fps": 4.0}, "unknown", 4.0),
    ],
)
def test_a_folders_rate_is_the_rows_or_its_own(tmp_path: Path, row: dict, own: str | None, rate: float) -> None:
    folder = frame_folder(tmp_path / "frames", 24)
    if own is not None:
        (folder / "fps.txt").write_text(own)
    spec = spec_of(load(tmp_path, {"video": "frames", "question": "when?", "clue": [1, 2], **row}))
    clip = decode(spec)
    assert clip.info.duration_s == pytest.approx(24 / rate)
    # no more than data.fps of them a second are shown, at the times of the folder
    numbers = frames_shown(clip.frames)
    assert len(numbers) == min(24, round(24 / rate * 2))
    assert clip.info.times_s == pytest.approx([number / rate for number in numbers])
    assert numbers[0] == 0 and numbers[-1] == 23


@pytest.mark.parametrize(
    ("row", "own"), [({"fps": 4.0, "duration": 24.0}, None), ({"fps": 4.0}, "8"), ({"duration": 24.0}, "8")]
)
def test_rates_that_contradict_each_other_are_a_dirty_row(tmp_path: Path, row: dict, own: str | None) -> None:
    folder = frame_folder(tmp_path / "frames", 24)
    if own is not None:
        (folder / "fps").write_text(own)
    loaded = load(tmp_path, {"video": "frames", "question": "when?", "clue": [1, 2], **row})
    assert loaded.items == () and loaded.dirty[0].field.startswith("fps")


@pytest.mark.parametrize("own", ["1/0", "nan", "two", "2 fps", "2,5", "fps=2"])
def test_a_rate_of_a_folder_that_cannot_be_read_is_a_dirty_row(tmp_path: Path, own: str) -> None:
    (frame_folder(tmp_path / "frames", 4) / "fps.txt").write_text(own)
    loaded = load(tmp_path, {"video": "frames", "question": "when?", "clue": [1, 2]})
    assert loaded.items == () and f"fps.txt holds '{own}', which is no number" in loaded.dirty[0].problem


def test_a_folder_of_a_row_that_is_broken_otherwise_is_not_said_to_be_missing(tmp_path: Path) -> None:
    frame_folder(tmp_path / "frames", 4)
    (dirty,) = load(tmp_path, {"video": "frames", "question": "when?", "clue": [1, 2], "fps": "two"}).dirty
    assert dirty.field == "fps" and not dirty.is_missing


def test_pictures_listed_as_a_video_are_its_frames(tmp_path: Path) -> None:
    names = image_list(tmp_path, 8)
    row = {"video": names, "fps": 4.0, "question": "when?", "clue": [0.5, 1.5]}
    assert frames_shown(decode(spec_of(load(tmp_path, row))).frames) == [0, 2, 5, 7]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("sub/b.mp4", "sub\\b.mp4"),
        ("sub/b.mp4", "sub\\b"),
        ("b.mp4", "C:\\data\\b.mp4"),
        ("GX01.MP4", "GX01"),
        ("GX01.MP4", "GX01.mp4"),
        ("b.MOV", "b"),
        ("cafe\u0301.mp4", "caf\u00e9.mp4"),
        ("caf\u00e9.mp4", "cafe\u0301"),
        ("a b (1).mp4", "a b (1)"),
    ],
)
def test_a_video_is_found_by_the_names_that_other_systems_give_it(tmp_path: Path, file: str, name: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    make_video(tmp_path / "made.mp4", num_frames=60, fps=10.0).rename(tmp_path / file)
    spec = spec_of(load(tmp_path, {"video": name, "question": "when?", "clue": [1, 2]}))
    assert spec.uri == str(tmp_path / file)


def image_list(folder: Path, num: int) -> list[str]:
    """Write numbered images whose names are in no order, and return them in theirs."""
    frame_folder(folder / "shots", num)
    for index in range(num):
        (folder / "shots" / f"{index}.png").rename(folder / "shots" / f"{(7 * index) % num}_.png")
    return [f"shots/{(7 * index) % num}_.png" for index in range(num)]


@pytest.mark.parametrize(
    ("row", "rate"), [({"fps": 4.0}, 4.0), ({"duration": 12.0}, 2.0), ({"fps": 8.0, "duration": 3.0}, 8.0), ({}, 2.0)]
)
def test_a_list_of_images_is_a_video_at_its_own_rate_and_times_count_from_its_first(
    tmp_path: Path, row: dict, rate: float
) -> None:
    loaded = load(tmp_path, {"image_list": image_list(tmp_path, 24), "question": "when?", "clue": [1, 2], **row})
    spec = spec_of(loaded)
    assert [Path(file).is_absolute() for file in spec.files] == [True] * 24
    clip = decode(spec)
    numbers = frames_shown(clip.frames)
    assert numbers[0] == 0 and numbers == sorted(numbers) and numbers[-1] == 23
    assert clip.info.times_s == pytest.approx([number / rate for number in numbers])
    assert clip.info.duration_s == pytest.approx(24 / rate)
    assert plan_grid(spec) == clip.info.grid_thw
    assert loaded.items[0].truth == [1, 2]


def test_a_part_of_a_list_of_images_is_shown_alone(tmp_path: Path) -> None:
    row = {
        "image_list": image_list(tmp_path, 24),
        "fps": 4.0,
        "start": 2.0,
        "end": 5.0,
        "question": "when?",
        "clue": [0.5, 2],
    }
    clip = decode(spec_of(load(tmp_path, row)))
    numbers = frames_shown(clip.frames)
    assert numbers[0] == 8 and numbers[-1] == 19 and len(numbers) == 6
    assert clip.info.times_s == pytest.approx([number / 4 for number in numbers])


@pytest.mark.parametrize(
    ("row", "field", "says"),
    [
        ({"fps": 4.0, "duration": 24.0}, "fps, duration", "24 images at 4 per second are 6 s, the row gives 24 s"),
        ({"duration": 4.0, "clue": [3.0, 9.0]}, "clue", "4"),
    ],
)
def test_a_list_whose_statements_contradict_each_other_is_a_dirty_row(
    tmp_path: Path, row: dict, field: str, says: str
) -> None:
    loaded = load(tmp_path, {"image_list": image_list(tmp_path, 24), "question": "when?", "clue": [1, 2], **row})
    assert loaded.items == ()
    assert loaded.dirty[0].field == field and says in loaded.dirty[0].problem


def test_a_list_with_a_missing_or_a_single_image_is_a_dirty_row(tmp_path: Path) -> None:
    names = image_list(tmp_path, 4)
    row = {"question": "when?", "clue": [0, 1]}
    missing = load(tmp_path, {"image_list": [*names, "shots/none.png"], **row})
    assert not missing.items and missing.dirty[0].field == "image_list" and missing.dirty[0].is_missing
    assert "shots/none.png" in missing.dirty[0].problem
    single = load(tmp_path, {"image_list": names[:1], **row})
    assert not single.items and "image_list" in single.dirty[0].field


def test_a_list_beside_a_video_refuses_the_file(tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", num_frames=20, fps=10.0)
    row = {"video": "a.mp4", "image_list": image_list(tmp_path, 4), "question": "when?", "clue": [0, 1]}
    with pytest.raises(AnnotationError, match="both a video and a list of images are given; keep one"):
        load(tmp_path, row)


def test_a_row_with_a_list_of_images_is_written_back_as_it_was(tmp_path: Path) -> None:
    names = image_list(tmp_path, 4)
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"image_list": names, "fps": 2.0, "question": "when?", "clue": [0.0, 1.0]})
    )
    (row,), _ = read_rows(tmp_path / "rows.jsonl", "vtts")
    again = own_row(row)
    assert (again["image_list"], again["fps"], again["clue"]) == (names, 2.0, [0.0, 1.0])
    assert "video" not in again


CHOICE: dict[str, Json] = {"question": "which one?", "options": ["first", "second"], "answer": "A"}


def test_several_videos_are_shown_in_order_each_at_its_own_rate(tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", num_frames=60, fps=10.0)
    frame_folder(tmp_path / "b", 12)
    (tmp_path / "b" / "fps.txt").write_text("4")
    (item,) = load(tmp_path, {"video": ["a.mp4", "b"], **CHOICE}).items
    assert [Path(spec.uri).name for spec in item.media] == ["a.mp4", "b"]
    first, second = (decode(spec) for spec in item.media)
    assert frames_shown(first.frames) == [0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55]
    assert frames_shown(second.frames) == [0, 2, 4, 7, 9, 11]  # of a folder the last one too
    assert item.labels["video"] == "a.mp4"


@pytest.mark.parametrize("key", ["image", "images"])
def test_several_images_are_shown_in_order(tmp_path: Path, key: str) -> None:
    for index in (2, 1):
        Image.fromarray(numbered_frame(index)).save(tmp_path / f"{index}.png")
    (item,) = load(tmp_path, {key: ["2.png", "1.png"], **CHOICE}).items
    assert [frames_shown(decode(spec).frames) for spec in item.media] == [[2], [1]]


def test_a_further_medium_that_is_missing_drops_its_row(tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", num_frames=20, fps=10.0)
    loaded = load(tmp_path, {"videos": ["a.mp4", "none.mp4"], **CHOICE})
    assert not loaded.items and loaded.dirty[0].field == "videos" and loaded.dirty[0].is_missing


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"video": ["a.mp4", "a.mp4"], "question": "when?", "clue": [0.0, 1.0]}, "periods of 2 videos"),
        ({"image": ["1.png"] * 3, "question": "where?", "clue": [0.1, 0.1, 0.5, 0.5]}, "box of 3 images"),
        ({"video": ["a.mp4", "a.mp4"], "start": 0.5, "end": 1.0, **CHOICE}, "a part of several videos; name one"),
        ({"video": ["a.mp4"], "image": ["1.png"], **CHOICE}, "both a video and an image"),
    ],
)
def test_what_several_media_leave_open_refuses_the_file(tmp_path: Path, row: dict[str, Json], says: str) -> None:
    make_video(tmp_path / "a.mp4", num_frames=20, fps=10.0)
    Image.fromarray(numbered_frame(1)).save(tmp_path / "1.png")
    with pytest.raises(AnnotationError, match=says):
        load(tmp_path, row)
