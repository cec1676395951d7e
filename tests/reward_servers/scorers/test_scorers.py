from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_servers.offline import score_lines
from reward_servers.schema import ScoreRow
from reward_servers.scorers.scorers import SCORERS, relative_accuracy, rule_scores, score
from rlsys.config.answers import Reading
from rlsys.config.run import ScoreSettings
from rlsys.tasks.table import TASKS, default_names, judged_scores
from tests.support.task_examples import TRUTHS

BOX = [0.0, 0.0, 0.5, 0.5]
QA_TRUTH = {"answer": "(C)", "glue": [[0, 4], [6, 8]]}
THINK = "<think>because</think> "


def scores(task: str, text: str, truth: object, think: bool = True, reading: Reading = "paper") -> dict[str, float]:
    result = score(task, text, truth, think, reading)
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
    assert "temporal_grounding, tracking, spatial_grounding" in unknown.reason


def test_boxes_letters_numbers_and_phrases_worked_out_by_hand() -> None:
    pixels = {"box": [0, 0, 100, 100], "width": 640, "height": 480}
    assert scores("spatial_grounding", f"{THINK}<answer>[50, 0, 150, 100]</answer>", pixels) == {
        "format": 1,
        "iou": 1 / 3,
    }
    assert scores("spatial_grounding", f"{THINK}<answer>{BOX}</answer>", {"box": [0, 0, 0.5, 1]})["iou"] == 0.5
    assert scores("spatial_grounding", f"{THINK}<answer>[[0,0,1,1], [0,0,1,1]]</answer>", pixels)["format"] == 0
    both = {"answer": "(C)", "glue": [[0, 4]], "box": BOX}
    text = f"{THINK}<answer>(C)</answer><glue>[(2, 4)]</glue><box>[0, 0, 0.5, 0.25]</box>"
    assert scores("spatiotemporal_qa", text, both) == {"format": 1, "iou": 0.5, "box_iou": 0.5, "accuracy": 1}
    assert scores("multiple_choice", f"{THINK}<answer>b. two</answer>", "(B)", reading="strict") == {
        "format": 1,
        "accuracy": 1,
    }
    quoted = f"{THINK}<answer>'High quality'</answer>"
    assert scores("video_quality", quoted, "high quality", reading="strict")["accuracy"] == 1
    assert scores("video_quality", f"{THINK}<answer> High quality\n</answer>", "high quality")["accuracy"] == 1
    assert scores("video_quality", f"{THINK}<answer>quality</answer>", "high quality")["accuracy"] == 0
    assert scores("captioning", f"{THINK}<answer>A cat.</answer>", {"caption": "A dog."}) == {"format": 1}
    assert scores("captioning", f"{THINK}<answer> </answer>", {"caption": "A dog."}) == {"format": 0}


@pytest.mark.parametrize(
    ("answer", "truth", "tiers", "expected"),
    [
        (100, 100, (), 1.0),
        (95, 100, (), 0.9),  # exactly 5 %: not below the tightest tolerance
        (0.9, 1, (), 0.8),  # exactly 10 %, which floats would call less
        (-70, -100, (), 0.4),
        (50, 100, (), 0.0),
        (0, 0, (), 1.0),
        (1e-9, 0, (), 0.0),
        (-3, 3, (), 0.0),
        (90, 100, ((0.05, 1.0), (0.2, 0.4)), 0.4),
        (80, 100, ((0.05, 1.0), (0.2, 0.4)), 0.0),
        (0, 0, ((0.05, 1.0), (0.2, 0.4)), 1.0),
        (900, 100, ((0.05, 1.0), (float("inf"), 0.1)), 0.1),
    ],
)
def test_numbers_score_by_their_relative_error(
    answer: float, truth: float, tiers: tuple[tuple[float, float], ...], expected: float
) -> None:
    assert relative_accuracy(answer, truth, tiers) == expected
    row = ScoreRow(rollout_id="r", task="numeric_qa", text=f"<answer>{answer:.9f}</answer>", truth=truth)
    reply = rule_scores(row, ["accuracy"], ScoreSettings(relative_error_tiers=tiers))
    assert dict(reply.scores) == {"accuracy": expected}


def test_only_the_named_scores_are_computed_and_the_judges_are_left_to_the_judge() -> None:
    row = ScoreRow(rollout_id="r", task="captioning", text="<answer>a</answer>", truth={"caption": "b"}, think=False)
    names = ["f1", "format", "recall", "consistency", "order_contrast"]
    assert dict(rule_scores(row, names, ScoreSettings()).scores) == {"format": 1.0}
    assert dict(rule_scores(row, [], ScoreSettings()).scores) == {}
    wrong = rule_scores(row, ["format", "beauty"], ScoreSettings())
    assert (wrong.status, dict(wrong.scores)) == ("malformed", {})
    assert "'beauty' is not known for captioning; these servers have format, recall" in wrong.reason


@given(st.sampled_from(sorted(TASKS)), st.text(), st.booleans())
def test_any_response_has_every_score_in_zero_to_one(task: str, text: str, think: bool) -> None:
    row = ScoreRow(rollout_id="r", task=task, text=text, truth=TRUTHS[task], think=True, num_tokens=400, duration_s=9.0)
    names = list(TASKS[task].scores)
    reply = rule_scores(row, names, ScoreSettings())
    assert reply.status == "ok"
    assert list(reply.scores) == [name for name in names if TASKS[task].scores[name].scorer in SCORERS]
    assert all(0 <= value <= 1 for value in reply.scores.values())
    assert set(scores(task, text, TRUTHS[task], think)) == set(default_names(task)) - judged_scores(task)


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
