"""Rows are trained as another task only where they have all that it scores; a source may keep one split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rlsys.config.run import ConfigError, DataConfig
from rlsys.data.annotations.annotations import load_annotations
from rlsys.data.annotations.other_task import PARTS
from rlsys.tasks.table import TASKS, prompt_text
from rlsys.types import PromptItem
from tests.support.video_files import shared_data

BOX = {"video": "a.mp4", "width": 64, "height": 32, "question": "why?"}
CHOICE = {"options": ["one", "two"], "answer": "B"}
ROWS: dict[str, dict[str, Any]] = {
    "grounded_qa": {"video": "a.mp4", "question": "why?", "clue": [1.0, 2.0], **CHOICE},
    "spatial_qa": {**BOX, "clue": [1, 2, 30, 20], **CHOICE},
    "spatiotemporal_qa": {**BOX, "clue": {"temporal": [1.0, 2.0], "spatial": [1, 2, 30, 20]}, **CHOICE},
    "spatiotemporal_grounding": {**BOX, "clue": {"temporal": [1.0, 2.0], "spatial": [1, 2, 30, 20]}},
}


def load(folder: Path, *rows: dict[str, Any], **settings: Any) -> tuple[PromptItem, ...]:
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "a.mp4").touch()
    return load_annotations(
        folder / "rows.jsonl", videos=folder, data=DataConfig(format="vtts", think=False), **settings
    ).items


@pytest.mark.parametrize(("own", "wanted"), [(own, wanted) for own, others in PARTS.items() for wanted in others])
def test_a_row_has_the_truth_and_the_prompt_of_the_task_that_it_is_trained_as(
    tmp_path: Path, own: str, wanted: str
) -> None:
    (before,), (item,) = load(tmp_path, ROWS[own]), load(tmp_path, ROWS[own], task=wanted)
    assert (before.task, item.task) == (own, wanted)
    truth, answers = TASKS[wanted].read_truth(item.truth), TASKS[own].read_truth(before.truth)
    for block, answer in truth.items():
        as_block = {"answer": "answer", "glue": "glue", "box": "box"}[block]
        expected = answers["box"] if wanted == "spatial_grounding" else answers[as_block]
        assert answer == expected
    assert item.question in prompt_text(item, think=item.think, style="full")


def test_boxes_in_pixels_of_an_unknown_size_need_no_size_where_they_are_not_scored(tmp_path: Path) -> None:
    Image.new("RGB", (64, 32)).save(tmp_path / "still.png")
    row = {"image": "still.png", "question": "why?", "clue": [1, 2, 30, 20], **CHOICE}
    assert [item.truth for item in load(tmp_path, row, task="multiple_choice")] == ["(B)"]
    assert load(tmp_path, row)[0].truth["width"] == 64


def test_rows_of_the_task_itself_stay_as_they_are(tmp_path: Path) -> None:
    rows = {**CHOICE, "video": "a.mp4", "question": "what?"}, ROWS["grounded_qa"]
    assert [(item.task, item.truth) for item in load(tmp_path, *rows, task="multiple_choice")] == [
        ("multiple_choice", "(B)")
    ] * 2


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("dance", "task='dance' is not known; the tasks are temporal_grounding"),
        ("tracking", "1 rows cannot be trained as task=tracking, row 1 for one: it is of grounded_qa, which can be"),
        ("temporal_grounding", "can be trained as multiple_choice; correct `task`"),
    ],
)
def test_a_task_that_needs_other_annotations_is_refused(tmp_path: Path, task: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, ROWS["grounded_qa"], task=task)
    assert says in str(error.value)


def test_a_split_keeps_its_rows(tmp_path: Path) -> None:
    rows = [{**ROWS["grounded_qa"], "question": f"why {n}?", "split": ("train", "val")[n % 2]} for n in range(5)]
    kept = load(tmp_path, *rows, split="val", name="qa")
    assert [item.prompt_id for item in kept] == ["qa:2", "qa:4"]
    assert {item.labels["split"] for item in kept} == {"val"}
    with pytest.raises(ConfigError, match="no row of split 'test'; its rows are of train, val"):
        load(tmp_path, *rows, split="test")
    with pytest.raises(ConfigError, match="its rows have no field `split`"):
        load(tmp_path, ROWS["grounded_qa"], split="val")


def test_think_style_and_name_of_a_source_are_those_of_its_items(tmp_path: Path) -> None:
    (item,) = load(tmp_path, ROWS["grounded_qa"], name="qa")
    assert (item.prompt_id, item.source, item.think, item.style) == ("qa:1", "qa", False, "full")


def test_the_real_rows_of_nextgqa_are_trained_as_multiple_choice(tmp_path: Path) -> None:
    file = shared_data("annotations", "nextgqa_val.json")
    for row in json.loads(file.read_text()):
        (tmp_path / f"{row['video'].rsplit('/')[-1]}.mp4").touch()
    found = load_annotations(file, videos=tmp_path, data=DataConfig(format="nextgqa"), task="multiple_choice")
    assert {item.task for item in found.items} == {"multiple_choice"}
    assert len(found.items) + sum(row.action == "dropped" for row in found.dirty) == 3358
    assert all(item.truth in ("(A)", "(B)", "(C)", "(D)", "(E)") for item in found.items)
