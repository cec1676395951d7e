"""Statistics of annotation files, against numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rlsys.config.run import DataConfig
from rlsys.data.annotations.annotations import load_annotations
from rlsys.data.annotations.reading import read_rows
from rlsys.data.inspection.statistics import clip_tokens, draw, statistics_lines, statistics_of
from tests.support.video_files import make_video, shared_data


def test_durations_spans_and_answers_are_counted(tmp_path: Path) -> None:
    rows = [
        {"video": "a", "duration": 10.0, "question": "one two", "clue": [1.0, 3.0]},
        {"video": "a", "duration": 10.0, "question": "late", "clue": [1.0, 30.0]},
        {
            "video": "b",
            "duration": 20.0,
            "question": "q",
            "options": ["x", "y"],
            "answer": "x",
            "clue": [[0, 5], [10, 20]],
        },
        {"video": "c", "question": "price $5?", "options": ["x", "y"], "answer": "y", "split": "val"},
        {"video": "c", "question": "how many?", "answer": 7},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = statistics_of(read_rows(path, "vtts")[0], [12, 20])
    assert (found.num_rows, found.num_dirty) == (5, 1)
    assert found.tasks == {"temporal_grounding": 1, "grounded_qa": 1, "multiple_choice": 1, "numeric_qa": 1}
    values = {name: sorted(array.tolist()) for name, array in found.values.items()}
    assert values["duration of a video, s"] == [10.0, 20.0]
    assert values["length of a span, s"] == [2.0, 5.0, 10.0]
    assert values["length of a span, share of the video"] == pytest.approx([0.2, 0.25, 0.5])
    assert values["middle of a span, share of the video"] == pytest.approx([0.125, 0.2, 0.75])
    assert values["right number"] == [7.0] and values["visual tokens of a clip"] == [12.0, 20.0]
    assert found.answers == {"grounded_qa": {"(A)": 1}, "multiple_choice": {"(B)": 1}}
    text = "\n".join(statistics_lines(found))
    assert "5 rows, 1 of them dirty" in text and "right answers of grounded_qa: (A) 1 (100.0 %)" in text
    with Image.open(draw(found, tmp_path / "stats.png")) as image:
        assert image.format == "PNG" and len(np.unique(np.asarray(image.convert("L")))) > 10


def test_the_real_charades_file_has_its_known_numbers() -> None:
    rows, _ = read_rows(shared_data("annotations", "charades_sta_train.json"), "charades_sta")
    found = statistics_of(rows)
    assert (found.num_rows, found.num_dirty) == (12_408, 1_790)
    spans = found.values["length of a span, s"]
    assert spans.size == 10_618
    assert spans.mean() == pytest.approx(8.257, abs=1e-3)


def test_tokens_of_clips_are_those_of_the_budgets(tmp_path: Path) -> None:
    make_video(tmp_path / "a.mp4", num_frames=60, fps=10.0, size=(112, 112))
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    rows = [{"video": name, "question": "q", "answer": 1} for name in ("a.mp4", "broken.mp4")]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    budgets = {"format": "vtts", "fps": 1.0, "min_pixels": 28 * 28, "max_pixels": 112 * 112}
    data = DataConfig.model_validate(budgets)
    items = load_annotations(path, videos=tmp_path, data=data).items
    # 6 frames are 3 steps of 4 x 4 tokens
    assert clip_tokens(items, workers=2) == [3 * 4 * 4]
