"""Small pictures of the frames that a model was shown, for pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypedDict

import numpy as np

from rlsys.data.video.errors import ClipError
from rlsys.types import ClipInfo, MediaSpec

MAX_FRAMES = 12
MAX_SIDE = 192
"""Longer side of a thumbnail, in pixels."""
QUALITY = 70


class Thumbnail(TypedDict):
    """A frame: its time in seconds from the start of what the model is shown, and its picture as a data URL."""

    time_s: float
    url: str


def thumbnails(items: Sequence[Sequence[MediaSpec]], *, workers: int, timeout_s: float) -> list[list[Thumbnail]]:
    """Return thumbnails of each item's clips, at most `MAX_FRAMES` per clip, evenly spaced over what a model is shown.

    items: the media of each item. An item has none if a clip cannot be decoded within `timeout_s`.
    """
    if not items:
        return []
    found: list[list[Thumbnail]] = []
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        futures = [pool.submit(_of_item, tuple(media)) for media in items]
        for future in futures:
            found.append(_result(future, timeout_s))
    finally:
        for process in list((pool._processes or {}).values()):  # a decoder that hangs would keep this process alive
            process.kill()
        pool.shutdown(wait=False, cancel_futures=True)
    return found


def _result(future: Future[list[Thumbnail]], timeout_s: float) -> list[Thumbnail]:
    try:
        return future.result(timeout_s)
    except (TimeoutError, BrokenProcessPool):
        return []


def _of_item(media: tuple[MediaSpec, ...]) -> list[Thumbnail]:
    from rlsys.data.video.decode import decode

    found: list[Thumbnail] = []
    for spec in media:
        try:
            clip = decode(spec)
        except ClipError:
            return []
        found += thumbnails_of_clip(clip.info, clip.frames)
    return found


def thumbnails_of_clip(info: ClipInfo, frames: np.ndarray) -> list[Thumbnail]:
    """Return thumbnails of a decoded clip, at most `MAX_FRAMES`, evenly spaced. frames: u8 [T, H, W, 3]."""
    from PIL import Image

    found: list[Thumbnail] = []
    shown = min(len(frames), MAX_FRAMES)
    for index in sorted({place * (len(frames) - 1) // max(1, shown - 1) for place in range(shown)}):
        picture = Image.fromarray(frames[index])
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=QUALITY)
        url = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
        time_s = float(info.times_s[index]) - info.start_s if info.times_s.size else 0.0
        found.append(Thumbnail(time_s=time_s, url=url))
    return found
