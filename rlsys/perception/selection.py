"""Divide the frames of a round among the periods of a clue and the rest of the clip.

The result is a list of segments, each evenly sampled, because Qwen2.5-VL knows one frame rate for each video: a clip
whose frames are not evenly spaced reaches it as several videos, each with its own rate.
Source: VTTS, appendix (`key_ratio`), and the code released with VideoChat-R1.5 (`density_ratio`).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlsys.config.perception import PerceptionConfig
from rlsys.data.video.frames import TEMPORAL_PATCH
from rlsys.tasks.geometry import TimeSpan, merge_spans


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of a clip that is sampled evenly.

    start_s, end_s: in seconds from the start of the clip.  num_frames: even, at least 2.
    is_key: whether it is a period of the clue.
    """

    start_s: float
    end_s: float
    num_frames: int
    is_key: bool


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Segments in time order; () for the whole clip evenly, with the reason why."""

    segments: tuple[Segment, ...] = ()
    reason: str = ""


def select_segments(
    periods: Sequence[TimeSpan], length_s: float, num_frames: int, source_fps: float, perception: PerceptionConfig
) -> Selection:
    """Return the segments that a round shows around `periods`.

    periods: of the clue, in seconds from the start of the clip, in any order; what is outside the clip is cut off.
    length_s: of the clip.  num_frames: budget of the round; an odd one loses one.  source_fps: of the file.
    Overlapping periods are merged, as are those with less than two frames of the file between them; beyond
    `perception.max_periods` the nearest ones are. A period of less than two frames of the file is widened around its
    middle. Inside, frames are divided in proportion to the periods' lengths, at least two each; outside, in proportion
    to the gaps' lengths, and a gap that gets none is not shown. No segment has more frames than the file, and what one
    side cannot use goes to the other. Raises ValueError for a budget below two frames.
    """
    pairs = num_frames // TEMPORAL_PATCH
    if pairs < 1:
        raise ValueError(f"a budget of {num_frames} frames: models merge frames in pairs; give at least 2.")
    inside = merge_spans([(max(start, 0.0), min(end, length_s)) for start, end in periods])
    if not inside:
        given = ", ".join(f"{start:g} to {end:g} s" for start, end in periods)
        return Selection(reason=f"the clue ({given}) has no period inside the clip of {length_s:g} s")
    shortest_s = TEMPORAL_PATCH / source_fps
    if shortest_s >= length_s:
        return Selection(reason=f"the clip has no part of two frames: {length_s:g} s at {source_fps:g} frames/s")
    keys = _apart([_widened(span, shortest_s, length_s) for span in inside], shortest_s, perception.max_periods, pairs)
    gaps = [gap for gap in _gaps(keys, length_s) if gap[1] - gap[0] >= shortest_s]
    is_crowded = pairs <= len(keys)
    key_pairs = min(max(_key_pairs(keys, length_s, pairs, perception), len(keys)), pairs - (not is_crowded))
    inner = _divided(key_pairs if gaps else pairs, keys, source_fps, at_least=1)
    outer = _divided(pairs - sum(inner), gaps, source_fps, at_least=0)
    inner = _divided(pairs - sum(outer), keys, source_fps, at_least=1)
    found = [
        Segment(start_s=start, end_s=end, num_frames=TEMPORAL_PATCH * count, is_key=is_key)
        for spans, counts, is_key in ((keys, inner, True), (gaps, outer, False))
        for (start, end), count in zip(spans, counts, strict=True)
        if count
    ]
    return Selection(segments=tuple(sorted(found, key=lambda one: one.start_s)))


def _key_pairs(keys: Sequence[TimeSpan], length_s: float, pairs: int, perception: PerceptionConfig) -> int:
    """Return the number of pairs of frames inside the clue by the rule, the nearest whole number."""
    if perception.rule == "share":
        return math.floor(pairs * perception.key_ratio + 0.5)
    covered_s = sum(end - start for start, end in keys)
    dense = perception.density_ratio * covered_s
    num_frames = round(TEMPORAL_PATCH * pairs * dense / (dense + length_s - covered_s))
    return math.floor(num_frames / TEMPORAL_PATCH + 0.5)


def _widened(span: TimeSpan, shortest_s: float, length_s: float) -> TimeSpan:
    """Return the span, at least `shortest_s` long and inside the clip."""
    start, end = span
    if end - start >= shortest_s:
        return span
    start = min(max((start + end - shortest_s) / 2, 0.0), length_s - shortest_s)
    return start, start + shortest_s


def _apart(spans: Sequence[TimeSpan], shortest_s: float, max_periods: int, pairs: int) -> list[TimeSpan]:
    """Return the spans, the nearest neighbours merged until gaps are long enough and there are few enough spans."""
    merged = merge_spans(spans)
    most = min(max_periods, pairs)
    while len(merged) > 1:
        gaps = [later[0] - earlier[1] for earlier, later in zip(merged, merged[1:], strict=False)]
        nearest = min(range(len(gaps)), key=gaps.__getitem__)
        if gaps[nearest] >= shortest_s and len(merged) <= most:
            break
        merged[nearest : nearest + 2] = [(merged[nearest][0], merged[nearest + 1][1])]
    return merged


def _gaps(spans: Sequence[TimeSpan], length_s: float) -> list[TimeSpan]:
    """Return what disjoint spans in order leave of the clip."""
    ends = [0.0, *(end for _, end in spans)]
    starts = [*(start for start, _ in spans), length_s]
    return [(end, start) for end, start in zip(ends, starts, strict=True) if start > end]


def _divided(pairs: int, spans: Sequence[TimeSpan], source_fps: float, *, at_least: int) -> list[int]:
    """Divide pairs of frames among spans in proportion to their lengths, by the divisor method of Webster.

    No span gets more than the file has frames for; so fewer than `pairs` may be given out.
    """
    lengths = [end - start for start, end in spans]
    most = [max(at_least, math.floor(length * source_fps / TEMPORAL_PATCH + 1e-6)) for length in lengths]
    counts = [at_least] * len(spans)
    queue = [(-lengths[index] / (2 * at_least + 1), index) for index in range(len(spans)) if at_least < most[index]]
    heapq.heapify(queue)
    for _ in range(pairs - sum(counts)):
        if not queue:
            break
        _, index = queue[0]
        counts[index] += 1
        if counts[index] < most[index]:
            heapq.heapreplace(queue, (-lengths[index] / (2 * counts[index] + 1), index))
        else:
            heapq.heappop(queue)
    return counts
