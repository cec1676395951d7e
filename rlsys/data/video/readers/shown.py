"""When the frames of a video are shown, from the stamps that a container gives them."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from rlsys.data.video.errors import ClipError

MAX_SECONDS = 1e7
MAX_REORDERED = 3
"""Most frames by which MPEG-1 and MPEG-2 change the order of frames: one picture and the B-frames before it."""


class Shown(NamedTuple):
    """A frame that is shown. place: its pts, or its number among the decoded frames."""

    time: int
    duration: int
    place: int


def filled(stamps: Sequence[Any], durations: Sequence[int]) -> list[Any]:
    """Return the stamps, those that are missing behind others being where the frame before ends."""
    found: list[Any] = []
    for stamp, before in zip(stamps, (0, *durations), strict=False):
        last = found[-1] if found else None
        found.append(last + before if stamp is None and last is not None and before else stamp)
    return found


def in_order(shown: Sequence[Shown]) -> list[Shown]:
    """Return the frames by their times, the first of those of one time."""
    by_time: dict[int, Shown] = {}
    for one in shown:
        by_time.setdefault(one.time, one)
    return [by_time[time] for time in sorted(by_time)]


def at_constant_rate(stamps: Sequence[Any], stream: Any) -> list[int] | None:
    """Return the times of a program stream's frames at its rate, None if they are not nearly those of their stamps.

    FFmpeg gives frames the stamps of others nearby where such a stream does not stamp every picture, so that a time
    occurs twice or not at all. A stream that leaves out one to three frames is not told from that.
    """
    rate = stream.guessed_rate or stream.average_rate
    if None in stamps or not rate:
        return None
    step = float(1 / (rate * stream.time_base))
    times = np.round(stamps[0] + step * np.arange(len(stamps))).astype(np.int64)
    is_near = np.abs(np.array(stamps) - times).max() < (MAX_REORDERED + 0.25) * step
    is_usual = np.abs(np.diff(stamps) / step - 1) < 0.25
    return times.tolist() if is_near and (not is_usual.size or is_usual.mean() > 0.8) else None


def times_of(stream: Any, uri: str, shown: Sequence[Shown], start: Fraction) -> tuple[np.ndarray, float]:
    """Return the times of the frames in seconds, and when the last one ends. Raises ClipError for impossible ones."""
    frames, unit = in_order(shown), stream.time_base
    usual = int(np.median(np.diff([one.time for one in frames]))) if len(frames) > 1 else 0
    last_s = float((frames[-1].duration or usual) * unit)
    end_s = float(frames[-1].time * unit - start)
    end_s += last_s or (1 / float(stream.average_rate) if stream.average_rate else 0.0)
    return checked(uri, np.array([float(one.time * unit - start) for one in frames]), end_s)


def checked(uri: str, times_s: np.ndarray, end_s: float) -> tuple[np.ndarray, float]:
    """Return times and their end rounded to microseconds. Raises ClipError for impossible ones."""
    if not (np.isfinite(times_s).all() and times_s[0] >= -0.001 and end_s < MAX_SECONDS):
        raise ClipError(uri, "corrupt", f"its frames have times from {times_s[0]:g} to {end_s:g} s")
    return np.round(np.maximum(times_s, 0.0), 6), round(end_s, 6)
