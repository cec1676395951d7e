from __future__ import annotations

import random
import sys
from collections.abc import Callable

import pytest

from reward_servers.schema import ScoreRow
from reward_servers.scorers.reasoning_scorers import _Periods
from reward_servers.scorers.response import read_response
from reward_servers.scorers.scorers import SCORERS, rule_scores
from rlsys.config.run import ScoreSettings
from rlsys.tasks.geometry import spans_iou
from rlsys.tasks.table import TASKS
from rlsys.types import Score
from tests.support.rounding import FLOAT64


def scored(name: str, reasoning: str = "", answer: str = "2.0 to 6.0", **fields: object) -> Score:
    """One score of a grounding row whose truth is 2 to 6 seconds of a clip of 10."""
    row = {"rollout_id": "r", "task": "temporal_grounding", "truth": [2.0, 6.0], "duration_s": 10.0, "num_tokens": 400}
    text = f"<think>{reasoning}</think><answer>{answer}</answer>"
    return rule_scores(ScoreRow(**(row | {"text": text} | fields)), [name], ScoreSettings())  # type: ignore[arg-type]


def value(name: str, reasoning: str = "", answer: str = "2.0 to 6.0", **fields: object) -> float:
    found = scored(name, reasoning, answer, **fields)
    assert found.status == "ok", found.reason
    return found.scores[name]


@pytest.mark.parametrize(("num_tokens", "bonus"), [(319, 0), (320, 1), (512, 1), (513, 0)])
def test_only_lengths_within_the_window_earn_the_bonus(num_tokens: int, bonus: float) -> None:
    assert value("length_bonus", num_tokens=num_tokens) == bonus


def test_only_correct_responses_earn_the_length_bonus() -> None:
    assert value("length_bonus", answer="5.9 to 9.9") == 0.0  # IoU 0.1 / 7.9
    assert value("length_bonus", answer="no idea") == 0.0
    row = ScoreRow(rollout_id="r", task="numeric_qa", text="<answer>90</answer>", truth=100, num_tokens=3)
    narrow = ScoreSettings(length_window_tokens=(3, 3))
    assert dict(rule_scores(row, ["length_bonus"], narrow).scores) == {"length_bonus": 1.0}


def test_cited_times_must_lie_inside_the_clip_and_meet_the_truth() -> None:
    assert value("cited_times", "At 3 s she waves, until 5.5 s.") == 1.0
    assert value("cited_times", "At 3 s she waves, at 8 s she leaves.") == 0.5
    assert value("cited_times", "It is 4.0 to 12.0.") == 0.0  # ends after the clip
    assert value("cited_times", "It is 6.0 to 8.0.") == 0.0  # begins where the truth ends
    assert value("cited_times", "It is 5.0 to 3.0.") == 0.0
    assert value("cited_times", "It is 2.0 to 6.0, at 6 s sharp.") == 1.0
    assert value("cited_times", "She waves with 2 hands.") == 0.0


def test_times_outside_the_reasoning_are_not_cited() -> None:
    row = ScoreRow(
        rollout_id="r", task="temporal_grounding", text="<answer>2 to 6</answer>", truth=[2, 6], duration_s=9.0
    )
    assert dict(rule_scores(row, ["cited_times"], ScoreSettings()).scores) == {"cited_times": 0.0}


def test_anchors_must_gain_accuracy_step_by_step() -> None:
    assert value("anchor_progress", "0 to 10? 1 to 7? 2 to 7?") == 1.0
    assert value("anchor_progress", "1 to 7? 0 to 10?") == 0.5  # back, then on to the answer
    assert value("anchor_progress", "0 to 10?", answer="0 to 10") == 0.0  # nothing gained
    assert value("anchor_progress", "2 to 6, yes, 2 to 6.") == 1.0  # exact from the start
    assert value("anchor_progress", "7 to 8? 8 to 9?") == 0.5  # both wrong, then right
    assert value("anchor_progress", "no idea") == 0.0
    assert value("anchor_progress", "0 to 10?", answer="no idea") == 0.0


def test_grounded_qa_compares_with_all_its_periods() -> None:
    row = ScoreRow(
        rollout_id="r",
        task="grounded_qa",
        text="<think>At 1 s and at 8 s, or 0 to 9.</think><answer>(A)</answer><glue>[(0, 2), (7, 9)]</glue>",
        truth={"answer": "(A)", "glue": [[0, 2], [7, 9]]},
        duration_s=10.0,
    )
    found = rule_scores(row, ["cited_times", "anchor_progress"], ScoreSettings())
    assert dict(found.scores) == {"cited_times": 1.0, "anchor_progress": 1.0}


@pytest.mark.parametrize(
    ("name", "fields", "missing"),
    [
        ("length_bonus", {"num_tokens": None}, "num_tokens"),
        ("cited_times", {"duration_s": None}, "duration_s"),
        ("cited_times", {"duration_s": 0.0}, "duration_s"),
        ("cited_times", {"think": False}, "think=false"),
        ("anchor_progress", {"think": False}, "think=false"),
    ],
)
def test_a_missing_input_is_missing_data_that_names_the_field(
    name: str, fields: dict[str, object], missing: str
) -> None:
    found = scored(name, "1 to 7", **fields)
    assert (found.status, dict(found.scores)) == ("malformed", {})
    assert name in found.reason and missing in found.reason


def test_look_ups_in_many_true_periods_equal_those_one_by_one() -> None:
    rng = random.Random(0)
    for count in (1, 3, 100):
        truth = [(start, start + rng.choice((0.5, 2, 9))) for start in (rng.randrange(400) / 2 for _ in range(count))]
        found = _Periods(truth)
        for _ in range(300):
            cited = (rng.randrange(420) / 2, rng.randrange(420) / 2)
            cited = (cited[0], cited[0]) if rng.random() < 0.3 else cited
            shares = any(
                max(cited[0], true[0]) < min(cited[1], true[1])
                or (cited[0] == cited[1] and true[0] <= cited[0] <= true[1])
                for true in truth
            )
            assert found.meet(cited) == shares
            assert found.iou(cited) == pytest.approx(spans_iou([cited], truth), abs=FLOAT64)


def num_calls(work: Callable[[], object]) -> int:
    """Count the calls that `work` makes, of Python functions and of built-in ones."""
    count = 0

    def counted(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("name", sorted(SCORERS))
def test_work_grows_linearly_with_text_and_truth(name: str) -> None:
    """Twice the size makes twice the calls (and a logarithm more); a loop over both would make four times as many."""
    task = {"same_choice": "multiple_choice", "same_phrase": "video_quality", "relative_accuracy": "numeric_qa"}.get(
        name, "spatial_qa" if name == "mean_box_iou" else "grounded_qa"
    )
    how = next((how for how in TASKS[task].scores.values() if how.scorer == name), TASKS[task].scores["format"])

    def calls(size: int) -> int:
        glue = ", ".join(f"({index}, {index + 0.5})" for index in range(size))
        think = " ".join(f"At {index} s, from {index} to {index + 1} s." for index in range(size))
        answer = {"numeric_qa": "3 " * size, "video_quality": "low " * size}.get(task, "(C) " * size)
        text = (
            f"<think>{think}</think><answer>{answer}</answer><glue>[{glue}]</glue><box>{'[1, 2, 3, 4],' * size}</box>"
        )
        periods = [[index, index + 0.5] for index in range(size)]
        truth: object = {
            "multiple_choice": "(C)",
            "video_quality": "low",
            "numeric_qa": 3,
            "spatial_qa": {"answer": "(C)", "box": [0, 0, 1, 1]},
            "grounded_qa": {"answer": "(C)", "glue": periods},
        }[task]
        row = ScoreRow(rollout_id="r", task=task, text=text, truth=truth, duration_s=1e6, num_tokens=400)
        return num_calls(lambda: SCORERS[name](read_response(row), how, ScoreSettings()))

    small, large = calls(1_000), calls(2_000)
    assert large < 2.6 * small + 1_000
