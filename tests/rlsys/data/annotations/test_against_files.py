"""Rows against the files that they name: truths outside of them, links out of the folder, shares of missing videos."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rlsys.config.run import ConfigError, DataConfig, parse
from rlsys.data.annotations.annotations import load_annotations
from rlsys.errors import TruthOutside, UserError
from rlsys.loop.producer import fitted
from rlsys.runs.inputs.items import load_items, read_rows
from rlsys.types import ClipInfo, ClipRef, PromptItem
from tests.support.reports import report
from tests.support.video_files import make_video, shared_data


def rows_of(folder: Path, rows: dict[str, Any]) -> Path:
    file = folder / "rows.json"
    file.write_text(json.dumps(rows))
    return file


def charades(*spans: tuple[float, float], duration: float = 99.0) -> dict[str, Any]:
    return {"duration": duration, "timestamps": [list(span) for span in spans], "sentences": ["x"] * len(spans)}


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    make_video(tmp_path / "videos" / "a.mp4")  # 6 s
    return tmp_path / "videos"


def test_data_check_reports_truths_outside_of_their_file(tmp_path: Path, videos: Path) -> None:
    file = rows_of(tmp_path, {"a": charades((1.0, 5.0), (4.0, 40.0), (40.0, 50.0))})
    text = "\n".join(report(file, "charades_sta", videos))
    assert "1 videos, 3 queries, 2 dirty rows" in text
    assert (
        "a/1: truth: the true period 4 to 40 s is not inside the decoded clip, which lasts 6.00 s [clip fixes" in text
    )
    assert "a/2: truth: the true period 40 to 50 s is not inside" in text
    assert "0 dirty rows" in "\n".join(report(file, "charades_sta"))


def test_data_check_reports_milliseconds_and_files_that_do_not_decode(tmp_path: Path, videos: Path) -> None:
    (videos / "b.mp4").write_bytes(b"not a video at all")
    rows = {"a": charades((1000.0, 4000.0), duration=6000.0), "b": charades((1.0, 2.0), (2.0, 3.0))}
    text = "\n".join(report(rows_of(tmp_path, rows), "charades_sta", videos))
    assert "a/0: truth: the true period 1000 to 4000 s is not inside the decoded clip, which lasts 6.00 s" in text
    assert "milliseconds" in text
    assert text.count("cannot be decoded (data.on_bad_clip): ") == 1 and "b.mp4" in text


def test_data_check_compares_truths_with_folders_and_lists_of_images(tmp_path: Path, videos: Path) -> None:
    folder = videos / "frames"
    folder.mkdir()
    names = [f"frames/{index}.png" for index in range(20)]
    for name in names:
        Image.new("RGB", (56, 56)).save(videos / name)
    (videos / "empty").mkdir()
    rows: list[dict[str, Any]] = [
        {"video": "frames", "fps": 2, "clue": [1, 9]},
        {"video": "frames", "fps": 2, "clue": [11, 12]},
        {"video": "frames", "duration": 10, "video_start": 4, "video_end": 10, "clue": [1, 2]},
        {"video": "frames", "fps": 2, "video_start": 12, "video_end": 14, "clue": [1, 2]},
        {"image_list": names, "fps": 4, "clue": [4, 7]},
        {"video": "empty", "clue": [1, 2]},
        {"video": "frames", "fps": 2, "video_start": 4, "video_end": 10.9, "clue": [1, 2]},
        {"video": "frames", "fps": 2, "video_start": 4, "video_end": 15, "clue": [1, 2]},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"question": f"When {n}?", **row}) for n, row in enumerate(rows)))
    lines = report(file, "vtts", videos)
    assert "2: truth: the true period 11 to 12 s is not inside the decoded clip, which lasts 10.00 s [dropped]" in lines
    assert "4: video_start: the part from 12 to 14 s starts after the end of the file at 10.00 s [dropped]" in lines
    assert any(line.startswith("5: truth: the true period 4 to 7 s is not inside") for line in lines)
    assert any("cannot be decoded" in line and "empty: zero_length" in line for line in lines)
    past = "the part from 4 to 15 s goes past the end of the file at 10.00 s"
    assert f"8: video_end: {past} [clip fixes it]" in lines
    assert "4 dirty rows" in lines[0]


@pytest.mark.parametrize("name", ["far.json", "ms.json"])
def test_the_shared_cases_are_reported(name: str, videos: Path) -> None:
    text = "\n".join(report(shared_data("cases", "annotations", name), "charades_sta", videos))
    assert "2 dirty rows" in text and ("milliseconds" in text) == (name == "ms.json")


def item(folder: Path, videos: Path, span: tuple[float, float]) -> PromptItem:
    file = rows_of(folder, {"a": charades(span)})
    (one,) = load_annotations(file, videos=videos, data=DataConfig(max_frames=8)).items
    return one


def clip(duration_s: float) -> ClipRef:
    info = ClipInfo(
        kind="video",
        digest="d",
        times_s=np.zeros(4),
        grid_thw=(2, 2, 2),
        second_per_grid_s=1.0,
        duration_s=duration_s,
        num_bytes=1,
    )
    return ClipRef(info=info, frames=None)


def test_a_run_drops_cuts_or_stops_at_a_truth_outside_of_the_decoded_clip(tmp_path: Path, videos: Path) -> None:
    inside, over, outside = (item(tmp_path, videos, span) for span in ((1.0, 5.0), (4.0, 40.0), (40.0, 50.0)))
    for mode in ("drop", "clip", "stop"):
        assert fitted(inside, [clip(6.0)], mode) is inside
    assert fitted(over, [clip(6.0)], "clip").truth == [4.0, 6.0]
    for one, mode in ((over, "drop"), (outside, "drop"), (outside, "clip")):
        with pytest.raises(TruthOutside, match="rows:a/0: the true period"):
            fitted(one, [clip(6.0)], mode)
    with pytest.raises(UserError, match="set data.on_dirty_row to drop or clip"):
        fitted(over, [clip(6.0)], "stop")


def test_times_of_a_part_count_from_its_start(tmp_path: Path, videos: Path) -> None:
    one = item(tmp_path, videos, (1.0, 3.0))
    (spec,) = one.media
    part = replace(one, media=(replace(spec, window_s=(4.0, 90.0)),))
    assert fitted(part, [clip(6.0)], "clip").truth == [1.0, 3.0]  # 3 s of 2 s are within a second
    with pytest.raises(TruthOutside, match="lasts 1.00 s"):
        fitted(replace(part, media=(replace(spec, window_s=(4.0, 5.0)),)), [clip(6.0)], "drop")


@pytest.mark.parametrize("name", ["../outside", "link", "folder/../../outside"])
def test_names_and_links_out_of_the_folder_are_refused_unless_allowed(name: str, tmp_path: Path, videos: Path) -> None:
    make_video(tmp_path / "outside.mp4")
    (videos / "folder").mkdir()
    (videos / "link.mp4").symlink_to(tmp_path / "outside.mp4")
    file = rows_of(tmp_path, {name: charades((1.0, 5.0)), "a": charades((1.0, 5.0))})
    refused = load_annotations(file, videos=videos, data=DataConfig())
    (row,) = refused.dirty
    assert "leads out of" in row.problem and "data.links_outside=true" in row.problem
    assert len(load_annotations(file, videos=videos, data=DataConfig(links_outside=True)).items) == 2


def test_a_folder_of_videos_that_is_a_link_itself_is_no_way_out(tmp_path: Path, videos: Path) -> None:
    (tmp_path / "linked").symlink_to(videos)
    file = rows_of(tmp_path, {"a": charades((1.0, 5.0))})
    assert len(load_annotations(file, videos=tmp_path / "linked", data=DataConfig()).items) == 1


def test_a_large_share_of_missing_videos_is_an_error_that_lists_them(tmp_path: Path, videos: Path) -> None:
    rows = {name: charades((1.0, 5.0)) for name in ("a", "gone", "lost")}
    file = rows_of(tmp_path, rows)
    with pytest.raises(ConfigError, match="2 of 3 rows cannot be used, more than data.max_dirty_share=0.5(.|\n)*gone"):
        load_items(DataConfig(), file, videos)
    assert len(load_items(DataConfig(max_dirty_share=0.7), file, videos)) == 1


def test_missing_videos_are_a_table_with_their_rows_and_dirty_rows_another(tmp_path: Path, videos: Path) -> None:
    rows = {
        "a": charades((1.0, 2.0), (5.0, 4.0), (2.0, 3.0)),
        "gone": charades((1.0, 2.0), (3.0, 4.0)),
        "b/c": charades((0.0, 1.0)),
    }
    file = rows_of(tmp_path, rows)
    tree = {
        "output_dir": tmp_path / "out",
        "model": {"path": tmp_path / "model"},
        "data": {"annotations": file, "videos": videos, "max_dirty_share": 0.9},
    }
    found = read_rows(parse(tree, source="test"))
    assert (len(found.training), found.held_out) == (2, ())
    tables = found.tables()
    assert set(tables) == {"dirty_rows", "missing_videos"}
    dirty = {str(row["row"]): row for row in tables["dirty_rows"]}
    assert set(dirty) == {"a/1", "gone/0", "gone/1", "b/c/0"}
    assert dirty["a/1"] == {
        "file": str(file),
        "row": "a/1",
        "video": "a",
        "field": "timestamps",
        "problem": "[5.0, 4.0] does not end after it starts",
        "action": "dropped",
    }
    missing = {str(row["video"]): row for row in tables["missing_videos"]}
    assert {video: (row["num_rows"], row["rows"]) for video, row in missing.items()} == {
        "gone": (2, "gone/0, gone/1"),
        "b/c": (1, "b/c/0"),
    }
    assert str(missing["gone"]["reason"]).startswith(f"'gone' is not in {videos}; looked for gone, gone.mp4")
    text = "\n".join(report(file, "charades_sta", videos))
    assert "2 missing videos:\n  gone: 2 rows (gone/0, gone/1)\n  b/c: 1 rows (b/c/0)\n" in text


def test_clean_rows_make_no_table_and_a_table_has_a_bounded_length(
    tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tables(rows: dict[str, Any]) -> dict[str, Any]:
        data = {"annotations": rows_of(tmp_path, rows), "videos": videos, "max_dirty_share": 1}
        tree = {"output_dir": tmp_path / "out", "model": {"path": tmp_path / "model"}, "data": data}
        return read_rows(parse(tree, source="test")).tables()

    assert tables({"a": charades((1.0, 2.0))}) == {}
    monkeypatch.setattr("rlsys.runs.inputs.items.MAX_TABLE_ROWS", 20)
    many = {f"v{index}": charades((0.0, 1.0)) for index in range(25)}
    assert {name: len(table) for name, table in tables({"a": charades((1.0, 2.0)), **many}).items()} == {
        "dirty_rows": 20,
        "missing_videos": 20,
    }


def test_a_run_drops_takes_or_stops_at_a_part_that_goes_past_the_end_of_its_file(tmp_path: Path, videos: Path) -> None:
    whole = item(tmp_path, videos, (0.5, 2.0))
    (spec,) = whole.media
    just, past = (replace(whole, media=(replace(spec, window_s=(3.0, end_s)),)) for end_s in (6.9, 15.0))
    for mode in ("drop", "clip", "stop"):
        assert fitted(just, [clip(6.0)], mode) is just
    cut = fitted(past, [clip(6.0)], "clip")
    assert (cut.truth, cut.media) == ([0.5, 2.0], past.media)
    with pytest.raises(TruthOutside, match=r"the part from 3 to 15 s goes past the end of the file at 6\.00 s"):
        fitted(past, [clip(6.0)], "drop")
    with pytest.raises(UserError, match="set data.on_dirty_row to drop or clip"):
        fitted(past, [clip(6.0)], "stop")
