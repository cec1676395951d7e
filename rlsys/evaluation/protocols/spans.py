"""Readers and scores of time spans, as published for Charades-STA, ActivityNet, TimeLens-Bench and NExT-GQA.

The rules are restated here from the evaluation code of lmms-eval, VideoChat-R1 and NExT-GQA, quirks included.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rlsys.evaluation.answered import Answered
from rlsys.evaluation.metrics import RECALL_THRESHOLDS
from rlsys.evaluation.protocols.texts import answer_part, expected, numbers, true_letter
from rlsys.evaluation.protocols.weighted import Metrics, Weighted
from rlsys.tasks.answers import TimeSpans
from rlsys.tasks.geometry import TimeSpan, merge_spans, spans_iou
from rlsys.tasks.lenient import MAX_CHARS
from rlsys.tasks.table import task_named
from rlsys.types import Json

Spans = tuple[TimeSpan, ...]

_SENTENCE_END = re.compile(r"[!?\n]")
_KEYWORDS = ("start", "end", "happen")
"""lmms-eval lists "starts", "start time" and others too, each of which contains one of these."""
_EXAMPLE = "a specific example is : 20.8 - 30.0 seconds"
_CLOCK = r"\d{1,2}:\d{2}(?::\d{2})?"
_NUMBER = r"(?<!\d)\d+(?:\.\d+)?"  # the look-behind excludes nothing but keeps the search linear
_CLOCK_RANGE = re.compile(rf"\b({_CLOCK})\s*[–-]\s*({_CLOCK})\b")
_RANGE = re.compile(rf"({_NUMBER})\s*[–-]\s*({_NUMBER})")
_RANGE_WITH_UNITS = re.compile(rf"({_NUMBER})\s*s?\s*[–-]\s*({_NUMBER})")
_ONE_CLOCK = re.compile(rf"\b({_CLOCK})\b")
_ONE_NUMBER = re.compile(r"\b(\d+(?:\.\d+)?)\b")

_TIMELENS_CLOCK = re.compile(r"\b(\d{1,2}:\d{2}:\d{2}(?:\.\d+)?|\d{1,2}:\d{2}(?:\.\d+)?)\b")
_TIMELENS_RANGES = tuple(
    re.compile(rf"((?<!\d)\d+(?:\.\d*)?){joint}(\d+(?:\.\d*)?)") for joint in (r"\s*-\s*", r"\s+to\s+")
)
_TIMELENS_NUMBER = re.compile(r"\b\d+(?:\.\d*)?\b")

_SCRIPT_PAIR = re.compile(r"((?<!\d)\d+(?:\.\d*)?) (?:to|and) (\d+(?:\.\d*)?)")


def paper_span(row: Answered, text: str) -> Spans | None:
    """Read the last `a to b` or `a and b` in the last <answer> block. Source: VideoChat-R1's reward."""
    found = task_named("temporal_grounding").parse(text, "paper", expected(row))["answer"]
    return found.spans if isinstance(found, TimeSpans) else None


def paper_script_span(_: Answered, text: str) -> Spans | None:
    """Read the last `a to b` or `a and b` anywhere in the response. Source: VideoChat-R1's evaluation script."""
    found = _SCRIPT_PAIR.findall(text) if len(text) <= MAX_CHARS else []
    return ((float(found[-1][0]), float(found[-1][1])),) if found else None


def lmms_span(_: Answered, text: str) -> Spans | None:
    """Read a span as lmms-eval's Charades-STA task does; a reversed one is turned round.

    The text is in lower case and every "to" in it, inside words too, reads "-". Only sentences (up to "!", "?" or a
    line break) with start, end or happen count, all of them if none has. The first of these rules that finds
    something decides: a clock range in a sentence; `a - b` in a sentence; the first two clock times of all sentences;
    the first numbers of the first two sentences that have one; `a s - b s` in a sentence.
    """
    plain = answer_part(text).lower().replace(_EXAMPLE, "").replace("to", "-")
    sentences = _SENTENCE_END.split(plain)
    candidates = [one for one in sentences if any(word in one for word in _KEYWORDS)] or sentences
    span = (
        _first_pair(_CLOCK_RANGE, candidates)
        or _first_pair(_RANGE, candidates)
        or _paired([time for one in candidates for time in _ONE_CLOCK.findall(one)])
        or _paired([number.group() for one in candidates if (number := _ONE_NUMBER.search(one))])
        or _first_pair(_RANGE_WITH_UNITS, candidates)
    )
    return None if span is None else (span if span[1] > span[0] else (span[1], span[0]),)


def timelens_span(_: Answered, text: str) -> Spans | None:
    """Read a span as lmms-eval's TimeLens task does; a reversed one stays reversed.

    The first of these rules that finds something decides: the first two clock times; the first `a - b`; the first
    `a to b`; the first two numbers.
    """
    plain = answer_part(text).lower()
    clocks = _paired(_TIMELENS_CLOCK.findall(plain))
    if clocks is not None:
        return (clocks,)
    for pattern in _TIMELENS_RANGES:
        pair = _first_pair(pattern, [plain])
        if pair is not None:
            return (pair,)
    span = _paired(_TIMELENS_NUMBER.findall(plain))
    return None if span is None else (span,)


def _first_pair(pattern: re.Pattern[str], sentences: Sequence[str]) -> TimeSpan | None:
    match = next((match for match in map(pattern.search, sentences) if match), None)
    return None if match is None else (_seconds(match.group(1)), _seconds(match.group(2)))


def _paired(times: Sequence[str]) -> TimeSpan | None:
    return (_seconds(times[0]), _seconds(times[1])) if len(times) > 1 else None


def _seconds(time: str) -> float:
    seconds = 0.0
    for part in time.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def hull_iou(predicted: TimeSpan, truth: TimeSpan) -> float:
    """Return the time that both spans share, divided by the time from the first start to the last end.

    For proper spans that is their IoU, as spans apart share nothing. A reversed prediction gives 0, as does an empty
    truth, which some published files have. Source: lmms-eval and VideoChat-R1.
    """
    hull = max(predicted[1], truth[1]) - min(predicted[0], truth[0])
    shared = min(predicted[1], truth[1]) - max(predicted[0], truth[0])
    return max(shared, 0.0) / hull if hull > 0 else 0.0


def span_scores(row: Answered, value: Spans | None) -> dict[str, float]:
    """Return the IoU of a row of temporal grounding; 0 where the truth cannot be read."""
    truth = numbers(row.truth, 2)
    return {"iou": 0.0 if value is None or truth is None else hull_iou(value[0], (truth[0], truth[1]))}


def span_metrics(weighted: Weighted) -> Metrics:
    """Return mIoU and R@m, the share of rows with an IoU of at least m."""
    recalls = {f"r_at_{threshold}": weighted.share("iou", threshold) for threshold in RECALL_THRESHOLDS}
    return {"miou": weighted.mean("iou"), **recalls}


def answer_and_periods(row: Answered, text: str) -> dict[str, Json] | None:
    """Read the letter in the first <answer> and the list in the first <glue>, as VideoChat-R1's code does."""
    found = task_named("grounded_qa").parse(text, "paper", expected(row))
    letter = getattr(found["answer"], "letter", None)
    glue = found["glue"].spans if isinstance(found["glue"], TimeSpans) else None
    return None if letter is None and glue is None else {"answer": letter, "glue": glue}


def _true_periods(row: Answered) -> Spans:
    listed = row.truth.get("glue") if isinstance(row.truth, Mapping) else None
    spans = [numbers(span, 2) for span in listed] if isinstance(listed, list | tuple) else []
    return tuple((span[0], span[1]) for span in spans if span is not None)


def _is_right(row: Answered, value: Mapping[str, Json] | None) -> float:
    return float(value is not None and value["answer"] is not None and value["answer"] == true_letter(row))


def union_scores(row: Answered, value: Mapping[str, Json] | None) -> dict[str, float]:
    """Return the IoU of the unions of periods, and whether the letter is right. Source: VideoChat-R1.

    A list that cannot be read scores 0; the authors' script gives it the score of the row before.
    """
    truth = merge_spans(_true_periods(row))
    glue = None if value is None else value["glue"]
    return {"iou": spans_iou(glue, truth) if glue and truth else 0.0, "correct": _is_right(row, value)}


def union_metrics(weighted: Weighted) -> Metrics:
    """Return mIoU and accuracy."""
    return {"miou": weighted.mean("iou"), "accuracy": weighted.mean("correct")}


def iou_and_iop(period: TimeSpan, span: TimeSpan) -> tuple[float, float]:
    """Return (IoU, IoP) of a predicted span with one true period. IoP: the share of the prediction inside the period.

    A prediction of no length has IoU 0, and IoP 1 inside the period. Values below 0 mean no overlap.
    Source: NExT-GQA, `eval_ground.py`.
    """
    if span[0] == span[1]:
        return 0.0, float(period[0] <= span[0] <= period[1])
    shared = min(period[1], span[1]) - max(period[0], span[0])
    hull = max(period[1], span[1]) - min(period[0], span[0])
    iou = shared / hull if hull > 0 else 0.0
    iop = shared / (span[1] - span[0]) if span[1] > span[0] else 0.0
    return iou, iop


def official_scores(row: Answered, value: Mapping[str, Json] | None) -> dict[str, float]:
    """Return the largest IoU and the largest IoP over the true periods, and the accuracies. Source: NExT-GQA.

    The official code takes one span per question. Of several predicted periods it is the span from the start of the
    first to the end of the last.
    """
    glue = None if value is None else value["glue"]
    iou = iop = 0.0
    if glue:
        span = (min(start for start, _ in glue), max(end for _, end in glue))
        pairs = [iou_and_iop(period, span) for period in _true_periods(row)]
        iou, iop = (max((pair[index] for pair in pairs), default=0.0) for index in (0, 1))
    right = _is_right(row, value)
    iou, iop = max(iou, 0.0), max(iop, 0.0)
    return {"iou": iou, "iop": iop, "correct": right, "correct_and_grounded": right * float(iop >= 0.5)}


def official_metrics(weighted: Weighted) -> Metrics:
    """Return the metrics of NExT-GQA: Acc@GQA is the share of rows that are right with an IoP of at least 0.5."""
    return {
        "acc_gqa": weighted.mean("correct_and_grounded"),
        "acc_qa": weighted.mean("correct"),
        "miop": weighted.mean("iop"),
        "iop_at_0.3": weighted.share("iop", 0.3),
        "iop_at_0.5": weighted.share("iop", 0.5),
        "miou": weighted.mean("iou"),
        "iou_at_0.3": weighted.share("iou", 0.3),
        "iou_at_0.5": weighted.share("iou", 0.5),
    }
