from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsys.answers import (
    Boxes,
    Choice,
    TimeSpans,
    last_block,
    read_boxes,
    read_choice,
    read_period,
    read_periods,
    whole_layout,
)

FRAGMENTS = [
    *("<think>", "</think>", "<answer>", "</answer>", "<glue>", "</glue>", "<answer", "</", ">", "<|video_pad|>"),
    *("1.5", "3", "to", "and", " to ", " and ", "12:30", "1e308", "nan", "inf", "-1", "0.5", ".", "1_000", "９", "٣"),
    *(
        "[",
        "]",
        "(",
        ")",
        "((",
        "]]",
        ",",
        ", ",
        "[1, 2]",
        "(0.1, 0.2, 0.3, 0.4)",
        "(C)",
        "C",
        "A boy",
        "\n",
        "\t",
        "\x00",
    ),
    *("__import__('os').system('true')", "{}", "\\", "\ud800", "\u2028", "𝟙", "s", "seconds"),
]
adversarial = st.lists(st.sampled_from(FRAGMENTS), max_size=40).map("".join) | st.text(max_size=200)


def read_everything(text: str) -> list[object]:
    """What every reader makes of `text`."""
    inner = [last_block(text, name) for name in ("think", "answer", "glue")]
    parts = [text, *(part for part in inner if part is not None)]
    readers: list[Callable[[str], object]] = [read_period, read_periods, read_choice, lambda part: read_boxes(part, 8)]
    layouts = [whole_layout(text, blocks) for blocks in (("think", "answer"), ("answer",), ("think", "answer", "glue"))]
    return [*layouts, *inner, *(reader(part) for part in parts for reader in readers)]


@settings(max_examples=2000, deadline=None)
@given(adversarial)
def test_any_text_is_read_as_a_value_or_none(text: str) -> None:
    for value in read_everything(text):
        assert value is None or isinstance(value, str | dict | TimeSpans | Boxes | Choice)


@settings(max_examples=500, deadline=None)
@given(adversarial)
def test_every_number_read_is_finite_and_not_negative(text: str) -> None:
    for value in read_everything(text):
        rows = value.spans if isinstance(value, TimeSpans) else value.boxes if isinstance(value, Boxes) else ()
        assert all(0 <= number < 1e9 for row in rows for number in row)


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
    + ["1.", ".", "9" * 50 + ".", "a", "(0.1,0.2,0.3,0.4),", "\n", "9 to 9e", "<", "</answer"],
)
def test_a_million_characters_are_read_in_linear_time(unit: str) -> None:
    text = (unit * (1_000_000 // len(unit) + 1))[:1_000_000]
    for whole in (text, f"<answer>{text}</answer>", f"<answer>[{text}]</answer>", f"<answer>[(1{text},2)]</answer>"):
        started = time.process_time()
        read_everything(whole)
        assert time.process_time() - started < 4.0  # 0.6 s at worst here; a quadratic reader takes hours


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
def test_what_is_no_period_in_plain_seconds_is_none(text: str) -> None:
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
def test_what_is_no_list_of_pairs_is_none(text: str) -> None:
    assert read_periods(text) is None


def test_boxes_are_read_only_in_the_number_asked_for_and_only_inside_the_frame() -> None:
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
