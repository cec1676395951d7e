"""The three readings of answers, against tables written by hand."""

from __future__ import annotations

import json

import pytest

from rlsys.config.answers import Reading
from rlsys.tasks.answers import Answer, Boxes, Choice, Expected, Number, Phrase, TimeSpans, last_block
from rlsys.tasks.readings import READERS
from rlsys.tasks.table import expected_answer, task_named
from tests.support.video_files import shared_data

READINGS: tuple[Reading, ...] = ("paper", "lenient", "strict")
OPTIONS = (("A", "open the door"), ("B", "vitamin C"), ("C", "unwrap it"), ("D", "A dog."))
WITH_OPTIONS = Expected(options=OPTIONS, letter="C")
EIGHT = ", ".join(["[0.1, 0.1, 0.2, 0.2]"] * 8)


def read(kind: str, text: str, expected: Expected) -> list[Answer | None]:
    return [READERS[kind].of(reading)(text, expected) for reading in READINGS]


P = (12.5, 17.8)


@pytest.mark.parametrize(
    ("text", "paper", "lenient", "strict"),
    [
        ("12.5 to 17.8", P, P, P),
        ("12.5 to 17.8 and 2 others", P, P, P),
        ("0.041999999999999996 to 17.8", *[(0.041999999999999996, 17.8)] * 3),
        ("the 3rd person at 12.5 to 17.8 and 2 others", P, P, P),
        ("12.5s to 17.8s", None, P, None),
        ("12.5 - 17.8", None, P, None),
        ("12.5–17.8", None, P, None),
        ("[12.5, 17.8]", None, P, None),
        ("(12.5, 17.8)", None, P, None),
        ("00:12 to 00:17", (12, 0), (12, 17), None),
        ("1:02:03 - 1:02:05", None, (3723, 3725), None),
        ("12.5 to 17.8秒", P, P, None),
        ("从12.5到17.8", None, P, None),
        ("12.5to17.8", None, P, None),
        ("１２.5 to 17.8", P, P, None),
        ("start: 12.5, end: 17.8", None, P, None),
        ('{"start_time": 12.5, "end_time": 17.8}', None, P, None),
        ("1 min 5 s to 1 min 20 s", None, (65, 80), None),
        ("1 minute 5 to 1 minute 20 seconds", (5, 1), (65, 80), (5, 1)),
        ("12.5 to 17.8 minutes", P, (750, 1068), P),
        ("-1 to 17.8", (1, 17.8), None, None),
        ("12.5 to 17.8 and 30 to 35", (30, 35), None, (30, 35)),
        ("?3.0 to 5.0", (3, 5), (3, 5), None),
        ("12.5 to 17.8, that is 12.5 to 17.8", P, P, P),
        ("17.8", None, None, None),
        ("[[1, 2], [3, 4]]", None, None, None),
        ('{"start":12.5,"end":17.8}', None, P, None),
        ("time:12.5-17.8", None, P, None),
        ("12.5 → 17.8", None, P, None),
        ("12.5 − 17.8", None, P, None),
        ("$12.5 \\to 17.8$", None, P, None),
        ("\\[12.5, 17.8\\]", None, P, None),
        ("[12.5; 17.8]", None, P, None),
        ("【12.5，17.8】", None, P, None),
        ("<12.5> to <17.8>", None, P, P),
        ("t = 12.5 s to t = 17.8 s", None, P, None),
        ("~12.5 to ~17.8", None, P, None),
        ("12.5 sec. to 17.8 sec.", None, P, None),
        ("12.5 up to 17.8", None, P, None),
        ("00:00:12,500 --> 00:00:17,800", None, P, None),
        ("12500 ms to 17800 ms", None, P, None),
        ("0h0m12.5s to 0h0m17.8s", None, P, None),
        ("1小时2分3秒到1小时2分5秒", None, (3723, 3725), None),
        ("从12.5秒开始，到17.8秒结束", None, P, None),
        ("从第12.5秒到第17.8秒", None, P, None),
        ("开始时间：12.5秒，结束时间：17.8秒", None, P, None),
        ("12,5 to 17,8", (5, 17), None, (5, 17)),
        ("1,200 to 1,300", (200, 1), None, (200, 1)),
        ("12.5 to 17.8 to 20", P, None, (17.8, 20)),
        ("2020-01-02", None, None, None),
        ("1:99 to 2:00", (99, 2), None, None),
        ("1/2 to 3/4", (2, 3), None, None),
        ("10 to 20 frames", (10, 20), None, (10, 20)),
        ("10% to 20%", None, None, None),
        ("[12.5] to [17.8]", None, P, P),
        ("[00:12] - [00:17]", None, (12, 17), None),
        ("12.5 s (00:12) to 17.8 s (00:17)", None, None, None),
        ("The action starts at 12.5 seconds and finishes at 17.8 seconds", None, P, None),
        ("start 12.5 end 17.8", None, P, None),
        ("1:05 min to 1:20 min", None, (65, 80), None),
        ("12 \\rightarrow 17", None, (12, 17), None),
        ("$12.5\\,\\text{s} - 17.8\\,\\text{s}$", None, P, None),
        ('{"start": 12.5, "end": 17.8, "duration": 5.3}', None, P, None),
        ('{"start": 12.5, "duration": 5.3, "end": 17.8}', None, None, None),
        ('{"start": 12.5, "confidence": 0.9, "end": 17.8}', None, None, None),
        ("2024-01-01T00:00:12Z to 2024-01-01T00:00:17Z", None, None, None),
        ("1'05\" to 1'20\"", None, None, (5, 1)),
        ("12.5.3 to 17.8", (5.3, 17.8), None, None),
        ("12.5 ± 0.5 to 17.8 ± 0.5", (0.5, 17.8), None, (0.5, 17.8)),
        ("frames: [12, 17]", None, None, None),
        ("frame indices 12 to 17", (12, 17), None, (12, 17)),
        ("the dog is in the frame from 12.5 to 17.8", P, P, P),
        ("[12, 17] minutes", None, None, None),
        ("10 to 20 pct", (10, 20), None, (10, 20)),
    ],
)
def test_periods(
    text: str,
    paper: tuple[float, float] | None,
    lenient: tuple[float, float] | None,
    strict: tuple[float, float] | None,
) -> None:
    found = read("period", text, Expected())
    for answer, wanted in zip(found, (paper, lenient, strict), strict=True):
        assert answer == (None if wanted is None else TimeSpans(spans=(wanted,)))


TWO = ((5.2, 10.4), (31.0, 33.5))


@pytest.mark.parametrize(
    ("text", "paper", "lenient", "strict"),
    [
        ("[(5.2, 10.4), (31.0, 33.5)]", TWO, TWO, TWO),
        ("[(5.2,10.4),(31.0,33.5),]", TWO, TWO, TWO),
        ("[]", (), (), None),
        ("[[5.2, 10.4], [31.0, 33.5]]", None, TWO, TWO),
        ("(5.2, 10.4), (31.0, 33.5)", None, TWO, None),
        ("5.2 to 10.4, 31 to 33.5", None, TWO, None),
        ("[(5.2s, 10.4s), (31s, 33.5s)]", None, TWO, None),
        ("[(5.2, 10.4); (31, 33.5)]", None, TWO, None),
        ('[{"start": 5.2, "end": 10.4}, {"start": 31, "end": 33.5}]', None, TWO, None),
        ("```json\n[[5.2,10.4],[31,33.5]]\n```", None, TWO, TWO),
        (" [(5.2, 10.4)]", None, ((5.2, 10.4),), ((5.2, 10.4),)),
        ("[(10.4, 5.2)]", None, ((10.4, 5.2),), ((10.4, 5.2),)),
        ("[(05, 10)]", None, ((5, 10),), ((5, 10),)),
        ("[(5.2, 10.4), ]", None, ((5.2, 10.4),), ((5.2, 10.4),)),
        ("5.2 to 10.4, then 31", None, None, None),
        ("1. 5.2 to 10.4\n2. 31 to 33.5", None, TWO, None),
        ("- 5.2 to 10.4\n- 31 to 33.5", None, TWO, None),
        ("Period 1: 5.2 to 10.4; Period 2: 31 to 33.5", None, TWO, None),
        ("5.2秒到10.4秒，31秒到33.5秒", None, TWO, None),
        ("```json\n[]\n```", None, (), None),
        ("[(5, 10)] minutes", None, None, ((5, 10),)),
        ("[(5000, 10000)] milliseconds", None, None, ((5000, 10000),)),
        ("frames [(5, 10)]", None, None, ((5, 10),)),
        ("[(5, 10), (31, 33)] (in frames)", None, None, None),
        ("[(5.2, 10.4)] of the 60 s", None, None, ((5.2, 10.4),)),
        ("[(5.2, 10.4)] or [(31, 33.5)]", None, None, None),
    ],
)
def test_lists_of_periods(
    text: str,
    paper: tuple[tuple[float, float], ...] | None,
    lenient: tuple[tuple[float, float], ...] | None,
    strict: tuple[tuple[float, float], ...] | None,
) -> None:
    found = read("periods", text, Expected())
    for answer, wanted in zip(found, (paper, lenient, strict), strict=True):
        assert answer == (None if wanted is None else TimeSpans(spans=wanted))


@pytest.mark.parametrize(
    ("text", "letters"),  # of paper, lenient and strict; "-" is none
    [
        ("(C)", "CCC"),
        ("C", "CCC"),
        ("**C**", "CC-"),
        ("C. unwrap it", "CCC"),
        ("C.unwrap it", "CC-"),
        ("Option C", "CC-"),
        ("$\\boxed{C}$", "CC-"),
        ("[C]", "CC-"),
        ("（C）", "CC-"),
        ("答案：C", "CC-"),
        ("C：解开", "CC-"),
        ("The answer is C", "CC-"),
        ("The correct answer is (C).", "CC-"),
        ("I think the answer is C", "CC-"),
        ("c", "-CC"),
        ("unwrap it", "-C-"),
        ("Unwrap it.", "-C-"),
        ("Answer: C", "AC-"),
        ("(C) or (A)", "C-C"),
        ("A or B or C", "A--"),
        ("(A)(B)(C)(D)", "A--"),
        ("C. open the door", "C-C"),
        ("vitamin C", "CB-"),
        ("A dog.", "AD-"),
        ("A.M.", "A--"),
        ("H", "--H"),
        ("", "---"),
        ("answer: c", "-C-"),
        ("Answer: (c)", "AC-"),
        ("option c", "-C-"),
        ("ans: C", "CC-"),
        ("Solution: C", "CC-"),
        ("Antwort: C", "AC-"),
        ("It's C", "CC-"),
        ("I'd go with C", "CC-"),
        ("The answer must be C", "CC-"),
        ("C is the correct answer", "CC-"),
        ("C – unwrap it", "CC-"),
        ("C unwrap it", "CC-"),
        ("C\nunwrap it", "CC-"),
        ("C (unwrap it)", "CC-"),
        ("C unlock it", "C--"),
        ("Hepatitis C", "C--"),
        ("C is wrong", "C--"),
        ("Option C is not correct", "C--"),
        ("The answer isn't C", "C--"),
        ("The answer cannot be C", "C--"),
        ("答案不是C", "C--"),
        ("C不对", "C--"),
    ],
)
def test_options(text: str, letters: str) -> None:
    found = read("choice", text, WITH_OPTIONS)
    assert found == [None if letter == "-" else Choice(letter=letter) for letter in letters]


@pytest.mark.parametrize(
    "text",
    [
        "I doubt it is C",
        "I don't think it's C",
        "It wouldn't be C",
        "The answer should not be C",
        "Wrong: C",
        "The incorrect option is C",
        "C (incorrect)",
        "C does not fit",
        "Die Antwort ist nicht C",
        "La réponse n'est pas C",
        "答案不可能是C",
        "不能选C",
        "C是错的",
        "C은 아니다",
        "Cではない",
        "Не C",
        "Person C is a man",
        "It is a plan C",
        "Option C (open the door)",
        "open the door (C)",
        "The answer is C: open the door",
        "(c) or (d)",
        "(C)(d)",
        "Answer: C or d",
    ],
)
def test_an_option_that_is_denied_or_named_beside_another_one_is_no_answer(text: str) -> None:
    assert READERS["choice"].of("lenient")(text, WITH_OPTIONS) is None


SIGNS = (("A", "the man's hat"), ("B", "drink_from the *cup*"), ("C", "he is not there"), ("D", "U.S.A."))


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("the man's hat", "A"),
        ("the man’s hat", "A"),
        ("drink_from the *cup*", "B"),
        ("D. U.S.A.", "D"),
        ("he is not there", "C"),
        ("C. he is not there", "C"),
        ("C, he is not there", "C"),
        ("C (he is not there)", "C"),
        ("The answer is: he is not there.", "C"),
        ("Answer: the man's hat", "A"),
        ("he is not there (C)", "C"),
        ("C because nobody is in the room", "C"),
        ("C, because the man does not come", "C"),
        ("Since he does not come, the answer is C", "C"),
        ("I'm not sure, but I think it's C", "C"),
        ("C\n\nExplanation: the room is empty.", "C"),
        ("Réponse : C", "C"),
        ("If I had to guess, I would choose C", "C"),
        ("答案是C 因为没有人", "C"),
        ("答案是A 因为没有人", "A"),
        ("La respuesta correcta es C", "C"),
    ],
)
def test_an_option_is_read_by_its_own_words_whatever_signs_are_in_them(text: str, letter: str) -> None:
    assert READERS["choice"].of("lenient")(text, Expected(options=SIGNS, letter="C")) == Choice(letter=letter)


def test_an_option_after_g_is_read_at_the_beginning_by_the_paper_reading() -> None:
    expected = Expected(letter="I")
    assert READERS["choice"].paper("(I) because", expected) == Choice(letter="I")
    assert READERS["choice"].paper("I think it is C", expected) is None


B = (0.1, 0.2, 0.3, 0.4)


@pytest.mark.parametrize(
    ("text", "paper", "lenient", "strict"),
    [
        ("[0.1, 0.2, 0.3, 0.4]", B, B, B),
        ('```json\n[{"bbox_2d": [0.1, 0.2, 0.3, 0.4], "label": "cat"}]\n```', None, B, None),
        ('{"x1": 0.1, "y1": 0.2, "x2": 0.3, "y2": 0.4}', None, B, None),
        ("(0.1,0.2),(0.3,0.4)", None, B, None),
        ("<|box_start|>(0.1,0.2),(0.3,0.4)<|box_end|>", None, B, None),
        ("[10%, 20%, 30%, 40%]", None, B, None),
        ("［0.1，0.2，0.3，0.4］", None, B, None),
        ("The box (red car) is [0.1, 0.2, 0.3, 0.4]", None, B, None),
        ("[0.1, 0.2, 0.3, 0.4, 0.9]", None, None, None),
        ("[0.1, 0.2, 0.3, 0.4] or [0, 0, 1, 1]", None, None, None),
        ("0.1, 0.2, 0.3, 0.4", None, B, None),
        ("[0.1; 0.2; 0.3; 0.4]", None, B, None),
        ("【0.1，0.2，0.3，0.4】", None, B, None),
        ("x_min: 0.1, y_min: 0.2, x_max: 0.3, y_max: 0.4", None, B, None),
        ('{"left": 0.1, "top": 0.2, "right": 0.3, "bottom": 0.4}', None, B, None),
        ("top-left (0.1, 0.2), bottom-right (0.3, 0.4)", None, B, None),
        ("(0.1, 0.2) to (0.3, 0.4)", None, B, None),
        ("\\left[0.1, 0.2, 0.3, 0.4\\right]", None, B, None),
        ("[x0, y0, x1, y1] = [0.1, 0.2, 0.3, 0.4]", None, B, None),
        ("[y0, x0, y1, x1] = [0.1, 0.2, 0.3, 0.4]", None, None, None),
        ('{"box_2d": [0.1, 0.2, 0.3, 0.4]}', B, None, B),
        ("xywh: [0.1, 0.2, 0.3, 0.4]", B, None, B),
        ("[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]", None, None, None),
    ],
)
def test_boxes(
    text: str,
    paper: tuple[float, float, float, float] | None,
    lenient: tuple[float, float, float, float] | None,
    strict: tuple[float, float, float, float] | None,
) -> None:
    for answer, wanted in zip(read("box", text, Expected()), (paper, lenient, strict), strict=True):
        assert answer == (None if wanted is None else Boxes(boxes=(wanted,)))


def test_only_the_lenient_reading_scales_fractions_to_a_truth_in_pixels() -> None:
    paper, lenient, _ = read("box", "[0.1, 0.2, 0.5, 0.5]", Expected(frame=(640.0, 480.0)))
    assert paper == Boxes(boxes=((0.1, 0.2, 0.5, 0.5),))
    assert lenient == Boxes(boxes=((64.0, 96.0, 320.0, 240.0),))


@pytest.mark.parametrize(
    ("text", "is_read"),  # by paper, lenient and strict
    [
        (f"[{EIGHT}]", (True, True, True)),
        (f"```json\n[{EIGHT}]\n```", (False, True, True)),
        (EIGHT, (False, True, False)),
        ("\n".join(f"{n}. [0.1, 0.1, 0.2, 0.2]" for n in range(1, 9)), (False, True, False)),
        (f"[{EIGHT}, [0.1, 0.1, 0.2, 0.2]]", (False, False, False)),
        (f"[{EIGHT.replace('0.2]', '20]')}]", (True, False, False)),
    ],
)
def test_tracked_boxes(text: str, is_read: tuple[bool, bool, bool]) -> None:
    found = read("boxes", text, Expected(num_boxes=8))
    assert tuple(answer is not None for answer in found) == is_read


def test_as_many_boxes_are_read_as_the_truth_has() -> None:
    four = "[[0.1, 0.1, 0.2, 0.2], [0.1, 0.1, 0.2, 0.2], [0.1, 0.1, 0.2, 0.2], [0.1, 0.1, 0.2, 0.2]]"
    assert None not in read("boxes", four, Expected(num_boxes=4))
    assert read("boxes", four, Expected(num_boxes=8)) == [None, None, None]


@pytest.mark.parametrize(
    ("text", "paper", "lenient", "strict"),
    [
        ("3", 3, 3, 3),
        ("3.", 3, 3, 3),
        ("-3", -3, -3, -3),
        ("3 people", 3, 3, 3),
        ("3 people there", 3, 3, None),
        ("about 3", None, 3, None),
        ("$3", None, 3, None),
        ("３", None, 3, None),
        ("1,234", None, 1234, None),
        ("1,234,567.5 m", None, 1234567.5, None),
        ("3k", None, 3000, 3),
        ("3 million", 3, 3e6, 3),
        ("\\boxed{3}", None, 3, None),
        ("3-4", None, None, None),
        ("3 or 4", 3, None, None),
        ("1,5", None, None, None),
        ("1e3", 1000, None, None),
        ("50%", None, 50, 50),
        ("three", None, None, None),
        ("999999999999", None, None, None),
        ("−3", None, -3, None),
        ("12 m²", 12, 12, 12),
        ("$1{,}234$", None, 1234, None),
        ("3 dozen", 3, 36, 3),
        ("3亿", None, 3e8, None),
        ("5'10\"", None, None, None),
        ("1st", None, None, 1),
        ("0,123", None, None, None),
        ("10⁶", None, None, None),
        ("2²", None, None, 2),
        ("3M", None, None, 3),
        ("3 K", 3, None, 3),
        ("3 trillion", 3, None, 3),
        ("3 dozens", 3, 36, 3),
        ("- 3", None, None, None),
        ("minus 3", None, None, None),
        ("not 3", None, None, None),
        ("more than 3", None, None, None),
        (">3", None, None, None),
        ("3 or more", 3, None, None),
        ("3 people over there", 3, 3, None),
    ],
)
def test_numbers(text: str, paper: float | None, lenient: float | None, strict: float | None) -> None:
    for answer, wanted in zip(read("number", text, Expected()), (paper, lenient, strict), strict=True):
        assert answer == (None if wanted is None else Number(value=wanted))


def test_classes() -> None:
    assert read("phrase", " High Quality\n", Expected()) == [Phrase(text="high quality")] * 3
    quoted = read("phrase", "'High quality.'", Expected())
    assert quoted == [Phrase(text="'high quality.'"), Phrase(text="high quality"), Phrase(text="high quality")]


OTHERWISE = {  # what the lenient reading makes of the collected answers that do not say the truth beside them
    "1 minute 5 seconds to 1 minute 20 seconds": TimeSpans(spans=((65, 80),)),
    "12.5 to 17.8 minutes": TimeSpans(spans=((750, 1068),)),
    "-1 to 17.8": None,
    "12.5 to 17.8 and 30 to 35": None,
    "A or B or C": None,
    "(C) or (A)": None,
    "(A)(B)(C)(D)": None,
    "A.M.": None,
    "I": Choice(letter="I"),
    "I think it is C": Choice(letter="C"),
    "[0.1, 0.2, 0.3, 0.4, 0.9]": None,
    "[" + ", ".join(["[0.1, 0.1, 0.2, 0.2]"] * 7) + "]": None,  # one box is missing
    "3-4": None,
    "-3": Number(value=-3),
    "50%": Number(value=50),
    '[{"start":5.2,"end":10.45}]': TimeSpans(spans=((5.2, 10.45),)),
}


def test_the_lenient_reading_of_every_collected_answer_is_its_truth_or_known() -> None:
    lines = shared_data("cases", "answers", "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 95
    for line in lines:
        row = json.loads(line)
        task = task_named(row["task"])
        truth = task.read_truth(row["truth"])
        found = task.parse(row["text"], "lenient", expected_answer(row["truth"], (), truth))
        for block, answer in found.items():
            content = last_block(row["text"], block)
            wanted = OTHERWISE.get(content, truth[block])
            if content == "3 million":  # beside the truths 3 and 3,000,000
                wanted = Number(value=3e6)
            assert answer == wanted, content
