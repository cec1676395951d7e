"""Which files decord provably reads as a player shows them: the fast path."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from rlsys.data.video.readers.key_frames import KeyFrame
from rlsys.data.video.readers.pictures import Turn
from rlsys.data.video.readers.streams import Packet, aspect_of, codec_of, start_of

FAST_CODECS = frozenset(("h264", "vp8", "vp9", "mpeg4", "mjpeg"))
FAST_PIXELS = frozenset(("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p"))
MAX_FAST_PIXELS = 4096 * 2304
"""Frames above 4K are not read with decord, which takes 3.2 GB for 8K and is no faster there."""


def why_not_fast(container: Any, stream: Any, packets: Sequence[Packet], num_discarded: int) -> str:
    """Return why decord, which counts frames and seeks by key frames, may return wrong frames, or "".

    packets: all of the stream, `num_discarded` that are not shown excepted.
    """
    pts = [one.pts for one in packets]
    if stream.frames > len(packets) + num_discarded:
        return "fewer frames than its header says"  # for which decord takes memory, and aborts the process
    if num_discarded:
        return "an edit list"
    if len({one.mark for one in packets if one.key is not KeyFrame.NONE}) > 1:
        return "pictures of several sizes"
    if len(set(pts)) != len(pts):
        return "frames of one time"
    if abs(min(pts) * stream.time_base - start_of(container)) > Fraction(1, 1000):
        return "pictures that start behind the sound"
    if stream.codec_context.name == "mpeg4" and pts != sorted(pts):
        return "MPEG-4 with B-frames"
    return _groups(container, stream, packets)


def _groups(container: Any, stream: Any, packets: Sequence[Packet]) -> str:
    """Return why decord may start at a wrong frame, or "". All packets must have been read."""
    if packets[0].key is not KeyFrame.WHOLE or not _are_groups_closed(packets):
        return "open groups of pictures"
    keys = [one for one in packets if one.key is KeyFrame.WHOLE]
    times = {one.pts if container.format.name == "matroska,webm" else one.dts for one in keys}
    if any(entry.is_keyframe and entry.timestamp not in times for entry in stream.index_entries):
        return "frames that only the container calls key frames"
    if any(after.dts is not None and after.dts <= one.pts for one, after in zip(keys, keys[1:], strict=False)):
        return "key frames close to each other"  # decord seeks by the time of one in tables of when each is decoded
    return ""


def why_not_fast_picture(stream: Any, turn: Turn) -> str:
    """Return why decord may return other pictures than a player shows, or "". turn: from the stored picture to that."""
    context, codec = stream.codec_context, codec_of(stream)
    if codec not in FAST_CODECS:
        return f"codec {codec}"
    if context.pix_fmt not in FAST_PIXELS:
        return f"pixel format {context.pix_fmt}"
    if context.height * context.width > MAX_FAST_PIXELS:
        return "frames above 4K"
    if turn != Turn():
        return "a turned picture"
    return "pixels that are not square" if aspect_of(stream) != 1.0 else ""


def _are_groups_closed(packets: Sequence[Packet]) -> bool:
    """Return whether decoding can start at every keyframe: it refers to no earlier frame, nor do those behind it."""
    earliest = None
    for one in reversed(packets):
        earliest = one.pts if earliest is None else min(earliest, one.pts)
        if one.key in (KeyFrame.PARTIAL, KeyFrame.RECOVERY) or (one.key is KeyFrame.WHOLE and earliest < one.pts):
            return False
    return True
