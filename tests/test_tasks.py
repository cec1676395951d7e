from __future__ import annotations

import dataclasses
import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_servers.scorers import SCORERS
from rlsys.config import ConfigError, RewardConfig
from rlsys.tasks import TASKS, check_weights, prompt_text, score_weights
from rlsys.truths import first_box
from rlsys.types import PromptItem

BOX = [0.1, 0.2, 0.3, 0.4]
TRUTHS = {
    "temporal_grounding": [1.0, 2.0],
    "grounded_qa": {"answer": "(B)", "glue": [[1.0, 2.0]]},
    "tracking": [BOX] * 8,
}
RIGHT = {
    "temporal_grounding": "<answer>1.00 to 2.00</answer>",
    "grounded_qa": "<answer>(B)</answer> <glue>[(1.00, 2.00)]</glue>",
    "tracking": f"<answer>{[BOX] * 8}</answer>",
}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.sampled_from(["answer", "glue", "x"]), inner),
    max_leaves=20,
)


def item(task: str, question: str = "person opens the door.") -> PromptItem:
    return PromptItem(
        prompt_id="file:0", task=task, question=question, options=("(A) one", "(B) two"), media=(), truth=TRUTHS[task]
    )


@pytest.mark.parametrize("task", TASKS)
def test_every_row_is_complete(task: str) -> None:
    row = TASKS[task]
    assert set(row.prompts) == {(style, think) for style in ("full", "terse") for think in (True, False)}
    assert {how.scorer for how in row.scores.values()} <= set(SCORERS)
    assert {how.block for how in row.scores.values()} - {None} <= set(row.blocks)
    assert set(row.read_truth(TRUTHS[task])) == set(row.blocks)
    fields = {field for text in row.prompts.values() for _, field, _, _ in string.Formatter().parse(text) if field}
    assert fields <= {"question", "options", "first_box"}


@pytest.mark.parametrize("task", TASKS)
def test_a_right_answer_is_well_formed_in_the_variant_that_was_asked_for_only(task: str) -> None:
    row, answer = TASKS[task], RIGHT[task]
    assert row.is_well_formed(answer, think=False)
    assert not row.is_well_formed(answer, think=True)
    assert row.is_well_formed(f"<think>because</think>\n{answer}", think=True)
    assert not row.is_well_formed(f"<think>because</think>\n{answer}", think=False)
    assert row.parse(answer) == row.read_truth(TRUTHS[task])


def test_a_block_that_cannot_be_read_spoils_the_format_and_leaves_the_other_block() -> None:
    text = "<think>a</think><answer>(B)</answer><glue>none</glue>"
    assert not TASKS["grounded_qa"].is_well_formed(text, think=True)
    assert TASKS["grounded_qa"].parse(text)["answer"] is not None
    assert TASKS["grounded_qa"].parse(text)["glue"] is None


@pytest.mark.parametrize("task", ["temporal_grounding", "grounded_qa"])  # tracking's shows two of the eight boxes
def test_a_full_prompt_shows_an_example_that_its_own_reader_accepts(task: str) -> None:
    text = prompt_text(item(task), think=False, style="full")
    example = text[text.rindex("in this form: ") + len("in this form: ") :]
    assert TASKS[task].is_well_formed(example, think=False)


@pytest.mark.parametrize("task", TASKS)
def test_think_and_no_think_prompts_ask_for_what_the_format_score_demands(task: str) -> None:
    asked, not_asked = (prompt_text(item(task), think=think, style="full") for think in (True, False))
    assert "<think>" in asked
    assert "<think>" not in not_asked
    assert all(f"<{block}>" in asked and f"<{block}>" in not_asked for block in TASKS[task].blocks)


def test_a_terse_grounding_prompt_is_the_sentence_alone() -> None:
    for think in (True, False):
        assert prompt_text(item("temporal_grounding", " When? "), think=think, style="terse") == "When?"


def test_prompts_carry_question_options_and_first_box_with_their_braces_untouched() -> None:
    text = prompt_text(item("grounded_qa", "why {x}?"), think=True, style="full")
    assert "why {x}?" in text and "(A) one\n(B) two" in text
    assert "[0.1, 0.2, 0.3, 0.4]" in prompt_text(item("tracking", "a {sloth}"), think=True, style="full")
    assert first_box(TRUTHS["tracking"]) == "[0.1, 0.2, 0.3, 0.4]"


def test_unknown_task_and_style_are_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'dance'.*temporal_grounding, grounded_qa, tracking"):
        prompt_text(dataclasses.replace(item("tracking"), task="dance"), think=True, style="full")
    with pytest.raises(ValueError, match="'loud'.*full, terse"):
        prompt_text(item("tracking"), think=True, style="loud")


@pytest.mark.parametrize(
    ("task", "truth"),
    [
        *(
            ("temporal_grounding", truth)
            for truth in (None, [], [1], [2, 2], [3, 1], [-1, 2], ["1", "2"], [True, 2], {})
        ),
        *(("temporal_grounding", truth) for truth in ([0, float("nan")], [0, float("inf")], [0, 10**400], [1, 2, 3])),
        *(("grounded_qa", {"answer": answer, "glue": [[1, 2]]}) for answer in (None, "", 2, "maybe")),
        *(("grounded_qa", {"answer": "(A)", "glue": glue}) for glue in (None, [], [[2, 2]], [1, 2], "x")),
        *(("grounded_qa", truth) for truth in ("(A)", {"answer": "(A)"}, {"answer": "(A)", "glue": [[1, 2]], "x": 1})),
        *(
            ("tracking", truth)
            for truth in ([BOX] * 7, [BOX] * 7 + [[0.3, 0.2, 0.1, 0.4]], [[10, 20, 30, 40]] * 8, BOX)
        ),
    ],
)
def test_a_broken_truth_raises_and_says_why(task: str, truth: object) -> None:
    with pytest.raises(ValueError, match="truth|time span|box"):
        TASKS[task].read_truth(truth)


@given(st.sampled_from(sorted(TASKS)), json_values)
def test_any_json_is_a_truth_or_a_value_error(task: str, truth: object) -> None:
    try:
        TASKS[task].read_truth(truth)
    except ValueError as error:
        assert len(str(error)) < 400


def test_truths_survive_json() -> None:
    for task, truth in TRUTHS.items():
        assert TASKS[task].read_truth(json.loads(json.dumps(truth))) == TASKS[task].read_truth(truth)


def test_config_weights_take_the_place_of_the_tables_score_by_score() -> None:
    reward = RewardConfig(weights={"grounded_qa": {"iou": 2.5, "format": 0.0}})
    assert score_weights("grounded_qa", reward) == {"format": 0.0, "iou": 2.5, "accuracy": 1.0}
    assert score_weights("tracking", reward) == {"format": 1.0, "iou": 1.0}


def test_weights_that_no_run_can_use_are_all_reported_with_a_remedy() -> None:
    weights = {
        "dance": {"iou": 1.0},
        "tracking": {"accuracy": 1.0, "iou": -1.0},
        "grounded_qa": {"format": 0.0, "iou": 0.0, "accuracy": 0.0},
        "temporal_grounding": {"iou": float("nan")},
    }
    with pytest.raises(ConfigError) as error:
        check_weights(RewardConfig(weights=weights))
    for part in (
        "reward.weights.dance: no such task; the tasks are temporal_grounding",
        "reward.weights.tracking.accuracy: no such score; tracking has format, iou",
        "reward.weights.tracking.iou=-1.0: use a finite number",
        "reward.weights.grounded_qa: all weights are 0",
        "reward.weights.temporal_grounding.iou=nan",
    ):
        assert part in str(error.value)
    check_weights(RewardConfig(weights={"temporal_grounding": {"iou": 2.0}}))
