"""The fast path, for files that decord reads correctly (`Probe.why_not_fast`). The only file that imports decord."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import decord
import numpy as np

BYTES_AT_ONCE = 100 << 20
"""Bytes of full-size frames held while they are resized: sixteen frames of 1080p."""

decord.logging.set_level(decord.logging.QUIET)  # what it fails on is read with PyAV


def read(path: Path, times_s: np.ndarray, keys: Collection[int], indices: Sequence[int]) -> Iterator[np.ndarray] | None:
    """Return the frames at these ascending indices, u8 [H, W, 3]; None if decord's frames differ from the file's.

    times_s: f64 [N], presentation times of the file's frames.  keys: those at which decoding can start.
    decord fails on files that others read, such as recordings without a duration: None if it does at once, and the
    frames end early if it does later.
    """
    try:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        if len(reader) != times_s.size or not set(reader.get_key_indices()) <= set(keys):
            return None
        starts_s = np.asarray(reader.get_frame_timestamp(range(len(reader))), dtype=np.float64)[:, 0]
    except (decord.DECORDError, RuntimeError):
        return None
    # decord returns float32, and some containers round to milliseconds
    if not np.allclose(starts_s, times_s, atol=2e-3, rtol=1e-6):
        return None
    return _frames(reader, indices)


def _frames(reader: decord.VideoReader, indices: Sequence[int]) -> Iterator[np.ndarray]:
    at_once, start = 1, 0
    while start < len(indices):
        try:
            batch = reader.get_batch(list(indices[start : start + at_once])).asnumpy()
        except (decord.DECORDError, RuntimeError):
            return
        yield from batch
        start += at_once
        at_once = max(1, min(16, BYTES_AT_ONCE // batch[0].nbytes))
