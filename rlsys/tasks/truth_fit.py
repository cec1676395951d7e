"""Check that the times of a true answer are inside the decoded clip, because annotations and files often disagree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlsys.tasks.answers import TimeSpans
from rlsys.tasks.table import task_named
from rlsys.types import Json

TOLERANCE_S = 1.0
"""Seconds by which a span may exceed the clip, because published durations and ends are rounded to a second."""
MILLISECONDS = 50.0
"""Ratio of a span's end to the clip's length above which the annotation is suspected to be in milliseconds."""


@dataclass(frozen=True, kw_only=True)
class TruthFit:
    """The comparison of a truth with its clip.

    truth: the truth with its spans cut to the clip; None if a span is entirely outside.
    problem: a description of the spans outside the clip, "" if there are none.
    """

    truth: Json | None
    problem: str = ""


def fit_truth(task: str, truth: Json, clip_s: float) -> TruthFit:
    """Compare the spans of a truth, in seconds from the start of the clip, with the length of the decoded clip.

    clip_s: above 0. A truth without times fits every clip. Raises ValueError for a truth that the task cannot read.
    """
    if not any(isinstance(answer, TimeSpans) for answer in task_named(task).read_truth(truth).values()):
        return TruthFit(truth=truth)
    spans = _spans(truth)
    outside = [span for span in spans if span[1] > clip_s + TOLERANCE_S]
    if not outside:
        return TruthFit(truth=truth)
    shown = ", ".join(f"{start:g} to {end:g}" for start, end in outside)
    problem = f"the true period {shown} s is not inside the decoded clip, which lasts {clip_s:.2f} s"
    latest = max(end for _, end in outside)
    if latest > MILLISECONDS * clip_s and latest / 1000 <= clip_s + TOLERANCE_S:
        problem += "; divided by 1,000 it would be: the file seems to be in milliseconds, convert it to seconds"
    if any(start >= clip_s for start, _ in spans):
        return TruthFit(truth=None, problem=problem)
    return TruthFit(truth=_with_spans(truth, [[start, min(end, clip_s)] for start, end in spans]), problem=problem)


def past_the_file(part_s: tuple[float, float], file_s: float) -> str:
    """Return what is wrong with a part of a file, in seconds, that ends after the file does; "" if it ends before."""
    start_s, end_s = part_s
    if end_s <= file_s + TOLERANCE_S:
        return ""
    return f"the part from {start_s:g} to {end_s:g} s goes past the end of the file at {file_s:.2f} s"


def _spans(truth: Json) -> list[list[float]]:
    if not isinstance(truth, Mapping):
        return [truth]
    return [truth["period"]] if "period" in truth else list(truth["glue"])


def _with_spans(truth: Json, spans: list[list[float]]) -> Json:
    if not isinstance(truth, Mapping):
        return spans[0]
    return {**truth, "period": spans[0]} if "period" in truth else {**truth, "glue": spans}
