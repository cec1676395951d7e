"""Answers that never look at a video, scored by the same protocols as a model's.

Two further ones need a model: the same questions with another question's video, and without any.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlsys.evaluation.answered import Answered
from rlsys.evaluation.protocols.protocol import Protocol_
from rlsys.evaluation.protocols.texts import numbers, true_letter
from rlsys.evaluation.protocols.weighted import ScoredRow
from rlsys.evaluation.statistics.constant_interval import best_interval
from rlsys.evaluation.statistics.slices import true_spans
from rlsys.tasks.geometry import relative_accuracy
from rlsys.types import Json

STEP_S = 0.25
MAX_STEPS = 4096
"""Steps of the grid of constant intervals; where the last truth ends later, a step is twice as long, and so on."""
STEP_OF_DURATION = 0.01
MAX_RANDOM_DRAWS = 20
_RANDOM_ROWS = 20_000  # rows that all draws together have at least, where MAX_RANDOM_DRAWS allows it

_SPAN_TASKS = frozenset({"temporal_grounding", "grounded_qa"})
_LETTER_TASKS = frozenset({"multiple_choice", "grounded_qa"})


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A baseline under one protocol.

    name: "constant_interval", "constant_fraction", "random", "most_frequent" or "still_box".
    how: what it answers, in a sentence.  metrics: of the protocol, with "num_rows".  rows: the rows with the answers
    that were scored, of random ones those of the first draw.
    """

    name: str
    how: str
    metrics: Mapping[str, float]
    rows: tuple[ScoredRow, ...]


def baselines(answered: Sequence[Answered], protocol: Protocol_, *, seed: int = 0) -> list[Baseline]:
    """Return the baselines that fit the tasks of the rows, scored by `protocol`; [] for captions and without rows.

    The constant ones are chosen with the true answers of these rows known, so each is the strongest of its kind.
    Rows whose truth cannot be read score 0, as a model's do.
    """
    tasks = {row.task for row in answered}
    found: list[Baseline] = []
    if tasks & _SPAN_TASKS:
        found += [_constant(answered, protocol, of_duration=False), _constant(answered, protocol, of_duration=True)]
    if tasks & (_LETTER_TASKS | {"video_quality", "numeric_qa"}):
        found.append(_most_frequent(answered, protocol))
    if "tracking" in tasks:
        how = "the box of the first frame, which the prompt gives, in every frame"
        found.append(_scored("still_box", how, answered, protocol, _boxes_text))
    if tasks & (_SPAN_TASKS | _LETTER_TASKS | {"tracking", "video_quality"}):
        found.append(_random(answered, protocol, seed))
    return [baseline for baseline in found if baseline.rows]


def _scored(
    name: str, how: str, answered: Sequence[Answered], protocol: Protocol_, text_of: Callable[[Answered], str]
) -> Baseline:
    rows = tuple(_with_text(row, protocol, text_of(row)) for row in answered)
    return Baseline(name=name, how=how, metrics=protocol.aggregate(rows), rows=rows)


def _with_text(row: Answered, protocol: Protocol_, text: str) -> ScoredRow:
    """Return the row answered with `text`, scored. A bare letter takes the place of `<answer>(X)</answer>` where the
    protocol would read the brackets too, as VSI-Bench's does."""
    letter = text.removeprefix("<answer>(").removesuffix(")</answer>")
    if text and protocol.read(row, text) == f"({letter})":
        text = letter
    answer = replace(row, texts=(text,) if text else (), verdicts=None)
    return answer, protocol.scored(answer)


def _block(name: str, content: str) -> str:
    return f"<{name}>{content}</{name}>"


def _text(row: Answered, *, span: tuple[float, float] | None = None, letter: str = "") -> str:
    """Return a response with the letter or the span that the row's task asks for; "" for what is not given."""
    if row.task == "grounded_qa":
        glue = "" if span is None else f" {_block('glue', f'[({span[0]:.2f}, {span[1]:.2f})]')}"
        return (_block("answer", f"({letter})") if letter else "") + glue
    if row.task == "temporal_grounding" and span is not None:
        return _block("answer", f"{span[0]:.2f} to {span[1]:.2f}")
    return _block("answer", f"({letter})") if row.task == "multiple_choice" and letter else ""


def _hull(row: Answered) -> tuple[float, float] | None:
    spans = true_spans(row) if row.task in _SPAN_TASKS else ()
    return (spans[0][0], spans[-1][1]) if spans else None


def _duration_s(row: Answered) -> float | None:
    value = row.labels.get("duration_s")
    return float(value) if isinstance(value, int | float) and value > 0 else None


def _constant(answered: Sequence[Answered], protocol: Protocol_, *, of_duration: bool) -> Baseline:
    """Return the constant interval, in seconds or as parts of each video's duration, with the most frequent letter."""
    name = "constant_fraction" if of_duration else "constant_interval"
    scale = {row.row_id: (_duration_s(row) if of_duration else 1.0) for row in answered}
    hulls = [(row, hull) for row in answered if (hull := _hull(row)) is not None and scale[row.row_id]]
    if not hulls:
        return Baseline(name=name, how="", metrics={"num_rows": 0.0}, rows=())
    unit = np.array([scale[row.row_id] for row, _ in hulls], dtype=np.float64)
    truths = np.array([hull for _, hull in hulls], dtype=np.float64) / unit[:, None]
    step = STEP_OF_DURATION if of_duration else STEP_S
    while truths.max() / step > MAX_STEPS:
        step *= 2
    start, end, _ = best_interval(truths[:, 0], truths[:, 1], step)
    letter = _top_letter(answered)
    what = f"{start:.2f} to {end:.2f} {'of the duration' if of_duration else 's'}"
    how = f"{what} for every row, the best such answer with the truth known" + (f"; option {letter}" if letter else "")

    def text_of(row: Answered) -> str:
        factor = scale[row.row_id]
        return _text(row, span=(start * factor, end * factor) if factor else None, letter=letter)

    return _scored(name, how, answered, protocol, text_of)


def _top_letter(answered: Sequence[Answered]) -> str:
    letters = Counter(letter for row in answered if row.task in _LETTER_TASKS and (letter := true_letter(row)))
    return min(letters, key=lambda letter: (-letters[letter], letter)) if letters else ""


def _most_frequent(answered: Sequence[Answered], protocol: Protocol_) -> Baseline:
    """Return the most frequent letter or class, and of numbers the best one for each type of question."""
    letter = _top_letter(answered)
    classes = Counter(
        row.truth.strip() for row in answered if row.task == "video_quality" and isinstance(row.truth, str)
    )
    top_class = min(classes, key=lambda name: (-classes[name], name)) if classes else ""
    kinds = {str(row.labels.get("question_type", "")) for row in answered if row.task == "numeric_qa"}
    best = {kind: _best_number(answered, kind) for kind in kinds}

    def text_of(row: Answered) -> str:
        if row.task == "numeric_qa":
            number = best[str(row.labels.get("question_type", ""))]
            return "" if number is None else _block("answer", np.format_float_positional(number, trim="-"))
        return _block("answer", top_class) if row.task == "video_quality" else _text(row, letter=letter)

    chosen = [*([f"option {letter}"] if letter else []), *([repr(top_class)] if top_class else [])]
    chosen += [f"{number:g} for {kind or 'numbers'}" for kind, number in sorted(best.items()) if number is not None]
    return _scored("most_frequent", f"always {', '.join(chosen)}", answered, protocol, text_of)


def _best_number(answered: Sequence[Answered], kind: str) -> float | None:
    """Return the true number with the highest mean relative accuracy on the rows of one type of question."""
    truths = Counter(
        number[0]
        for row in answered
        if row.task == "numeric_qa" and str(row.labels.get("question_type", "")) == kind
        if (number := numbers([row.truth], 1)) is not None
    )
    # the candidates are quantiles where the truths are many, so that the search stays short
    values = sorted(truths)
    candidates = values if len(values) <= 50 else list(np.quantile(values, np.linspace(0, 1, 51), method="nearest"))

    def mean(value: float) -> float:
        return sum(count * relative_accuracy(float(value), truth) for truth, count in truths.items())

    return max(map(float, candidates), key=mean, default=None)


def _random(answered: Sequence[Answered], protocol: Protocol_, seed: int) -> Baseline:
    """Return random answers: expected values in closed form for options alone, seeded draws for what has times."""
    if {row.task for row in answered} <= {"multiple_choice", "numeric_qa"}:
        rows = tuple(_expected(row, protocol) for row in answered)
        how = "every option as likely as another, in closed form; numbers score 0"
        return Baseline(name="random", how=how, metrics=protocol.aggregate(rows), rows=rows)
    generator = np.random.default_rng(seed)
    num_draws = min(MAX_RANDOM_DRAWS, -(-_RANDOM_ROWS // len(answered)))
    draws = [
        tuple(_with_text(row, protocol, _random_text(row, generator)) for row in answered) for _ in range(num_draws)
    ]
    found = [protocol.aggregate(rows) for rows in draws]
    metrics = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
    how = (
        f"mean of {num_draws} seeded draws: two times uniform over the video, two corners uniform over each "
        "frame, every option and class as likely as another"
    )
    return Baseline(name="random", how=how, metrics=metrics, rows=draws[0])


def _expected(row: Answered, protocol: Protocol_) -> ScoredRow:
    scores = {**protocol.scorer(row, None), "read": 1.0}
    if row.task == "multiple_choice" and row.options and true_letter(row):
        scores[protocol.row_score] = 1.0 / len(row.options)
    return replace(row, texts=("",)), scores


def _random_text(row: Answered, generator: np.random.Generator) -> str:
    if row.task == "tracking":
        return _boxes_text(row, generator)
    if row.task == "video_quality":
        classes = [option.partition(") ")[2] or option for option in row.options] or _quoted(row.question)
        return _block("answer", str(generator.choice(classes))) if classes else ""
    hull = _hull(row)
    length = _duration_s(row) or (hull[1] if hull else 0.0)
    start, end = sorted(generator.uniform(0.0, length, size=2)) if length > 0 else (0.0, 0.0)
    letter = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[int(generator.integers(len(row.options)))] if row.options else ""
    return _text(row, span=(float(start), float(end)), letter=letter)


def _quoted(question: str) -> list[str]:
    """Return the classes that VidTAB's instruction names, as ['low quality', …]."""
    return question.split("'")[1::2]


def _boxes_text(row: Answered, generator: np.random.Generator | None = None) -> str:
    truth: Json = row.truth
    if not isinstance(truth, list | tuple) or not truth or numbers(truth[0], 4) is None:
        return ""
    if generator is None:
        boxes = [list(map(float, truth[0]))] * len(truth)
    else:
        corners = np.sort(generator.uniform(size=(len(truth), 2, 2)), axis=1).reshape(len(truth), 4)
        boxes = [list(map(float, truth[0])), *corners.tolist()[1:]]
    listed = ", ".join("[" + ", ".join(f"{corner:.4f}" for corner in box) + "]" for box in boxes)
    return _block("answer", f"[{listed}]")
