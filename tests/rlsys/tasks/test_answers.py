from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsys.tasks.answers import (
    Boxes,
    Caption,
    Choice,
    Expected,
    Number,
    Phrase,
    TimeSpans,
    last_block,
    read_box,
    read_boxes,
    read_caption,
    read_choice,
    read_number,
    read_period,
    read_periods,
    read_phrase,
    whole_layout,
)
from rlsys.tasks.citations import cited_spans
from rlsys.tasks.readings import READERS as ALL_READERS
from rlsys.tasks.table import TASKS
from tests.support.task_examples import RIGHT

NUM_STRINGS = 100_000
LONG = 250_000
FRAGMENTS = [
    *("<think>", "</think>", "<answer>", "</answer>", "<glue>", "</glue>", "<box>", "</box>", "<answer", "</", ">"),
    *("1.5", "3", "to", "and", " to ", " and ", "12:30", "1e308", "nan", "inf", "-1", "0.5", ".", "1_000", "９", "٣"),
    *("[", "]", "(", ")", "((", "]]", ",", ", ", "[1, 2]", "(0.1, 0.2, 0.3, 0.4)", "(C)", "C", "A boy", "-", "–", "%"),
    *("\n", "\t", "\x00", "{}", "\\", "\ud800", "\u2028", "𝟙", "s", "seconds", " 3.5 m", "'low quality'", "İ"),
    *("__import__('os').system('true')", "<|video_pad|>", "${jndi:x}", "1" * 400, "9" * 20 + "." + "9" * 20),
]
READERS: list[Callable[[str], object]] = [
    read_period,
    read_periods,
    read_choice,
    read_phrase,
    read_number,
    read_caption,
    read_box,
    lambda text: read_boxes(text, 8),
    cited_spans,
]
EXPECTED = Expected(num_boxes=8, options=(("A", "a boy"), ("C", "C")))
TASK_READERS: list[Callable[[str], object]] = [
    lambda text, read=read: read(text, EXPECTED)  # type: ignore[misc]
    for readers in ALL_READERS.values()
    for read in (readers.of("paper"), readers.of("lenient"), readers.of("strict"))
]
VALUES = (str, dict, tuple, TimeSpans, Boxes, Choice, Phrase, Number, Caption)


def adversarial_strings() -> Iterator[str]:
    """Yield fragments in any order, correct responses with pieces removed or added, and noise of all Unicode."""
    rng = random.Random(0)
    whole = [f"<think>At 3 s.</think> {text}" for text in RIGHT.values()]
    for index in range(NUM_STRINGS):
        if index % 4 == 0:
            yield "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randrange(30)))
            continue
        if index % 4 == 1:
            text = rng.choice(whole)
            cut, width = rng.randrange(len(text)), rng.randrange(12)
            yield text[:cut] + rng.choice(FRAGMENTS) * rng.randrange(3) + text[cut + width :]
            continue
        yield "".join(rng.choices(FRAGMENTS, k=rng.randrange(16)))


def numbers_in(value: object) -> Iterator[float]:
    if isinstance(value, Number):
        yield abs(value.value)
    rows = value.spans if isinstance(value, TimeSpans) else value.boxes if isinstance(value, Boxes) else ()
    for row in rows:
        yield from row


def read_everything(text: str) -> list[object]:
    """Return what every reader reads from `text` and from the blocks in it."""
    inner = [last_block(text, name) for name in ("think", "answer", "glue", "box")]
    parts = {text, *(part for part in inner if part is not None)}
    layouts = [whole_layout(text, blocks) for blocks in (("think", "answer"), ("answer",), ("think", "answer", "glue"))]
    return [*layouts, *inner, *(reader(part) for part in parts for reader in READERS)]


def test_any_text_is_read_as_a_finite_value_or_none() -> None:
    count = 0
    for text in adversarial_strings():
        count += 1
        for value in read_everything(text):
            assert value is None or isinstance(value, VALUES)
            assert all(0 <= number < 1e9 for number in numbers_in(value))
    assert count == NUM_STRINGS


def test_every_reading_of_any_text_is_a_finite_value_or_none() -> None:
    for index, text in enumerate(adversarial_strings()):
        if index % 20:
            continue
        for reader in TASK_READERS:
            value = reader(text)
            assert value is None or isinstance(value, VALUES)
            assert all(abs(number) < 1e9 for number in numbers_in(value))  # a box of the paper's may be negative


def test_every_task_reads_any_text() -> None:
    for index, text in enumerate(adversarial_strings()):
        if index % 20:
            continue
        for task in TASKS.values():
            answers = task.parse(text)
            for think in (True, False):
                assert not task.is_well_formed(text, think=think) or None not in answers.values()


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=200))
def test_text_around_an_answer_is_skipped(text: str) -> None:
    for value in read_everything(text):
        assert all(0 <= number < 1e9 for number in numbers_in(value))


@pytest.mark.slow
@pytest.mark.parametrize(
    "unit",
    [
        "<answer>",
        "<answer>1 to 2</answer>",
        "</answer>",
        "<think><answer>",
        "1",
        "1 ",
        " ",
        "to ",
        "1 to ",
        "[",
        "(1,",
        "[1, 2],",
    ]
    + [
        "1.",
        ".",
        "9" * 50 + ".",
        "a",
        "(0.1,0.2,0.3,0.4),",
        "\n",
        "9 to 9e",
        "<",
        "</answer",
        "1-",
        "1 s ",
        "0:",
        "<box>",
    ],
)
def test_a_quarter_of_a_million_characters_is_read_in_linear_time(unit: str) -> None:
    text = (unit * (LONG // len(unit) + 1))[:LONG]
    for whole in (f"<answer>{text}</answer>", f"[{text}]", f"[(1{text},2)]"):
        started = time.process_time()
        for reader in (
            *READERS,
            *TASK_READERS,
            lambda part: whole_layout(part, ("answer",)),
            lambda part: last_block(part, "answer"),
        ):
            reader(whole)
        assert time.process_time() - started < 2.0  # 0.2 s at worst here; a quadratic reader takes minutes


@pytest.mark.parametrize(
    ("text", "period"),
    [
        ("12.54 to 17.83", (12.54, 17.83)),
        ("1 and 2", (1, 2)),
        ("From 1.5 TO 3.0.", (1.5, 3.0)),
        ("at 0.5 to 2 first, then 4.25 and 5", (4.25, 5)),
        ("**3 to 4 seconds**", (3, 4)),
        ("(3 to 4s)", (3, 4)),
        ("3.\nto\n4.", (3, 4)),
        ("9 to 2", (9, 2)),
        ("1 to 2 to 3", (2, 3)),
    ],
)
def test_the_last_period_is_read(text: str, period: tuple[float, float]) -> None:
    assert read_period(text) == TimeSpans(spans=(period,))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1.5",
        "1.5 - 3",
        "-1 to 3",
        "1e3 to 2e3",
        "nan to inf",
        "00:12 to 00:17",
        "1,5to 3",
        "٣ to ٤",
        "1_0 to 20",
        "1 to",
        "to 2",
    ]
    + ["1234567890 to 3", "0.5 to 1.2.3", "a to b"],
)
def test_other_text_is_not_a_period_in_plain_seconds(text: str) -> None:
    assert read_period(text) is None


@pytest.mark.parametrize(
    ("text", "periods"),
    [
        ("[(5.2, 10.4), (31.0, 33.5)]", ((5.2, 10.4), (31.0, 33.5))),
        ("[[5.2,10.4],[31,33.5],]", ((5.2, 10.4), (31, 33.5))),
        ("(1, 2)", ((1, 2),)),
        ("[1, 2]", ((1, 2),)),
        ("Periods: [ ( 1 , 2 ) , ( 4 , 3 ) ] s", ((1, 2), (4, 3))),
    ],
)
def test_lists_of_periods_are_read(text: str, periods: tuple[tuple[float, float], ...]) -> None:
    assert read_periods(text) == TimeSpans(spans=periods)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[()]",
        "[(1)]",
        "[(1,2,3)]",
        "[(1,2) (3,4)]",
        "[(1,2),(3)]",
        "[(1,-2)]",
        "[(a,b)]",
        "((((1,2))))",
        "]1,2[",
    ],
)
def test_other_text_is_not_a_list_of_pairs(text: str) -> None:
    assert read_periods(text) is None


def test_boxes_are_read_only_in_the_requested_number_and_inside_the_frame() -> None:
    box = "[0.1, 0.2, 0.3, 1]"
    eight = f"[{', '.join([box] * 8)}]"
    assert read_boxes(eight, 8) == Boxes(boxes=((0.1, 0.2, 0.3, 1.0),) * 8)
    assert read_boxes(f"[{', '.join([box] * 7)}]", 8) is None
    assert read_boxes(f"[{', '.join([box] * 9)}]", 8) is None
    assert read_boxes(eight.replace("0.3", "1.01", 1), 8) is None
    assert read_boxes(eight.replace(", 1]", "]", 1), 8) is None
    assert read_boxes(f"```json\n{eight}\n```", 8) is not None


@pytest.mark.parametrize(
    "text", ["C", "(C)", " c\n", "C.", "(C).", "C)", "(C) unwrap it", "C. unwrap it", "C: unwrap it"]
)
def test_an_option_letter_is_read(text: str) -> None:
    assert read_choice(text) == Choice(letter="C")


@pytest.mark.parametrize("text", ["", "A boy jumps", "Cat", "(CD)", "1", "the answer is C", "Ⅽ", "(", "[C]"])
def test_a_sentence_is_not_an_option_letter(text: str) -> None:
    assert read_choice(text) is None


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[64, 96.5, 192, 192]", (64, 96.5, 192, 192)),
        ("the box [[0.1, 0.2, 0.3, 1]]", (0.1, 0.2, 0.3, 1.0)),
        ("(3,2,1,0)", (3, 2, 1, 0)),
    ],
)
def test_one_box_is_read_in_any_unit(text: str, box: tuple[float, ...]) -> None:
    assert read_box(text) == Boxes(boxes=(box,))  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "[1, 2, 3]", "[[1, 2, 3, 4], [1, 2, 3, 4]]", "[-1, 2, 3, 4]", "1, 2, 3, 4"])
def test_no_box_or_several_are_none(text: str) -> None:
    assert read_box(text) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3", 3),
        (" -2.5 ", -2.5),
        ("+4", 4),
        ("12 %", 12),
        ("12%", 12),
        ("3.5 m.", 3.5),
        ("3.", 3),
        ("7 km/h", 7),
        ("0.0", 0),
    ],
)
def test_a_number_is_read_without_its_unit(text: str, number: float) -> None:
    assert read_number(text) == Number(value=number)


@pytest.mark.parametrize(
    "text",
    ["", "three", "about 3", "1e3", "1,000", "nan", "inf", "0x10", "٣", "９", "1_0", "1234567890", "3 or 4", "1" * 400],
)
def test_other_text_is_not_a_plain_number(text: str) -> None:
    assert read_number(text) is None


def test_phrases_that_differ_only_in_notation_are_equal() -> None:
    same = ["low quality", " Low  Quality. ", "'LOW QUALITY'", "(low quality)", "**low\nquality**", "“low quality”"]
    assert {read_phrase(text) for text in same} == {Phrase(text="low quality")}
    assert read_phrase("high quality") != read_phrase("low quality")
    assert read_phrase("It is low quality") != read_phrase("low quality")
    assert read_phrase(" . ") is None and read_phrase("a" * 201) is None and read_phrase("ß" * 150) is None


def test_a_caption_is_all_of_the_block() -> None:
    assert read_caption("\n A cat.\nA <b>dog</b>. ") == Caption(text="A cat.\nA <b>dog</b>.")
    assert read_caption(" \n") is None


def test_layout_is_the_whole_text() -> None:
    blocks = ("think", "answer")
    assert whole_layout(" <think>a</think>\n<answer>b</answer>\n", blocks) == {"think": "a", "answer": "b"}
    for broken in (
        "<answer>b</answer>",
        "<answer>b</answer><think>a</think>",
        "so: <think>a</think><answer>b</answer>",
        "<think>a</think> so <answer>b</answer>",
        "<think>a</think><answer>b</answer> done",
        "<think>a</think><answer>b",
        "<think>a<answer>b</think></answer>",
        "<think><answer>1</answer></think><answer>b</answer>",
        "<think>a</think><answer>b</answer><answer>c</answer>",
        "<Think>a</Think><answer>b</answer>",
        "",
    ):
        assert whole_layout(broken, blocks) is None
    assert whole_layout("<answer>b</answer>", ("answer",)) == {"answer": "b"}


def test_the_last_closed_block_counts() -> None:
    assert last_block("<answer>1</answer> <answer>2</answer>", "answer") == "2"
    assert last_block("<answer>1</answer> <answer>2", "answer") == "1"
    assert last_block("<answer><answer>1</answer> 2</answer>", "answer") == "1"
    assert last_block("1</answer><answer>2", "answer") is None
    assert last_block("<answer></answer>", "answer") == ""
