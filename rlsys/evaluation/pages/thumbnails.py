"""Small pictures of the frames that a model was shown, for pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import TypedDict, TypeVar

import numpy as np

from rlsys.data.video.errors import ClipError
from rlsys.data.video.processes import each_apart
from rlsys.types import Clip, ClipInfo, MediaSpec

MAX_FRAMES = 12
MAX_SIDE = 192
"""Longer side of a thumbnail, in pixels."""
ROUND_SIDE = 128
"""Longer side of a thumbnail of a row with several rounds."""
ROUND_FRAMES = MAX_FRAMES * MAX_SIDE**2 // ROUND_SIDE**2
"""Thumbnails of all rounds of a row together, which have as many pixels as those of a row with one round."""
MAX_TIMES = 128
QUALITY = 70

Media = Sequence[MediaSpec]
Found = TypeVar("Found")


class Thumbnail(TypedDict):
    """A frame: its time in seconds from the start of what the model is shown, and its picture as a data URL."""

    time_s: float
    url: str


class Strip(TypedDict):
    """One medium of a round.

    frames: thumbnails, evenly spaced.  times_s: of all its frames, as in `Thumbnail`, at most `MAX_TIMES` of them
    evenly spaced; [] for an image.
    """

    frames: list[Thumbnail]
    times_s: list[float]


def thumbnails(items: Sequence[Media], *, workers: int, timeout_s: float) -> list[list[Thumbnail]]:
    """Return thumbnails of each item's clips, at most `MAX_FRAMES` per clip, evenly spaced over what a model is shown.

    items: the media of each item. An item has none if a clip cannot be decoded within `timeout_s`.
    """
    return _in_processes(_of_item, [tuple(media) for media in items], workers, timeout_s)


def thumbnails_of_rounds(rows: Sequence[Sequence[Media]], *, workers: int, timeout_s: float) -> list[list[list[Strip]]]:
    """Return a strip for each medium of each round of each row; all rounds of a row read its file once.

    rows: the media of each round of each row. A row has at most about `ROUND_FRAMES` thumbnails, which its rounds share
    equally, and at least one for each medium; none if a clip cannot be decoded within `timeout_s`.
    """
    return _in_processes(_of_rounds, [tuple(map(tuple, rounds)) for rounds in rows], workers, timeout_s)


def _in_processes(
    make: Callable[..., list[Found]], rows: Sequence[tuple[object, ...]], workers: int, timeout_s: float
) -> list[list[Found]]:
    """Return what `make` returns for each row, in other processes; [] where that takes longer than `timeout_s`."""
    found = each_apart(make, rows, workers=workers, timeout_s=timeout_s)
    return [one if isinstance(one, list) else [] for one in found]


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


def _of_rounds(rounds: tuple[tuple[MediaSpec, ...], ...]) -> list[list[Strip]]:
    from rlsys.data.video.decode import decode_all

    # `decode_all` takes clips of one file
    by_file: dict[tuple[str, tuple[str, ...]], list[MediaSpec]] = {}
    for spec in dict.fromkeys(spec for media in rounds for spec in media):
        by_file.setdefault((spec.uri, getattr(spec, "files", ())), []).append(spec)
    clips: dict[MediaSpec, Clip] = {}
    for specs in by_file.values():
        try:
            clips.update(zip(specs, decode_all(specs), strict=True))
        except ClipError:
            return []
    most = ROUND_FRAMES // len(rounds)
    return [strips_of_clips([clips[spec] for spec in media], most) for media in rounds]


def strips_of_clips(clips: Sequence[Clip], most: int) -> list[Strip]:
    """Return a strip for each decoded clip of one round, with about `most` thumbnails together."""
    total = sum(len(clip.frames) for clip in clips)
    return [
        Strip(
            frames=thumbnails_of_clip(
                clip.info, clip.frames, most=max(1, most * len(clip.frames) // max(total, most)), side=ROUND_SIDE
            ),
            times_s=[
                round(float(clip.info.times_s[index]) - clip.info.start_s, 3)
                for index in _evenly(clip.info.times_s.size, MAX_TIMES)
            ],
        )
        for clip in clips
    ]


def _evenly(size: int, most: int) -> list[int]:
    """Return at most `most` indices below `size`, evenly spaced, with the first and the last."""
    count = min(size, most)
    return sorted({place * (size - 1) // max(1, count - 1) for place in range(count)})


def thumbnails_of_clip(
    info: ClipInfo, frames: np.ndarray, *, most: int = MAX_FRAMES, side: int = MAX_SIDE
) -> list[Thumbnail]:
    """Return thumbnails of a decoded clip, evenly spaced. frames: u8 [T, H, W, 3].

    most: largest number of them.  side: longest side of one, in pixels.
    """
    from PIL import Image

    found: list[Thumbnail] = []
    for index in _evenly(len(frames), most):
        picture = Image.fromarray(frames[index])
        picture.thumbnail((side, side))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=QUALITY)
        url = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
        time_s = float(info.times_s[index]) - info.start_s if info.times_s.size else 0.0
        found.append(Thumbnail(time_s=time_s, url=url))
    return found
