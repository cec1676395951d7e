from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_servers.offline import score_lines
from reward_servers.scorers import score
from rlsys.tasks import TASKS

BOX = [0.0, 0.0, 0.5, 0.5]
QA_TRUTH = {"answer": "(C)", "glue": [[0, 4], [6, 8]]}
THINK = "<think>because</think> "


def scores(task: str, text: str, truth: object, think: bool = True) -> dict[str, float]:
    result = score(task, text, truth, think)
    assert (result.status, result.reason) == ("ok", "")
    return dict(result.scores)


def test_grounding_scores_worked_out_by_hand() -> None:
    truth = [2.0, 6.0]
    assert scores("temporal_grounding", f"{THINK}<answer>4.0 to 8.0</answer>", truth) == {"format": 1, "iou": 2 / 6}
    assert scores("temporal_grounding", "<answer>4.0 to 8.0</answer>", truth) == {"format": 0, "iou": 2 / 6}
    assert scores("temporal_grounding", "<answer>4.0 to 8.0</answer>", truth, think=False) == {
        "format": 1,
        "iou": 2 / 6,
    }
    assert scores("temporal_grounding", "2.0 to 6.0", truth) == {"format": 0, "iou": 0}


def test_a_reversed_span_is_well_formed_and_wrong() -> None:
    assert scores("temporal_grounding", f"{THINK}<answer>6 to 2</answer>", [2, 6]) == {"format": 1, "iou": 0}


def test_grounded_qa_scores_its_parts_apart() -> None:
    right = f"{THINK}<answer>(C)</answer><glue>[(0, 4), (6, 8)]</glue>"
    assert scores("grounded_qa", right, QA_TRUTH) == {"format": 1, "iou": 1, "accuracy": 1}
    assert scores("grounded_qa", right.replace("C", "B"), QA_TRUTH) == {"format": 1, "iou": 1, "accuracy": 0}
    half = right.replace("[(0, 4), (6, 8)]", "[(0, 2), (1, 3)]")
    assert scores("grounded_qa", half, QA_TRUTH) == {"format": 1, "iou": 0.5, "accuracy": 1}
    no_glue = f"{THINK}<answer>(C) unwrap it</answer>"
    assert scores("grounded_qa", no_glue, QA_TRUTH) == {"format": 0, "iou": 0, "accuracy": 1}


def test_tracking_averages_eight_boxes_and_takes_no_other_number() -> None:
    truth = [BOX] * 8
    half = [[0.0, 0.0, 0.25, 0.5]] * 8
    assert scores("tracking", f"{THINK}<answer>{half}</answer>", truth) == {"format": 1, "iou": 0.5}
    assert scores("tracking", f"{THINK}<answer>{half[:4] + [BOX] * 4}</answer>", truth) == {"format": 1, "iou": 0.75}
    assert scores("tracking", f"{THINK}<answer>{[BOX] * 7}</answer>", truth) == {"format": 0, "iou": 0}


def test_a_row_that_cannot_be_scored_has_no_scores() -> None:
    broken = score("temporal_grounding", f"{THINK}<answer>1 to 2</answer>", [3, 3])
    assert (broken.status, dict(broken.scores)) == ("malformed", {})
    assert "[3, 3]" in broken.reason
    unknown = score("dance", "x", None)
    assert unknown.status == "malformed"
    assert "temporal_grounding, grounded_qa, tracking" in unknown.reason


@given(st.sampled_from(sorted(TASKS)), st.text(), st.booleans())
def test_any_response_has_every_score_in_zero_to_one(task: str, text: str, think: bool) -> None:
    truth = {"temporal_grounding": [1, 2], "grounded_qa": QA_TRUTH, "tracking": [BOX] * 8}[task]
    found = scores(task, text, truth, think)
    assert list(found) == list(TASKS[task].scores)
    assert all(0 <= value <= 1 for value in found.values())


def lines() -> Iterator[str]:
    yield json.dumps({"task": "temporal_grounding", "text": "<answer>1 to 3</answer>", "truth": [1, 3], "think": False})
    yield "{not json"
    yield "\n"
    yield json.dumps({"task": "temporal_grounding", "text": "x"})
    yield json.dumps({"task": "dance", "text": "x", "truth": 1, "id": "an extra key"})
    yield "[" * 100_000
    yield "\ud800"
    yield json.dumps({"task": "tracking", "text": f"{THINK}<answer>{[BOX] * 8}</answer>", "truth": [BOX] * 8})


def test_offline_scoring_names_a_bad_line_and_goes_on() -> None:
    results = list(score_lines(lines()))
    assert [(row["line"], row["task"], row["status"]) for row in results] == [
        (1, "temporal_grounding", "ok"),
        (2, None, "malformed"),
        (4, None, "malformed"),
        (5, "dance", "malformed"),
        (6, None, "malformed"),
        (7, None, "malformed"),
        (8, "tracking", "ok"),
    ]
    assert results[0]["scores"] == {"format": 1.0, "iou": 1.0}
    assert results[1]["scores"] == {}
    assert "line 4: truth: Field required" in results[2]["reason"]
    assert "line 5" in results[3]["reason"] and "dance" in results[3]["reason"]


@pytest.mark.parametrize("row", [1, "x", None, []])
def test_offline_scoring_takes_any_json(row: object) -> None:
    assert [result["status"] for result in score_lines([json.dumps(row)])] == ["malformed"]
