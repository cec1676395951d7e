"""What each published rule reads as an option letter, from texts written by hand."""

from __future__ import annotations

import pytest

from rlsys.evaluation.protocols.table import PROTOCOLS
from tests.rlsys.evaluation.protocols.rows import answered, chosen

ROW = chosen("B")

# text, VLMEvalKit's Video-MME, lmms-eval's Video-MME, lmms-eval's Perception Test, R4D-Bench, lmms-eval's MVBench
TEXTS: list[tuple[str, str | None, str | None, str | None, str | None, str | None]] = [
    ("B", "B", "B", "B", "B", "B"),
    ("(B)", "B", "B", "B", "B", "B"),
    ("B.", "B", "B", "B", "B", "B"),
    ("B. a cat", "B", "B", "B", "B", "B"),
    ("b", None, None, None, None, "B"),
    ("(b) a cat", None, None, None, None, "B"),
    ("**B**", "B", "B", "B", "B", "B"),
    ("（B）", "B", "B", "B", "B", "B"),
    ("The answer is B", "B", "B", "B", "B", "B"),
    ("The best answer is (B).", "B", "B", "B", "B", "B"),
    ("Best answer: C", "B", "C", "C", "C", "C"),
    ("Answer: A", "A", "A", "A", "A", "A"),
    ("A or B", "A", "A", "A", "A", "A"),
    ("C, not (B)", "C", "C", "C", "B", "C"),
    ("Because of (C)", "B", "C", "C", "C", "C"),
    ("A man walks", "A", "A", "A", "A", "A"),
    ("a man walks", None, None, None, None, "A"),
    ("It is D because A is wrong", "D", "A", "D", "D", "D"),
    ("The answer is D because A is wrong", "D", "A", "D", "D", "D"),
    ("I choose C. A is wrong", "C", "A", "C", "C", "C"),
    ("答案是B", "B", "B", None, None, None),
    ("option C) it is", "C", "C", "C", "C", "C"),
    ("E", None, None, None, None, "E"),
    ("(E)", None, None, None, None, "E"),
    ("CAB", "C", "B", None, None, None),
    ("none of them", None, None, None, None, None),
    ("", None, None, None, None, None),
    ("<think>A or C</think><answer>(B)</answer>", "B", "B", "B", "B", "B"),
    ("<think>A or C</think> B", "B", "B", "B", "B", "B"),
]
NAMES = ("videomme/vlmevalkit", "videomme/lmms", "perception_test", "r4d_bench", "mvbench/lmms")


@pytest.mark.parametrize("texts", TEXTS, ids=lambda texts: repr(texts[0]))
def test_letters(texts: tuple[str, ...]) -> None:
    text, *letters = texts
    assert {name: PROTOCOLS[name].read(ROW, text) for name in NAMES} == dict(zip(NAMES, letters, strict=True))


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        ("B", True),
        ("b", True),
        ("(B)", True),
        ("(B) a cat", True),
        ("(B)a", True),
        ("B.", True),
        ("B. a cat", True),
        ("B) a cat", True),
        ("( B )", True),  # "(" is a part of "(b)"
        (")", True),
        ("Answer:(B)", True),
        ("The answer is B", False),
        ("B: a cat", False),
        ("B, a cat", False),
        ("**B**", False),
        ("B\na cat", False),
        ("A", False),
        ("a cat", False),
        ("", False),  # right in MVBench's own code
        ("...", False),  # likewise
    ],
)
def test_mvbench_compares_the_first_word_with_the_option(text: str, is_right: bool) -> None:
    assert PROTOCOLS["mvbench"].row_scores(ROW, text)["correct"] == float(is_right)


@pytest.mark.parametrize(
    ("text", "letter", "number", "lmms_number"),
    [
        ("B", "B", None, None),
        ("b.", "B", None, None),
        ("B. a cat", "B", None, None),
        ("(B)", "(B)", None, None),
        ("3", "3", 3.0, 3.0),
        ("3.", "3", 3.0, 3.0),
        ("3.5 meters", "3.5", 3.5, 3.5),
        ("3.5meters", "3.5METERS", None, 3.5),
        ("-2", "-2", -2.0, -2.0),
        ("1e3", "1E3", 1000.0, 1.0),
        ("There are 3 boxes", "THERE", None, 3.0),
        ("three", "THREE", None, 3.0),
        ("twenty-one", "TWENTY-ONE", None, 21.0),
        ("three hundred and twenty-one", "THREE", None, 321.0),
        ("two thousand and five", "TWO", None, 2005.0),
        ("one apple, room 2", "ONE", None, 1.0),
        ("room 2, one apple", "ROOM", None, 2.0),
        (" 3", None, None, 3.0),
        ("<answer> 3 </answer>", "3", 3.0, 3.0),
        ("unknown", "UNKNOWN", None, None),
        ("", None, None, None),
    ],
)
def test_vsi_bench_reads_the_first_word(
    text: str, letter: str | None, number: float | None, lmms_number: float | None
) -> None:
    asked = answered("numeric_qa", 3.0, question_type="object_counting")
    assert PROTOCOLS["vsi_bench"].read(ROW, text) == letter
    assert PROTOCOLS["vsi_bench"].read(asked, text) == number
    assert PROTOCOLS["vsi_bench/lmms"].read(asked, text) == lmms_number


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        ("<answer>low quality</answer>", True),
        ("<answer> Low Quality\n</answer>", True),
        ("<think>high quality</think><answer>low quality</answer>", True),
        ("<answer>low quality</answer><answer>high quality</answer>", True),
        ("<answer>high quality</answer><answer>low quality</answer>", False),
        ("<answer>low quality.</answer>", False),
        ("<answer>'low quality'</answer>", False),
        ("<answer>low</answer>", False),
        ("<answer>it is low quality</answer>", False),
        ("low quality", False),
        ("<answer></answer>", False),
        ("<answer>low  quality</answer>", False),
        ("<answer>（low quality）</answer>", False),
        ("<answer>low quality", False),
        ("", False),
    ],
)
def test_vidtab_compares_the_whole_first_answer(text: str, is_right: bool) -> None:
    row = answered("video_quality", "Low quality")
    assert PROTOCOLS["vidtab"].row_scores(row, text)["accuracy"] == float(is_right)
