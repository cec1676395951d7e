"""Evaluation on all published rows: what a training run would drop counts with the truth of the file, or as wrong."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlsys.config.run import DataConfig
from rlsys.data.annotations.annotations import Annotations, load_annotations
from tests.support.video_files import shared_data


def published(path: Path, names: list[str], **data: Any) -> Annotations:
    videos = path.parent / "videos"
    for name in names:
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).touch()
    return load_annotations(path, videos=videos, data=DataConfig.model_validate(data), keep="published")


DIRTY = {
    "duration": 10.0,
    "timestamps": [[1.0, 4.0], [8.0, 10.5], [5.0, 5.0], [1.0, 4.0], [-1, 4.0], [11.0, 12.0], [3, "x"], [1.0, 2.0]],
    "sentences": ["a", "b", "c", "A ", "d", "e", "f", "  "],
}


@pytest.mark.parametrize("mode", ["drop", "clip", "stop"])
def test_every_row_is_an_item_with_its_published_truth_or_unanswerable(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"clip": DIRTY, "gone": {**DIRTY, "timestamps": [[1, 2]], "sentences": ["x"]}}))
    found = published(path, ["clip.mp4"], on_dirty_row=mode)
    assert {item.prompt_id: item.truth for item in found.items} == {
        "rows:clip/0": [1.0, 4.0],
        "rows:clip/1": [8.0, 10.5],
        "rows:clip/3": [1.0, 4.0],
        "rows:clip/4": [0.0, 4.0],
        "rows:clip/5": [11.0, 12.0],
    }
    lost = {row.prompt_id: row for row in found.unanswerable}
    assert list(lost) == ["rows:clip/2", "rows:clip/6", "rows:clip/7", "rows:gone/0"]
    assert lost["rows:clip/2"].truth is None and "does not end after it starts" in lost["rows:clip/2"].reason
    assert lost["rows:gone/0"].truth == [1.0, 2.0] and "is not in" in lost["rows:gone/0"].reason
    assert lost["rows:gone/0"].labels == {"video": "gone", "duration_s": 10.0}
    assert lost["rows:gone/0"].task == "temporal_grounding" and lost["rows:gone/0"].question == "x"
    assert found.num_queries == 9 == len(found.items) + len(found.unanswerable)
    assert Counter(row.action for row in found.dirty) == {"kept": 4, "dropped": 4}


def test_a_contradiction_does_not_refuse_an_evaluation_but_counts_as_wrong(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"video": "v", "question": f"q{answer}", "options": ["x", "y"], "answer": answer} for answer in "AZ"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = published(path, ["v.mp4"], format="vtts")
    assert [item.truth for item in found.items] == ["(A)"]
    assert [row.prompt_id for row in found.unanswerable] == ["rows:2"]


def test_a_question_without_a_period_counts_as_multiple_choice(tmp_path: Path) -> None:
    path = tmp_path / "test.csv"
    path.write_text(
        "video_id,question,answer,qid,type,a0,a1,a2,a3,a4\n"
        "7,how?,roll it,6,CH,roll it,tap,strum,hit,pat\n"
        "7,why?,roll it,9,CW,roll it,tap,strum,hit,pat\n"
        "7,when?,tap,8,TN,roll it,tap,tap,hit,pat\n"
        "7,who?,nobody,6,CH,roll it,tap,strum,hit,pat\n"
    )
    periods = {"duration": 14.6, "location": {"6": [[0.0, 4.4], [7.1, 15.0], [3, 3]], "8": [[1, 2]]}}
    (tmp_path / "gsub_test.json").write_text(json.dumps({"7": periods}))
    found = published(path, ["7.mp4"], format="nextgqa")
    assert [(item.task, item.truth) for item in found.items] == [
        ("grounded_qa", {"answer": "(A)", "glue": [[0.0, 4.4], [7.1, 15.0]]}),
        ("multiple_choice", "(A)"),
        ("grounded_qa", {"answer": "(B)", "glue": [[1.0, 2.0]]}),  # as the official code: the first of equal options
    ]
    assert [item.labels for item in found.items][1] == {
        "video": "7",
        "duration_s": 14.6,
        "qid": "9",
        "question_type": "CW",
    }
    assert [(row.prompt_id, row.truth) for row in found.unanswerable] == [("test:5", None)]


def test_all_rows_of_the_real_files_count(tmp_path: Path) -> None:
    for name, format, num_rows, num_kept in (
        ("charades_sta_train.json", "charades_sta", 12_408, 12_404),
        ("nextgqa_val.json", "nextgqa", 3_358, 3_358),
    ):
        path = shared_data("annotations", name)
        tree = json.loads(path.read_text())
        names = [f"{video}.mp4" for video in tree] if isinstance(tree, dict) else [row["video"] for row in tree]
        for video in names:
            (tmp_path / video).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / video).touch()
        data = DataConfig.model_validate({"format": format})
        found = load_annotations(path, videos=tmp_path, data=data, keep="published")
        assert (found.num_queries, len(found.items)) == (num_rows, num_kept), name
        assert len(found.items) + len(found.unanswerable) == num_rows
        clean = load_annotations(path, videos=tmp_path, data=data)
        assert len(clean.items) == num_rows - len(clean.dirty) < num_kept
        assert all("does not end after it starts" in row.reason for row in found.unanswerable)
