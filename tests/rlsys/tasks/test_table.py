from __future__ import annotations

import dataclasses
import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_servers.scorers.scorers import SCORERS
from rlsys.config.answers import Reading
from rlsys.config.run import ConfigError, RewardConfig
from rlsys.tasks.table import (
    GROUP_SCORES,
    JUDGED,
    TASKS,
    check_weights,
    default_names,
    expected_answer,
    judged_scores,
    prompt_text,
    score_weights,
)
from rlsys.tasks.truths import first_box
from rlsys.types import ImageSpec, PromptItem
from tests.support.task_examples import BOX, PIXELS, RIGHT, TRUTHS

TEXT_FIELDS = {"question", "options", "first_box", "num_frames", "medium", "box_unit", "box_example"}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=8)
        | st.dictionaries(
            st.sampled_from(["answer", "glue", "box", "period", "width", "height", "caption", "events", "x"]), inner
        )
    ),
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
    assert {how.scorer for how in row.scores.values()} <= set(SCORERS) | JUDGED | GROUP_SCORES
    assert all(how.source for how in row.scores.values())
    assert not row.scores[row.correctness].is_optional and row.scores["consistency"].scorer in JUDGED
    assert {how.block for how in row.scores.values()} - {None} <= set(row.blocks)
    assert set(row.read_truth(TRUTHS[task])) == set(row.blocks)
    fields = {field for text in row.prompts.values() for _, field, _, _ in string.Formatter().parse(text) if field}
    assert fields <= TEXT_FIELDS


@pytest.mark.parametrize("task", TASKS)
def test_a_right_answer_is_well_formed_only_in_the_requested_variant(task: str) -> None:
    row, answer = TASKS[task], RIGHT[task]
    truth = row.read_truth(TRUTHS[task])
    expected = expected_answer(TRUTHS[task], (), truth)
    readings: tuple[Reading, ...] = ("paper", "lenient", "strict")
    for reading in readings:
        assert row.is_well_formed(answer, think=False, reading=reading, expected=expected)
        assert not row.is_well_formed(answer, think=True, reading=reading, expected=expected)
        thought = f"<think>because</think>\n{answer}"
        assert row.is_well_formed(thought, think=True, reading=reading, expected=expected)
        assert not row.is_well_formed(thought, think=False, reading=reading, expected=expected)
        if reading == "strict":
            assert row.parse(answer, reading, expected) == truth


def test_an_unreadable_block_fails_the_format_and_leaves_the_other_block() -> None:
    text = "<think>a</think><answer>(B)</answer><glue>none</glue>"
    assert not TASKS["grounded_qa"].is_well_formed(text, think=True)
    assert TASKS["grounded_qa"].parse(text)["answer"] is not None
    assert TASKS["grounded_qa"].parse(text)["glue"] is None


@pytest.mark.parametrize("task", sorted(set(TASKS) - {"tracking"}))  # tracking's shows two of the eight boxes
def test_a_full_prompt_shows_an_example_that_its_own_reader_accepts(task: str) -> None:
    text = prompt_text(item(task), think=False, style="full")
    example = text[text.rindex("in this form: ") + len("in this form: ") :]
    assert TASKS[task].is_well_formed(example, think=False)


@pytest.mark.parametrize("task", TASKS)
def test_think_and_no_think_prompts_request_what_the_format_score_requires(task: str) -> None:
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


def test_a_box_is_requested_in_the_unit_of_its_truth_and_for_its_medium() -> None:
    fractions = prompt_text(item("spatial_grounding"), think=False, style="full")
    assert "as fractions of the video's width and height between 0 and 1" in fractions
    still = ImageSpec(uri="a.jpg", min_pixels=784, max_pixels=7840)
    pixels = dataclasses.replace(item("spatial_grounding"), truth=PIXELS, media=(still,))
    text = prompt_text(pixels, think=False, style="full")
    assert "in pixels of the image, which is 640 wide and 480 high" in text and "video" not in text
    assert "<answer>[64, 120, 288, 384]</answer>" in text


def test_a_question_without_options_leaves_no_gap_for_them() -> None:
    bare = dataclasses.replace(item("multiple_choice", "Which one?\n\nA. one B. two"), options=())
    assert prompt_text(bare, think=True, style="terse") == "Which one?\n\nA. one B. two"
    assert "B. two\nFirst work out" in prompt_text(bare, think=True, style="full")


def test_unknown_task_and_style_are_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'dance'.*temporal_grounding, tracking, spatial_grounding"):
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
        *(
            ("spatial_grounding", truth)
            for truth in (
                BOX,
                {},
                {"box": [1, 2, 3, 4]},
                {"box": BOX, "width": 640},
                {**PIXELS, "width": 100},
                {**PIXELS, "width": True},
                {**PIXELS, "x": 1},
                {**PIXELS, "height": 1e300},
            )
        ),
        *(("spatial_qa", truth) for truth in ("(A)", PIXELS, {"answer": "maybe", "box": BOX})),
        *(("spatiotemporal_grounding", truth) for truth in ([1, 2], {"period": [2, 1], "box": BOX})),
        *(("multiple_choice", truth) for truth in (None, 2, "", "maybe", ["A"])),
        *(("numeric_qa", truth) for truth in ("3", True, float("nan"), float("inf"), 1e10, 10**400, [3])),
        *(("video_quality", truth) for truth in ("", "…" * 500, 1, None, " . ")),
        *(("captioning", truth) for truth in ("a cat", {}, {"caption": " "}, {"caption": "a", "events": []})),
        ("captioning", {"caption": "a", "events": ["b", 1]}),
    ],
)
def test_a_broken_truth_raises_and_says_why(task: str, truth: object) -> None:
    with pytest.raises(ValueError, match="truth|time span|box|write"):
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


def test_config_weights_replace_the_tables_score_by_score() -> None:
    reward = RewardConfig(weights={"grounded_qa": {"iou": 2.5, "format": 0.0}})
    assert score_weights("grounded_qa", reward) == {"format": 0.0, "iou": 2.5, "accuracy": 1.0}
    assert score_weights("tracking", reward) == {"format": 1.0, "iou": 1.0}


def test_optional_and_own_scores_count_only_where_the_config_names_them() -> None:
    weights = {"captioning": {"f1": 0.5, "polite": 0.1}, "numeric_qa": {"length_bonus": 0.2, "order_contrast": 0.0}}
    reward = RewardConfig(weights=weights, scorers={"polite": "rewards:polite", "unused": "rewards:unused"})
    check_weights(reward)
    assert score_weights("captioning", reward) == {"format": 1.0, "recall": 1.0, "f1": 0.5, "polite": 0.1}
    assert list(score_weights("numeric_qa", reward)) == ["format", "accuracy", "length_bonus", "order_contrast"]
    assert score_weights("multiple_choice", reward) == {"format": 1.0, "accuracy": 1.0}
    assert default_names("captioning") == ("format", "recall")
    assert default_names("dance") == () and judged_scores("dance") == frozenset()
    assert judged_scores("captioning") == {"recall", "precision", "f1", "consistency"}
    assert judged_scores("tracking") == {"consistency"}


def test_weights_that_no_run_can_use_are_all_reported_with_a_remedy() -> None:
    weights = {
        "dance": {"iou": 1.0},
        "tracking": {"accuracy": 1.0, "iou": -1.0},
        "grounded_qa": {"format": 0.0, "iou": 0.0, "accuracy": 0.0},
        "temporal_grounding": {"iou": float("nan")},
    }
    scorers = {"iou": "a:b", "two words": "a:b", "fine": "os.system"}
    with pytest.raises(ConfigError) as error:
        check_weights(RewardConfig(weights=weights, scorers=scorers))
    for part in (
        "reward.weights.dance: no such task; the tasks are temporal_grounding",
        "reward.weights.tracking.accuracy: no such score; tracking has format, iou",
        "reward.weights.tracking.iou=-1.0: use a finite number",
        "reward.weights.grounded_qa: all weights are 0",
        "reward.weights.temporal_grounding.iou=nan",
        "reward.scorers.iou: the task table has a score of that name",
        "reward.scorers.two words: a score's name consists of letters",
        "reward.scorers.fine='os.system': write it as package.module:function",
    ):
        assert part in str(error.value)
    check_weights(RewardConfig(weights={"temporal_grounding": {"iou": 2.0}}))


@pytest.mark.parametrize(
    "options",
    [("(A) the door", "(B) a hat"), ("A. the door", "B. a hat"), ("A) the door", "B: a hat"), ("the door", "a hat")],
)
def test_options_of_a_row_are_known_in_every_usual_form(options: tuple[str, ...]) -> None:
    task = TASKS["multiple_choice"]
    expected = expected_answer("(B)", options, task.read_truth("(B)"))
    assert expected.options == (("A", "the door"), ("B", "a hat"))
    text = "<think>a</think><answer>a hat</answer>"
    assert task.parse(text, "lenient", expected) == task.read_truth("(B)")


def test_a_true_option_that_is_none_of_the_options_is_a_broken_truth_and_no_wrong_answer() -> None:
    truth = {"answer": "(E)", "glue": [[1.0, 2.0]]}
    with pytest.raises(ValueError, match=r"truth answer \(E\): the options are A, B"):
        expected_answer(truth, ("(A) x", "(B) y"), TASKS["grounded_qa"].read_truth(truth))
