from __future__ import annotations

import pytest

from rlsys.data.annotations.options import read_options, right_letter


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (["(A) wind", "(B) a cat"], ["(A) wind", "(B) a cat"]),
        (["A. wind", "B. a cat"], ["(A) wind", "(B) a cat"]),
        (["A) wind", "B: a cat"], ["(A) wind", "(B) a cat"]),
        (["C.They have", "D.They had"], ["(C) They have", "(D) They had"]),
        ([" wind ", "a cat", "rain"], ["(A) wind", "(B) a cat", "(C) rain"]),
        ([3, 4.5], ["(A) 3", "(B) 4.5"]),
        (["British army", "U.S. army"], ["(A) British army", "(B) U.S. army"]),
        (["A boy", "A girl"], ["(A) A boy", "(B) A girl"]),
        (["（B）风，雨", "（A）猫"], ["(B) 风，雨", "(A) 猫"]),
        (["A．wind", "Ｂ. cat"], ["(A) wind", "(B) cat"]),
        (["[B] wind", "[A] cat"], ["(B) wind", "(A) cat"]),
        ("['wind', \"the cat's tail\"]", ["(A) wind", "(B) the cat's tail"]),
    ],
)
def test_options_are_shown_with_their_letters(values: object, shown: list[str]) -> None:
    options, problem = read_options(values)
    assert problem is None
    assert [str(option) for option in options] == shown


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("wind or cat", "not a list"),
        (["only one"], "2 to 26"),
        (["x"] * 27, "2 to 26"),
        (["wind", None], "needs a text"),
        (["wind", " "], "needs a text"),
        (["(A) wind", "cat"], "some have a letter"),
        (["A. wind", "cat"], "some have a letter"),
        (["(A) wind", "(A) cat"], "letters A A repeat"),
    ],
)
def test_options_that_nobody_can_letter_are_dirt(values: object, said: str) -> None:
    options, problem = read_options(values)
    assert options == () and problem is not None
    assert problem.field == "options" and said in problem.text and not problem.is_contradiction


OPTIONS, _ = read_options(["A. took the towel", "B. opened the door", "C. 12"])


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A", "A"),
        ("(b)", "B"),
        ("B.", "B"),
        ("A. Took the towel.", "A"),
        ("(B) opened  the door", "B"),
        ("opened the door", "B"),
        ("12", "C"),
        (12, "C"),
        ("C.12", "C"),
    ],
)
def test_an_answer_is_a_letter_a_text_or_both(answer: object, letter: str) -> None:
    assert right_letter(answer, OPTIONS) == (letter, None)


@pytest.mark.parametrize(
    ("answer", "is_contradiction"),
    [("D", True), ("closed the window", True), ("A. opened the door", True), ("B. ran", False), (None, False)],
)
def test_an_answer_against_the_options_contradicts_and_an_unclear_one_is_dirt(
    answer: object, is_contradiction: bool
) -> None:
    _, problem = right_letter(answer, OPTIONS)
    assert problem is not None
    assert (problem.field, problem.is_contradiction) == ("answer", is_contradiction)
