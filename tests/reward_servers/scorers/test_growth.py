"""Work of every reader and scorer grows clearly below the square of the text, whatever the text is.

CPU time is compared at n and 4n characters, and at n and 16n where that looks bad. A linear function takes 4 times as
long at 4n, a quadratic one 16 times; `MOST_GROWTH` lies between (8 is the growth of n to the power of 1.5), and its
square between 16 and 256. What takes less than `TOO_SHORT_S` at 4n would, if it were quadratic, take under five
seconds for the longest text that a request may hold, and cannot be told from noise. The least time of several counts:
load only adds time, more to the longer measurement; a quadratic function looks bad in each of `ROUNDS`.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from functools import partial

import pytest

from reward_servers.schema import MAX_TEXT_CHARS, ScoreRow
from reward_servers.scorers.scorers import SCORERS, rule_scores
from rlsys.config.answers import Reading
from rlsys.config.run import ScoreSettings
from rlsys.tasks.answers import Expected
from rlsys.tasks.lenient import MAX_CHARS, plain_text
from rlsys.tasks.readings import READERS, Reader
from rlsys.tasks.table import GROUP_SCORES, JUDGED, TASKS
from tests.support.task_examples import TRUTHS

READINGS: tuple[Reading, ...] = ("paper", "lenient", "strict")
SIZE = 1 << 11
MOST_GROWTH = 9.0
TOO_SHORT_S = 0.0003
ROUNDS = 4
UNITS = (
    *("1", "1.", "-1e", "1,", ",", " ", "\n\t", ".", "A", "A ", "(A) ", "a) ", "é", "秒", "１", "İ", "ß"),
    *("1 to 2 ", "1 to ", "to ", "1 and 2, ", "1:00 ", "1:", "12-15 s ", "3 s ", "1 minute 5 "),
    *("[", "]", "(", "((1, 2", "(1, 2), ", "[1, 2, 3, 4], ", "[[", '{"bbox_2d": [', "0.1, 0.2, "),
    *("<answer>", "</answer>", "<answer>1</answer>", "<think>", "</think>", "<", "</", "<box>[", "<glue>(1, 2)</glue>"),
    *("\\boxed{", "\\boxed{A}", "**", "```json", "“", "the answer is ", "The best answer is ", "and the end at "),
    "\u0301\u0327",  # combining marks in the wrong order, which normalisation has to sort
    *("\u0f73", "\u0344\u0327", "\U0001f3f3\ufe0f\u200d"),
    *("\ufdfa", "\ufdfa 1 to ", "\u3300", "㍿1-"),  # which normalisation makes up to 18 times as long
)


def text_of(unit: str, size: int) -> str:
    return (unit * (size // len(unit) + 1))[:size]


def seconds(work: Callable[[], object], tries: int) -> float:
    """Least CPU time of this thread for one call, without the collections of garbage that it sets off.

    Those visit everything that the tests before have left in memory, and only a longer text sets one off in every call.
    """
    least = float("inf")
    gc.disable()
    try:
        for _ in range(tries):
            started = time.thread_time()
            work()
            least = min(least, time.thread_time() - started)
    finally:
        gc.enable()
    return least


def grows_too_fast(work: Callable[[str], object], text: Callable[[int], str]) -> bool:
    def took_s(factor: int, tries: int) -> float:
        given = text(factor * SIZE)
        return seconds(lambda: work(given), tries)

    largest_s = took_s(4, 1)
    if largest_s < TOO_SHORT_S or largest_s <= MOST_GROWTH * took_s(1, 1):
        return False
    if largest_s > 1.0:
        return True  # a linear reader takes a hundredth of it

    def looks_bad() -> bool:
        return took_s(16, 5) > MOST_GROWTH**2 * took_s(1, 5)

    return all(looks_bad() for _ in range(ROUNDS))


def test_quadratic_work_is_found_and_linear_work_is_not() -> None:
    def quadratic(text: str) -> int:
        return sum(len(text[start:].replace("a", "b")) for start in range(0, len(text), 4))

    assert grows_too_fast(quadratic, partial(text_of, "a"))
    assert not grows_too_fast(lambda text: [ord(char) for char in text], partial(text_of, "a"))


@pytest.mark.parametrize("kind", READERS)
def test_every_reader_of_every_reading_is_far_from_quadratic(kind: str) -> None:
    expected = Expected(
        options=tuple((letter, f"a {letter} b") for letter in "ABCD"), letter="B", num_boxes=8, frame=(640, 480)
    )
    slow = set()
    for reading in READINGS:
        read = READERS[kind].of(reading)
        for unit in UNITS:
            if grows_too_fast(partial(_read, read, expected), partial(text_of, unit)):
                slow.add((reading, unit))
    assert not slow


def test_a_text_that_normalisation_makes_too_long_is_no_answer() -> None:
    for num_chars, size in ((MAX_CHARS // 18, MAX_CHARS // 18 * 18), (MAX_CHARS // 18 + 1, None)):
        found = plain_text("\ufdfa" * num_chars)
        assert (None if found is None else len(found)) == size


def _read(read: Reader, expected: Expected, text: str) -> None:
    read(text, expected)


def scored_names(task: str) -> list[str]:
    return [name for name, how in TASKS[task].scores.items() if how.scorer not in JUDGED | GROUP_SCORES]


@pytest.mark.parametrize("task", TRUTHS)
def test_every_scorer_is_far_from_quadratic_in_the_response(task: str) -> None:
    names = scored_names(task)

    def work(text: str) -> None:
        row = ScoreRow(rollout_id="a", task=task, text=text, truth=TRUTHS[task], num_tokens=400, duration_s=60.0)
        assert rule_scores(row, names, ScoreSettings(), "lenient").status == "ok"

    frames = ("{}", "<think>{}</think><answer>{}</answer><glue>{}</glue><box>{}</box>")
    slow = {
        (frame, unit)
        for frame in frames
        for unit in UNITS
        if grows_too_fast(work, lambda size, frame=frame, unit=unit: frame.replace("{}", text_of(unit, size)))  # type: ignore[misc]
    }
    assert not slow


def test_every_scorer_of_the_table_is_measured() -> None:
    measured = {TASKS[task].scores[name].scorer for task in TRUTHS for name in scored_names(task)}
    assert measured == set(SCORERS) and set(TRUTHS) == set(TASKS)


@pytest.mark.parametrize("task", ["grounded_qa", "spatiotemporal_qa"])
def test_scorers_are_far_from_quadratic_in_text_and_truth_together(task: str) -> None:
    def work(text: str) -> None:
        spans = [[2.0 * index, 2.0 * index + 1] for index in range(len(text) // 16)]
        truth = {**TRUTHS[task], "glue": spans}  # type: ignore[dict-item]
        row = ScoreRow(rollout_id="a", task=task, text=text, truth=truth, num_tokens=400, duration_s=1e6)
        assert rule_scores(row, scored_names(task), ScoreSettings()).status == "ok"

    def text(size: int) -> str:
        cited = " ".join(f"{index}.5 to {index + 3} s" for index in range(size // 16))
        glue = ", ".join(f"({index}.0, {index + 1}.5)" for index in range(size // 16))
        return f"<think>{cited}</think><answer>(B)</answer><glue>[{glue}]</glue>"

    assert not grows_too_fast(work, text)


def test_the_longest_text_of_a_request_is_scored_in_seconds() -> None:
    """The floor of the measurement above follows from this size."""
    assert TOO_SHORT_S * (MAX_TEXT_CHARS / (4 * SIZE)) ** 2 < 5
