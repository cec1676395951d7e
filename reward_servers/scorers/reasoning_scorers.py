"""Optional scores of the reasoning and the length of a response.

Each takes the response, its row of the table and the settings, and raises MissingInput where the request lacks
what it needs: a score that could not be computed is missing data and not a 0.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate

from reward_servers.scorers.response import Response
from rlsys.config.run import ScoreSettings
from rlsys.tasks.answers import TimeSpans
from rlsys.tasks.citations import cited_periods, cited_spans
from rlsys.tasks.geometry import TimeSpan, merge_spans, spans_iou
from rlsys.tasks.table import CORRECT_ABOVE, Scoring

_EXACT = 1 - 1e-9
_FEW_SPANS = 64  # so few are compared one by one, with the arithmetic of every other IoU


class MissingInput(ValueError):
    """A score needs a field that the request does not give; the message names the field."""


def length_bonus(response: Response, correctness: float, settings: ScoreSettings) -> float:
    """Return 1 for a correct response whose tokens number within `settings.length_window_tokens`, bounds included.

    correctness: the task's own measure of how right the response is; correct above `CORRECT_ABOVE`.
    Source: Video-R1, arXiv:2503.21776, §3.3 (its bonus is 0.2, the weight). Its code gives none when
    only one response of a group is correct; a single row cannot know that.
    """
    if response.num_tokens is None:
        raise MissingInput("length_bonus needs num_tokens, the number of tokens of the response.")
    fewest, most = settings.length_window_tokens
    return float(correctness > CORRECT_ABOVE and fewest <= response.num_tokens <= most)


def cited_times(response: Response, how: Scoring, _settings: ScoreSettings) -> float:
    """Share of the times cited in the reasoning that lie inside the clip and in a true period; 0 without a citation.

    A cited period counts when it shares time with a true one, a moment when a true period contains it.
    Source: the idea of Video-R2's temporal alignment reward (arXiv:2511.23478) and of Open-o3 Video's (2510.20579);
    theirs compare single moments with a tolerance, here the annotation is a period.
    """
    think_text = _reasoning(response, "cited_times")
    if not response.duration_s:
        raise MissingInput("cited_times needs duration_s, the length of the clip in seconds.")
    cited = cited_spans(think_text)
    truth = _spans(response, how)
    found = _Periods(truth)
    right = [span for span in cited if span[1] <= response.duration_s and found.meet(span)]
    return len(right) / len(cited) if cited else 0.0


def anchor_progress(response: Response, how: Scoring, _settings: ScoreSettings) -> float:
    """Share of steps, from each period in the reasoning to the next and last to the answer, that gain accuracy.

    Accuracy is the IoU with the true periods; a step between two exact ones counts as a gain, or being right
    early would cost something. 0 without a period in the reasoning or without a readable answer.
    Source: TAR-TVG, arXiv:2508.07683: timestamp anchors that get more accurate step by step. Its soft IoU and
    the accuracy of the anchors themselves are not used: the answer's IoU is a score of its own.
    """
    anchors = cited_periods(_reasoning(response, "anchor_progress"))
    answer = response.answers[_block(how)]
    if not anchors or not isinstance(answer, TimeSpans):
        return 0.0
    truth = _spans(response, how)
    found = _Periods(truth)
    accuracies = [*(found.iou(anchor) for anchor in anchors), spans_iou(answer.spans, truth)]
    steps = list(zip(accuracies, accuracies[1:], strict=False))
    return sum(after > before or min(before, after) >= _EXACT for before, after in steps) / len(steps)


def _reasoning(response: Response, score: str) -> str:
    if not response.asks_for_think:
        raise MissingInput(
            f"{score} reads the reasoning, but the prompt requested none (think=false); "
            "set data.think=true or remove the score."
        )
    return response.think_text or ""


def _block(how: Scoring) -> str:
    if how.block is None:
        raise ValueError(f"{how.scorer} compares the periods of one block; name it in the task's row.")
    return how.block


def _spans(response: Response, how: Scoring) -> tuple[TimeSpan, ...]:
    truth = response.expected[_block(how)]
    if not isinstance(truth, TimeSpans):
        raise ValueError(f"{how.scorer} needs true periods; {response.task} has none in {how.block}.")
    return truth.spans


class _Periods:
    """True periods, sorted once, so that a look-up takes logarithmic time: both sides of a request may be long."""

    def __init__(self, spans: Sequence[TimeSpan]) -> None:
        merged = merge_spans(spans)
        self._spans = spans
        self._starts = [start for start, _ in merged]
        self._ends = [end for _, end in merged]
        self._lengths_before = [0.0, *accumulate(end - start for start, end in merged)]

    def meet(self, cited: TimeSpan) -> bool:
        """Return whether a period shares time with a true one, or a moment lies in one."""
        start, end = cited
        if start == end:
            index = bisect_right(self._starts, start) - 1
            return index >= 0 and self._ends[index] >= start
        index = bisect_left(self._starts, end) - 1
        return start < end and index >= 0 and self._ends[index] > start

    def iou(self, span: TimeSpan) -> float:
        """Return the IoU of one period with all of them together."""
        if len(self._spans) <= _FEW_SPANS:
            return spans_iou([span], self._spans)
        start, end = span
        if start >= end:
            return 0.0
        shared = self._length_until(end) - self._length_until(start)
        return max(0.0, shared) / (end - start + self._lengths_before[-1] - shared)

    def _length_until(self, time_s: float) -> float:
        index = bisect_left(self._starts, time_s)
        if index == 0:
            return 0.0
        inside = min(time_s, self._ends[index - 1]) - self._starts[index - 1]
        return self._lengths_before[index - 1] + inside
