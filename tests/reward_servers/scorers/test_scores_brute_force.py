"""Every rule score against an independent implementation that counts ticks, cells and cases one by one."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest

from reward_servers.schema import ScoreRow
from reward_servers.scorers.scorers import SCORERS, rule_scores
from rlsys.algorithm.order_contrast import order_contrast
from rlsys.config.run import ScoreSettings
from rlsys.tasks.table import TASKS
from rlsys.types import Json

NUM_CASES = 10_000
TICKS_PER_S = 4  # times lie on a grid of quarter seconds, so that counting ticks is exact
CELLS = 16  # fractions lie on a grid of sixteenths
TOLERANCE = 1e-9

Span = tuple[int, int]
Cells = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Case:
    """blocks: name -> (content, whether it can be read).  expected: the block's scores by counting."""

    truth: Json
    blocks: dict[str, tuple[str, bool]]
    expected: dict[str, float]


def ticks(spans: list[Span]) -> set[int]:
    return {tick for start, end in spans for tick in range(start, end)}


def ratio(ours: int, theirs: int, shared: int) -> float:
    return shared / (ours + theirs - shared) if shared else 0.0


def tick_iou(ours: list[Span], theirs: list[Span]) -> float:
    left, right = ticks(ours), ticks(theirs)
    return ratio(len(left), len(right), len(left & right))


def raster(box: Cells, width: int, height: int) -> np.ndarray:
    image = np.zeros((height, width), bool)
    image[box[1] : box[3], box[0] : box[2]] = True  # empty when a corner is on the wrong side
    return image


def raster_iou(ours: Cells, theirs: Cells, width: int, height: int) -> float:
    left, right = raster(ours, width, height), raster(theirs, width, height)
    return ratio(int(left.sum()), int(right.sum()), int((left & right).sum()))


def random_span(rng: random.Random) -> Span:
    start = rng.randrange(60)
    return start, start + rng.randint(1, 40)


def random_answer_span(rng: random.Random) -> Span:
    start, end = random_span(rng)
    return (end, start) if rng.random() < 0.1 else (start, end)


def random_box(rng: random.Random, width: int, height: int) -> Cells:
    (x0, x1), (y0, y1) = (sorted(rng.sample(range(size + 1), 2)) for size in (width, height))
    return x0, y0, x1, y1


def random_answer_box(rng: random.Random, width: int, height: int) -> Cells:
    x0, y0, x1, y1 = random_box(rng, width, height)
    return (x1, y0, x0, y1) if rng.random() < 0.1 else (x0, y0, x1, y1)


def seconds(span: Span) -> list[float]:
    return [span[0] / TICKS_PER_S, span[1] / TICKS_PER_S]


def period_text(rng: random.Random, span: Span) -> str:
    start, end = seconds(span)
    return rng.choice([f"{start:.2f} to {end:.2f}", f"from {start} and {end} s", f"1 to 2, no: {start:g} to {end:g}."])


def period_block(rng: random.Random, truth: Span) -> tuple[str, bool, float]:
    """(content, whether it can be read, IoU)."""
    if rng.random() < 0.1:
        return rng.choice(["", "1.5", "12 - 17", "00:12 to 00:17", "-1 to 3"]), False, 0.0
    span = random_answer_span(rng)
    return period_text(rng, span), True, tick_iou([span], [truth])


def glue_block(rng: random.Random, truth: list[Span]) -> tuple[str, bool, float]:
    if rng.random() < 0.1:
        return rng.choice(["", "[]", "[(1)]", "[(1, 2, 3)]", "1 to 2"]), False, 0.0
    spans = [random_answer_span(rng) for _ in range(rng.randint(1, 5))]
    left, right = rng.choice(["()", "[]"])
    rows = ", ".join(f"{left}{start:.2f}, {end:.2f}{right}" for start, end in map(seconds, spans))
    return f"[{rows}]", True, tick_iou(spans, truth)


def choice_block(rng: random.Random, truth: str) -> tuple[str, bool, float]:
    if rng.random() < 0.1:
        return rng.choice(["", "none of them", "A boy", "12", "(AB)"]), False, 0.0
    letter = rng.choice("ABCDE")
    form = rng.choice(["{}", "({})", "{}.", "({}) because", "{}: because"])
    return form.format(rng.choice([letter, letter.lower()])), True, float(letter == truth)


def box_block(rng: random.Random, truth: Cells, size: tuple[int, int], in_pixels: bool) -> tuple[str, bool, float]:
    if rng.random() < 0.1:
        return rng.choice(["", "[1, 2, 3]", "[-1, 0, 1, 1]", "[[0, 0, 1, 1], [0, 0, 1, 1]]"]), False, 0.0
    box = random_answer_box(rng, *size)
    text = str(list(box)) if in_pixels else str([corner / CELLS for corner in box])
    return rng.choice([text, f"({text[1:-1]})", f"the box {text}"]), True, raster_iou(box, truth, *size)


def box_truth(rng: random.Random) -> tuple[Cells, tuple[int, int], bool, dict[str, Json]]:
    """(box in cells, size in cells, whether a cell is a pixel, its part of the truth)."""
    if rng.random() < 0.5:
        size = (rng.randint(2, 40), rng.randint(2, 30))
        box = random_box(rng, *size)
        return box, size, True, {"box": list(box), "width": size[0], "height": size[1]}
    box = random_box(rng, CELLS, CELLS)
    return box, (CELLS, CELLS), False, {"box": [corner / CELLS for corner in box]}


def temporal_grounding(rng: random.Random) -> Case:
    truth = random_span(rng)
    text, is_read, iou = period_block(rng, truth)
    return Case(truth=seconds(truth), blocks={"answer": (text, is_read)}, expected={"iou": iou})


def tracking(rng: random.Random) -> Case:
    truth = [random_box(rng, CELLS, CELLS) for _ in range(8)]
    count = 8 if rng.random() < 0.9 else rng.choice([0, 1, 7, 9])
    boxes = [random_answer_box(rng, CELLS, CELLS) for _ in range(count)]
    ious = [raster_iou(box, true, CELLS, CELLS) for box, true in zip(boxes, truth, strict=False)]
    text = str([[corner / CELLS for corner in box] for box in boxes])
    return Case(
        truth=[[corner / CELLS for corner in box] for box in truth],
        blocks={"answer": (text, count == 8)},
        expected={"iou": sum(ious) / 8 if count == 8 else 0.0},
    )


def spatial_grounding(rng: random.Random) -> Case:
    box, size, in_pixels, truth = box_truth(rng)
    text, is_read, iou = box_block(rng, box, size, in_pixels)
    return Case(truth=truth, blocks={"answer": (text, is_read)}, expected={"iou": iou})


def spatiotemporal_grounding(rng: random.Random) -> Case:
    span = random_span(rng)
    box, size, in_pixels, truth = box_truth(rng)
    period, is_period, iou = period_block(rng, span)
    text, is_box, box_iou = box_block(rng, box, size, in_pixels)
    return Case(
        truth={"period": seconds(span), **truth},
        blocks={"answer": (period, is_period), "box": (text, is_box)},
        expected={"iou": iou, "box_iou": box_iou},
    )


def multiple_choice(rng: random.Random) -> Case:
    letter = rng.choice("ABCDE")
    text, is_read, right = choice_block(rng, letter)
    return Case(truth=f"({letter})", blocks={"answer": (text, is_read)}, expected={"accuracy": right})


def grounded_qa(rng: random.Random) -> Case:
    letter, spans = rng.choice("ABCDE"), [random_span(rng) for _ in range(rng.randint(1, 4))]
    answer, is_choice, right = choice_block(rng, letter)
    glue, is_glue, iou = glue_block(rng, spans)
    return Case(
        truth={"answer": f"({letter})", "glue": [seconds(span) for span in spans]},
        blocks={"answer": (answer, is_choice), "glue": (glue, is_glue)},
        expected={"iou": iou, "accuracy": right},
    )


def spatial_qa(rng: random.Random) -> Case:
    letter = rng.choice("ABCDE")
    box, size, in_pixels, truth = box_truth(rng)
    answer, is_choice, right = choice_block(rng, letter)
    text, is_box, iou = box_block(rng, box, size, in_pixels)
    return Case(
        truth={"answer": letter, **truth},
        blocks={"answer": (answer, is_choice), "box": (text, is_box)},
        expected={"iou": iou, "accuracy": right},
    )


def spatiotemporal_qa(rng: random.Random) -> Case:
    grounded = grounded_qa(rng)
    box, size, in_pixels, truth = box_truth(rng)
    text, is_box, iou = box_block(rng, box, size, in_pixels)
    return Case(
        truth={**grounded.truth, **truth},
        blocks={**grounded.blocks, "box": (text, is_box)},
        expected={**grounded.expected, "box_iou": iou},
    )


def numeric_qa(rng: random.Random) -> Case:
    digits = rng.randint(0, 3)
    truth = round(rng.choice([0, 1, -1]) * rng.choice([1, 20, rng.uniform(0.01, 500)]), digits)
    near = round(truth * rng.choice([1, 0.95, 0.9, 1.05, 1.5, 0.5, -1, rng.uniform(0.3, 1.7)]), digits + 2)
    if rng.random() < 0.1:
        text, is_read, score = rng.choice(["", "three", "1e3", "about 3", "1,000", "nan"]), False, 0.0
    else:
        written = f"{near:.{digits + 2}f}"
        text, is_read = rng.choice([written, f"{written} m", f"{written}%", f" {written}kg."]), True
        score = mean_relative_accuracy(Fraction(written), Fraction(repr(truth)))
    return Case(truth=truth, blocks={"answer": (text, is_read)}, expected={"accuracy": score})


def mean_relative_accuracy(answer: Fraction, truth: Fraction) -> float:
    """VSI-Bench, eq. 1, word for word in exact arithmetic."""
    hits = 0
    for confidence in range(50, 100, 5):
        tolerance = 1 - Fraction(confidence, 100)
        hits += (abs(answer - truth) / abs(truth) < tolerance) if truth else answer == truth
    return hits / 10


def video_quality(rng: random.Random) -> Case:
    classes = ["low quality", "high quality", "medium"]
    truth, name = rng.choice(classes), rng.choice(classes)
    text = rng.choice([name, name.upper(), f"'{name}'", f"  {name.replace(' ', '   ')}.\n", f'"{name.title()}".'])
    if rng.random() < 0.1:
        return Case(truth=truth, blocks={"answer": (rng.choice(["", " . ", "''"]), False)}, expected={"accuracy": 0.0})
    return Case(truth=truth, blocks={"answer": (text, True)}, expected={"accuracy": float(name == truth)})


def captioning(rng: random.Random) -> Case:
    text = rng.choice(["", " \n", "A cat sleeps.", "x < y > z", "…"])
    return Case(truth={"caption": "A dog."}, blocks={"answer": (text, bool(text.strip()))}, expected={})


CASES: dict[str, Callable[[random.Random], Case]] = {
    make.__name__: make
    for make in (
        temporal_grounding,
        tracking,
        spatial_grounding,
        spatiotemporal_grounding,
        multiple_choice,
        grounded_qa,
        spatial_qa,
        spatiotemporal_qa,
        numeric_qa,
        video_quality,
        captioning,
    )
}


def laid_out(rng: random.Random, case: Case, think: bool) -> tuple[str, bool]:
    """The case as a response, and whether its layout is the one that was asked for."""
    blocks = [("think", "because")] * think + [(name, content) for name, (content, _) in case.blocks.items()]
    parts = [f"<{name}>{content}</{name}>" for name, content in blocks]
    space = rng.choice(["", " ", "\n\n", "\t"])
    fault = rng.choice(["none"] * 6 + ["words", "swapped think", "twice", "no end"])
    if fault == "words":
        parts.insert(rng.randrange(len(parts) + 1), "so")
    elif fault == "swapped think":
        parts = parts[1:] if think else ["<think>because</think>", *parts]
    elif fault == "twice":
        parts.insert(0, parts[0])
    elif fault == "no end":
        parts.append("<think>")
    return space.join(parts), fault == "none"


def cases(task: str) -> Iterator[tuple[Case, str, bool, bool]]:
    rng = random.Random(task)  # a string seeds the same in every process
    for _ in range(NUM_CASES):
        case, think = CASES[task](rng), rng.random() < 0.5
        yield case, *laid_out(rng, case, think), think


@pytest.mark.parametrize("task", TASKS)
def test_scores_equal_those_of_counting(task: str) -> None:
    names = [name for name, how in TASKS[task].scores.items() if how.scorer in SCORERS and not how.is_optional]
    settings = ScoreSettings()
    for case, text, is_laid_out, think in cases(task):
        row = ScoreRow(rollout_id="r", task=task, text=text, truth=case.truth, think=think)
        found = rule_scores(row, names, settings, reading="strict")
        is_readable = all(is_read for _, is_read in case.blocks.values())
        expected = {"format": float(is_laid_out and is_readable), **case.expected}
        assert found.status == "ok", found.reason
        assert found.scores.keys() == expected.keys()
        assert all(abs(found.scores[name] - value) < TOLERANCE for name, value in expected.items()), (text, case.truth)


def test_length_bonus_equals_counting() -> None:
    rng = random.Random(1)
    for _ in range(NUM_CASES):
        truth, answer = random_span(rng), random_answer_span(rng)
        fewest, most = sorted(rng.sample(range(12), 2))
        num_tokens = rng.randrange(14)
        start, end = seconds(answer)
        row = ScoreRow(
            rollout_id="r",
            task="temporal_grounding",
            text=f"<answer>{start} to {end}</answer>",
            truth=seconds(truth),
            num_tokens=num_tokens,
        )
        found = rule_scores(row, ["length_bonus"], ScoreSettings(length_window_tokens=(fewest, most)))
        right = tick_iou([answer], [truth]) > 0.1
        assert found.scores["length_bonus"] == float(right and num_tokens in range(fewest, most + 1))


def test_times_in_the_reasoning_equal_counting() -> None:
    rng = random.Random(2)
    for _ in range(NUM_CASES):
        truth, answer = random_span(rng), random_answer_span(rng)
        anchors = [random_answer_span(rng) for _ in range(rng.randrange(5))]
        moments = [rng.randrange(110) for _ in range(rng.randrange(4))]
        words = [f"perhaps {start} to {end}," for start, end in map(seconds, anchors)]
        words += [f"then at {moment / TICKS_PER_S} s" for moment in moments]
        start, end = seconds(answer)
        row = ScoreRow(
            rollout_id="r",
            task="temporal_grounding",
            text=f"<think>{' '.join(words)}</think><answer>{start} to {end}</answer>",
            truth=seconds(truth),
            duration_s=80 / TICKS_PER_S,
        )
        found = rule_scores(row, ["cited_times", "anchor_progress"], ScoreSettings()).scores
        right = sum(end <= 80 and bool(ticks([(start, end)]) & ticks([truth])) for start, end in anchors)
        right += sum(moment <= 80 and truth[0] <= moment <= truth[1] for moment in moments)
        cited = len(anchors) + len(moments)
        assert abs(found["cited_times"] - (right / cited if cited else 0.0)) < TOLERANCE
        ious = [tick_iou([span], [truth]) for span in (*anchors, answer)]
        gains = sum(ious[step + 1] > ious[step] or ious[step] == ious[step + 1] == 1 for step in range(len(anchors)))
        assert abs(found["anchor_progress"] - (gains / len(anchors) if anchors else 0.0)) < TOLERANCE


def test_order_contrast_equals_counting() -> None:
    rng = random.Random(3)
    for _ in range(NUM_CASES):
        ours, shuffled = ([rng.choice([0.0, 0.05, 0.4, 1.0, None]) for _ in range(rng.randint(1, 8))] for _ in "ab")
        found = order_contrast(*(np.array([np.nan if v is None else v for v in side]) for side in (ours, shuffled)))
        kept, other = ([value > 0.1 for value in side if value is not None] for side in (ours, shuffled))
        does_well = kept and other and Fraction(sum(kept), len(kept)) >= Fraction(sum(other), len(other))
        for value, bonus in zip(ours, found, strict=True):
            if value is None or not other:
                assert np.isnan(bonus)
            else:
                assert bonus == float(value > 0.1 and bool(does_well))
