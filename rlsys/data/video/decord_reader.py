"""The fast path, for files that decord reads correctly (`Probe.why_not_fast`). The only file that imports decord."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import decord
import numpy as np

from rlsys.data.video.errors import ClipError

BYTES_AT_ONCE = 100 << 20
"""Bytes of full-size frames held while they are resized: sixteen frames of 1080p."""

_PREFIX = re.compile(r"\[\d\d:\d\d:\d\d\] \S+?:\d+: ")

decord.logging.set_level(decord.logging.QUIET)  # FFmpeg's errors are reported as ClipErrors


def read(path: Path, uri: str, times_s: np.ndarray, indices: Sequence[int]) -> Iterator[np.ndarray] | None:
    """Return the frames at these ascending indices, u8 [H, W, 3]; None if decord's frames differ from the file's.

    times_s: f64 [N], presentation times of the file's frames. Raises ClipError, also while the frames are read.
    """
    try:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        if len(reader) != times_s.size:
            return None
        starts_s = np.asarray(reader.get_frame_timestamp(range(len(reader))), dtype=np.float64)[:, 0]
    except (decord.DECORDError, RuntimeError) as error:
        raise ClipError(uri, "corrupt", f"no decoder can open it: {_first_line(error)}") from error
    # decord returns float32, and some containers round to milliseconds
    if not np.allclose(starts_s, times_s, atol=2e-3, rtol=1e-6):
        return None
    return _frames(reader, uri, indices)


def _frames(reader: decord.VideoReader, uri: str, indices: Sequence[int]) -> Iterator[np.ndarray]:
    at_once, start = 1, 0
    while start < len(indices):
        try:
            batch = reader.get_batch(list(indices[start : start + at_once])).asnumpy()
        except (decord.DECORDError, RuntimeError) as error:
            raise ClipError(uri, "corrupt", f"decoding failed: {_first_line(error)}") from error
        yield from batch
        start += at_once
        at_once = max(1, min(16, BYTES_AT_ONCE // batch[0].nbytes))


def _first_line(error: Exception) -> str:
    """Return decord's message without its clock times, source lines and stack trace."""
    lines = [line for line in _PREFIX.sub("", str(error)).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(error).__name__
