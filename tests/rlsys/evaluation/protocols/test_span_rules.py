"""What each published rule reads as a time span, from texts written by hand."""

from __future__ import annotations

import pytest

from rlsys.evaluation.protocols.table import PROTOCOLS
from tests.rlsys.evaluation.protocols.rows import answered, grounded

ROW = grounded(3.0, 9.0)


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("<answer>12.54 to 17.83</answer>", (12.54, 17.83)),
        ("<think>from 1 to 2</think><answer>3 to 4</answer>", (3, 4)),
        ("<answer>3 and 4</answer>", (3, 4)),
        ("<answer>1 to 2, then 3 to 4</answer>", (3, 4)),
        ("<answer>1 to 2</answer><answer>3 to 4</answer>", (3, 4)),
        ("<answer>9 to 4</answer>", (9, 4)),
        ("<answer>12.5s to 17.8s</answer>", None),
        ("<answer>3 TO 4</answer>", (3, 4)),
        ("<answer>3  to 4</answer>", None),
        ("<answer>3 - 4</answer>", None),
        ("<answer>00:12 to 00:17</answer>", (12, 0)),
        ("<answer>[3, 4]</answer>", None),
        ("12.54 to 17.83", None),
        ("<answer>12.54 to 17.83", None),
        ("<answer>from -3 to 4</answer>", (3, 4)),
        ("<answer>3. to 4.</answer>", (3, 4)),
        ("<answer></answer>", None),
        ("", None),
        ("<answer>the 2nd to 4th second</answer>", None),
    ],
)
def test_the_papers_rule_reads_the_last_pair_in_the_last_answer(text: str, span: tuple[float, float] | None) -> None:
    assert PROTOCOLS["charades_sta/paper"].read(ROW, text) == (None if span is None else (span,))


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("12.54 to 17.83", (12.54, 17.83)),
        ("<answer>12.54 to 17.83</answer>", (12.54, 17.83)),
        ("<answer>3 to 4</answer> or 5 to 6", (5, 6)),
        ("<think>1 to 2</think> no answer", (1, 2)),
        ("between 5 and 7", (5, 7)),
        ("5 to 7 and 9", (5, 7)),
        ("1 and 2 and 3 and 4", (3, 4)),
        ("9 to 4", (9, 4)),
        ("3 TO 4", None),
        ("3  to 4", None),
        ("12.5s to 17.8s", None),
        ("3. to 4.", (3, 4)),
        ("00:12 to 00:17", (12, 0)),
        ("3-4", None),
        ("from 1.2.3 to 4", (2.3, 4)),
        ("", None),
    ],
)
def test_the_papers_script_reads_the_last_pair_anywhere(text: str, span: tuple[float, float] | None) -> None:
    assert PROTOCOLS["charades_sta/paper_script"].read(ROW, text) == (None if span is None else (span,))


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("The event happens in 24.3 - 30.4 seconds.", (24.3, 30.4)),
        ("24.3 to 30.4", (24.3, 30.4)),
        ("24.3 – 30.4", (24.3, 30.4)),
        ("30.4 - 24.3", (24.3, 30.4)),
        ("happens in 1 - 2 and 3 - 4", (1, 2)),
        ("at 1 - 2!\nIt starts at 5 - 6", (5, 6)),
        ("it starts at 00:18 and ends at 00:23", (18, 23)),
        ("00:00:18 - 00:00:23", (18, 23)),
        ("01:02 to 01:05", (62, 65)),
        ("Start time: 0.8 seconds\nEnd time: 1.1 seconds", (0.8, 1.1)),
        ("The start time is 0 seconds, and the end time is 12 seconds", None),
        ("12.5s to 14s", (12.5, 14)),
        ("12.5 s - 14 s", (12.5, 14)),
        ("person 2 stops at 3 to 5", (3, 5)),
        ("from 3 until 5", None),
        ("3 to 5 to 9", (3, 5)),
        ("A specific example is : 20.8 - 30.0 seconds. It is 1 - 2", (1, 2)),
        ("3-5", (3, 5)),
        ("-3 to 5", (3, 5)),
        ("[3, 5]", None),
        ("no idea", None),
        ("", None),
        ("5 - 5", (5, 5)),
        ("<think>1 - 2</think><answer>12.54 to 17.83</answer>", (12.54, 17.83)),
    ],
)
def test_the_rule_of_lmms_eval_for_charades(text: str, span: tuple[float, float] | None) -> None:
    expected = None if span is None else (span,)
    for name in ("charades_sta/lmms", "activitynet/lmms", "timelens/charades_lmms"):
        assert PROTOCOLS[name].read(ROW, text) == expected


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("3.5 - 7", (3.5, 7)),
        ("3.5 to 7", (3.5, 7)),
        ("3 to 4, or 5 - 6", (5, 6)),
        ("9 - 4", (9, 4)),
        ("00:12 - 00:17", (12, 17)),
        ("00:12.5 to 01:00:17.25", (12.5, 3617.25)),
        ("00:12 to 17", (12, 17)),
        ("starts at 3 and ends at 5 of 8 seconds", (3, 5)),
        ("seconds 3", None),
        ("3–5", (3, 5)),
        ("from 3 until 5", (3, 5)),
        ("[3, 5]", (3, 5)),
        ("3.5s - 7s", None),
        ("3.5 s - 7 s", (3.5, 7)),
        ("12. to 13.", (12, 13)),
        ("2 people at 3 to 5", (3, 5)),
        ("", None),
    ],
)
def test_the_rule_of_lmms_eval_for_timelens(text: str, span: tuple[float, float] | None) -> None:
    assert PROTOCOLS["timelens/lmms"].read(ROW, text) == (None if span is None else (span,))


@pytest.mark.parametrize(
    ("text", "letter", "periods"),
    [
        ("<answer>A</answer><glue>[(5.2, 10.4)]</glue>", "A", ((5.2, 10.4),)),
        ("<answer>(B) a cat</answer><glue>[(1, 2), (3, 4)]</glue>", "B", ((1, 2), (3, 4))),
        ("<answer>C</answer><glue>[(1, 2),(3, 4),]</glue>", "C", ((1, 2), (3, 4))),
        ("<answer>C</answer><glue>[[1, 2]]</glue>", "C", None),
        ("<answer>C</answer><glue>[(4, 2)]</glue>", "C", None),
        ("<answer>C</answer><glue>1 to 2</glue>", "C", None),
        ("<answer>C</answer><glue>[]</glue>", "C", ()),
        ("<answer>C</answer>", "C", None),
        ("<glue>[(1, 2)]</glue>", None, ((1, 2),)),
        ("C [(1, 2)]", None, None),
        ("<answer>The answer is D</answer>", "D", None),
        ("<answer>Best answer: D</answer>", "B", None),
        ("<answer>none</answer>", None, None),
        ("<answer>A</answer><answer>B</answer>", "A", None),
        ("<answer>A</answer><glue>[(1, 2)]</glue><glue>[(3, 4)]</glue>", "A", ((1, 2),)),
        ("<answer>A</answer><glue>[(2, 2)]</glue>", "A", ((2, 2),)),
        ("", None, None),
    ],
)
def test_the_papers_rule_for_grounded_questions(
    text: str, letter: str | None, periods: tuple[tuple[float, float], ...] | None
) -> None:
    row = answered("grounded_qa", {"answer": "(A)", "glue": [[1.0, 2.0]]}, options=("(A) a", "(B) b", "(C) c", "(D) d"))
    expected = None if letter is None and periods is None else {"answer": letter, "glue": periods}
    for name in ("nextgqa/paper", "nextgqa/official"):
        assert PROTOCOLS[name].read(row, text) == expected


def test_a_text_of_digits_is_read_in_linear_time_and_a_huge_number_is_an_answer_without_overlap() -> None:
    text = "9" * 60_000
    for name in ("charades_sta/lmms", "timelens/lmms", "charades_sta/paper_script", "charades_sta/paper"):
        assert PROTOCOLS[name].row_scores(ROW, text)["iou"] == 0.0
        assert PROTOCOLS[name].row_scores(ROW, f"<answer>3 to {text}</answer>")["iou"] == 0.0
    assert PROTOCOLS["charades_sta/lmms"].read(ROW, " 3 - 5 " * 20_000) is None
